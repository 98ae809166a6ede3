//! Checkpoints: the official layout as it is downloaded, and our own one-folder safetensors layout.

mod bytes;
mod error;
mod names;
pub mod onnx;
pub mod pickle;
mod scope;
mod tensors;
pub mod torch;
pub mod yaml;
pub mod zip;

pub use bytes::Bytes;
pub use error::{CheckpointError, Fault, Problem, Result};
pub use scope::Scope;
pub use tensors::{Dtype, Entry, TensorFile};
