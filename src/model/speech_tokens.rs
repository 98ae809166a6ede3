//! Speech tokenizer v2: log-mel of a prompt to 25 Hz tokens.
