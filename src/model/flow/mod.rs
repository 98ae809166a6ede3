//! Speech tokens to mel: upsampling conformer encoder, causal conditional flow matching.
