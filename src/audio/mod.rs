//! Audio in and out: decoding, resampling, spectral features, encoding.
