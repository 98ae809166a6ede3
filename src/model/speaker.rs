//! CAM++: fbank of a prompt to a speaker embedding.
