//! The CUDA backend: our kernels, launched through the driver alone.
//!
//! Nothing of CUDA is linked. The driver is opened at run time; the kernels are images that the build script embeds
//! (`images`). A backend owns one device: a context, a stream on which everything is ordered, and the kernels' table.
//! It is tested against the CPU backend, op by op.
//!
//! # Precision
//! [`Precision::Bf16`] keeps activations and weights of linear layers and convolutions as bf16 and accumulates in f32;
//! what a phase, a time or a probability depends on stays f32. [`Precision::F32`] keeps everything f32 on plain kernels: the
//! reference for tests and debugging. A tensor made by [`Memory::tensor`](crate::backend::Memory::tensor) is f32 always.
//!
//! As on the CPU, a row's bytes depend on its own sequence alone.

// bindgen's output.
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all
)]
mod abi;
mod attention;
mod buffer;
mod conv;
mod dense;
mod device;
mod elements;
mod epilogue;
mod flow;
mod gemm;
mod graph;
mod images;
mod launch;
mod memory;
mod norm;
mod peaks;
mod probe;
mod sample;
mod tensor_map;
mod vocoder;

pub use attention::KvCache;
pub use buffer::{Buffer, Dtype, IdBuffer};
pub use conv::{CudaConv1d, CudaConvT1d};
pub use dense::CudaLinear;
pub use device::{Cuda, CudaOptions, Precision};
pub use images::{BUILD_INFO, Images};
pub use peaks::{DevicePeaks, PeakWork};
pub use probe::{DeviceInfo, DriverInfo, describe, free_bytes, probe, usable};
