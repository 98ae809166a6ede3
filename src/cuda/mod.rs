//! The CUDA backend: our kernels, launched through the driver alone.
