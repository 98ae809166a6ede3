//! Checkpoints: the official layout as it is downloaded, and our own one-folder safetensors layout.
