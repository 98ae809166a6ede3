//! From what people write to what the model reads: normalisation, splitting, tokens.
