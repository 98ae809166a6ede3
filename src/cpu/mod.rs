//! The CPU backend: the specification of every op ([`mod@reference`]), and its fast path beside it.
//!
//! Activations are f32. Weights of linear layers are kept in the precision of [`CpuOptions::weights`]; everything else is f32, but for
//! what [`Isa::multiplies_bf16`] adds to weights that are not: products with bf16 weights then round their input to bf16 too, and so do
//! convolutions of [`Fidelity::Usual`](crate::backend::Fidelity::Usual) and attention, with bf16 and with int8 weights alike. Elsewhere products take weights of
//! bf16 and their input as integers of 16 and 14 bits, whose errors are small beside those of bf16 itself, at up to twice the rate of f32 (`gemm/fixed.rs`), and with
//! AVX-512 attention inside the flow's sequences and these convolutions are of such integers beside weights that are not f32 (`attention/fixed.rs`, `gemm/sliding.rs`).
//! Beside weights that are not f32 the language model's cache keeps keys and values in bf16 ([`WeightPrecision::bytes_of_cached`]).
//! Sums stay f32, and so do norms and sampling. The vocoder is f32 too, but for its convolutions beside weights that are not: with AVX-512 they are of the same integers,
//! and in tile registers they multiply sums of two bf16, sixteen bits and more of every value. A row's bytes depend on its
//! own sequence and on the CPU's instructions alone: not on its batch, nor on the number of threads.
//!
//! Fast paths are chosen at run time ([`Isa`]). They exist for AVX2 with FMA, which has been run on AMD Zen 3 and 4, for AVX-512 with VNNI and
//! BF16, which has been run on Zen 4 and 5, on Ice Lake, which has no BF16, and on Emerald Rapids, whose multiply-adds of bf16 are slow, so that they are not
//! used there, and for Intel's AMX, which has been run on one Xeon: its tile registers multiply bf16 and int8
//! (`gemm/tiled.rs`), and they are the only way that weights of these precisions are multiplied there. Everywhere else the portable loops run.

mod attention;
mod buffer;
mod conv;
mod dense;
mod epilogue;
mod exact;
mod flow;
mod gemm;
pub(crate) mod heap;
mod isa;
mod math;
mod memory;
mod norm;
mod pages;
mod peaks;
mod pool;
mod prompt;
pub mod reference;
mod rows;
mod sample;
mod vocoder;

pub use attention::KvCache;
pub use buffer::Buffer;
pub use conv::{CpuConv1d, CpuConvT1d};
pub use dense::CpuLinear;
pub use epilogue::{Activation, Store};
pub use isa::Isa;
pub use memory::CpuEmbedding;
pub use peaks::{Peaks, Reads};
pub use prompt::CpuConv2d;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backend::{Backend, BackendError, Result};
use crate::tensor::{Ids, Tensor};
use attention::Rotary;
use pool::Pool;

/// In what precision the weights of linear layers are kept. Products accumulate in f32, those in integers exactly over stretches of 128 values and in f32 beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightPrecision {
    /// As exact as the checkpoint. What must agree with the reference to the bit (speech tokens of a prompt) needs this.
    #[default]
    F32,
    /// Rounded to the nearest bf16: half the bytes to read per token. Where the CPU multiplies bf16, inputs are rounded as well; elsewhere both become
    /// 16-bit integers with one scale per output channel, and per row and stretch.
    Bf16,
    /// Symmetric int8 with one scale per output channel: a quarter of the bytes. Products round their input to int8 too, with one scale per row and
    /// stretch, an error of the size of the weights' own.
    Int8,
}

impl WeightPrecision {
    /// Bytes of a number in the language model's cache of keys and values: f32 beside weights of f32, so that all stays as exact as they are; beside others
    /// they are rounded to bf16 as they are stored, and widened to f32 when they are read.
    pub fn bytes_of_cached(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 | Self::Int8 => size_of::<half::bf16>(),
        }
    }
}

/// How the CPU backend is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the calling one included. 0 means as many as the process may run on. Results do not depend on it.
    pub threads: usize,
    /// Precision of linear layers' weights.
    pub weights: WeightPrecision,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            weights: WeightPrecision::F32,
        }
    }
}

/// The CPU as a [`Backend`]. Ops may be called from several threads; they then take turns.
pub struct Cpu {
    options: CpuOptions,
    isa: Isa,
    pool: Pool,
    /// The calling thread alone: for products inside a job of the pool.
    alone: Pool,
    scratch: Mutex<Scratch>,
    rotary: Mutex<Rotary>,
}

/// Intermediate values of the op under way; they grow once.
#[derive(Default)]
struct Scratch {
    padded: Buffer,
    product: Buffer,
}

impl Cpu {
    /// Sets up the backend.
    pub fn new(options: CpuOptions) -> Self {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        Self::with_isa(options, threads, Isa::detect())
    }

    /// The same with no more than the given instruction set: for comparing the fast paths of one machine.
    pub fn with_instructions(options: CpuOptions, isa: Isa) -> Self {
        Self::with_isa(options, options.threads.max(1), isa)
    }

    fn with_isa(options: CpuOptions, threads: usize, isa: Isa) -> Self {
        let pool = Pool::new(threads);
        Self {
            options: CpuOptions {
                threads: pool.threads(),
                ..options
            },
            isa,
            pool,
            alone: Pool::new(1),
            scratch: Mutex::default(),
            rotary: Mutex::default(),
        }
    }

    /// Whether layers that follow each other are computed block by block of rows, so that what lies between stays in a core's cache: with tile registers, and
    /// with integers where their rows are taken word by word. Elsewhere it was not measured.
    fn works_in_blocks(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.isa.takes_rows_by_word() && !self.isa.multiplies_bf16() {
            return self.options.weights != WeightPrecision::F32;
        }
        self.isa.has_tiles()
    }

    /// The scratch buffers, for one op at a time.
    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rotary table.
    fn rotary(&self) -> MutexGuard<'_, Rotary> {
        self.rotary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Instruction set of the fast paths.
    pub fn instructions(&self) -> &'static str {
        self.isa.name()
    }

    /// The same as a value.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The options in effect, with the thread count resolved.
    pub fn options(&self) -> CpuOptions {
        self.options
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }
}

impl Tensor<Cpu> {
    /// The values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.buf.as_slice()[..self.rows * self.cols]
    }

    /// The values, row-major, to be changed.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.buf.as_mut_slice()[..self.rows * self.cols]
    }

    /// Row `i`.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.buf.as_slice()[i * self.cols..(i + 1) * self.cols]
    }
}

impl Ids<Cpu> {
    /// The values.
    pub fn data(&self) -> &[i32] {
        &self.buf[..self.len]
    }
}

/// Says which allocation failed.
fn out_of_memory(what: &'static str, bytes: usize) -> BackendError {
    BackendError::OutOfMemory {
        device: "cpu".into(),
        what,
        bytes,
    }
}

/// An empty vector with room for `n` values.
fn try_vec<T>(n: usize, what: &'static str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n)
        .map_err(|_| out_of_memory(what, n.saturating_mul(size_of::<T>())))?;
    Ok(v)
}

pub(crate) use crate::backend::check_shape;
