//! The CUDA backend: our kernels, launched through the driver alone.

mod probe;

pub use probe::describe;
