//! The contract between the models and the hardware: about thirty fused operations in subject traits.
//!
//! One method is one kernel that an expert would hand-write for this model. `cpu/` is the specification: a readable f32
//! reference of each op, its fast path beside it; `cuda/` is tested against it.
//!
//! # Conventions
//! - Activations are row-major and channels-last; a batch is packed rows plus [`Segments`](crate::tensor::Segments).
//! - Outputs are caller-owned and already have their final shape; ops overwrite them unless they say "adds". A shape that
//!   does not fit is a bug in the model: ops panic with their name and both shapes.
//! - Weights are opaque types made by `pack_*`, so that each backend picks layout and precision.
//! - The order in which a row's values are accumulated never depends on the other rows of the batch, nor on the number of threads.
//!
//! # Letters in shapes
//! `B` sequences · `N` packed rows · `T` rows of one sequence · `C`, `D`, `K`, `M` channels · `H` heads, `Hq`/`Hk` query
//! and key/value heads · `Dh` channels of a head · `V` vocabulary · `P` pages.

pub mod attention;
pub mod conv;
pub mod dense;
pub mod flow;
pub mod memory;
pub mod norm;
pub mod philox;
pub mod sample;
pub mod vocoder;
pub mod weight;

pub use attention::{Attention, AttnPlan, KvShape, Mask, Masks, PlanSequence, RelPos};
pub use conv::{Conv, ConvGeom, Fidelity, Padding};
pub use dense::{Act, Dense, Epilogue};
pub use flow::Flow;
pub use memory::Memory;
pub use norm::Norm;
pub use sample::{Sample, SampleParams, SampleRow, Sampled, Uniforms};
pub use vocoder::{SineSource, SourceNoise, Vocoder};
pub use weight::Weight;

/// Everything that the models need from a device.
pub trait Backend:
    Memory + Dense + Norm + Attention + Conv + Flow + Vocoder + Sample + Send + Sync + 'static
{
    /// Short name for logs and reports, such as `cpu` or `cuda:0`.
    fn name(&self) -> &str;

    /// Another handle on the same device, whose work does not wait for what is asked of this one and goes before it. Each has its own tensors:
    /// nothing orders the work of the two. None where all work takes turns.
    ///
    /// # Errors
    /// What the device reports.
    fn urgent(&self) -> Result<Option<Self>> {
        Ok(None)
    }
}

/// Failures of the device itself. Wrong shapes are not among them: they are bugs.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    /// The device has no room for an allocation.
    #[error("{device}: out of memory: cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        device: String,
        what: &'static str,
        bytes: usize,
    },
    /// The driver reported an error; the device may be unusable from here on.
    #[error("{device}: {op} failed: {message}")]
    Driver {
        device: String,
        op: &'static str,
        message: String,
    },
}

/// Result of a backend op.
pub type Result<T> = std::result::Result<T, BackendError>;

/// Panics when an op is given tensors that do not fit each other.
macro_rules! check_shape {
    ($op:literal, $actual:expr, $expected:expr) => {{
        let (actual, expected) = ($actual, $expected);
        assert!(
            actual == expected,
            concat!($op, ": {} is {:?}, expected {:?}"),
            stringify!($actual),
            actual,
            expected
        );
    }};
}
pub(crate) use check_shape;
