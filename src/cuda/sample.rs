//! Log-probabilities and sampling. What sampling has to know of its rows goes to the device with the launch; what it drew comes
//! back in one copy.

use std::sync::{Mutex, PoisonError};

use super::Cuda;
use super::abi::{self, SampleRowParams, SampledRow};
use super::buffer::Bytes;
use super::launch::{Kernel, Shape};
use crate::backend::{Result, Sample, SampleRow, Sampled, Uniforms, check_shape};
use crate::tensor::{Ids, Tensor};

const LOG_SOFTMAX: Kernel = Kernel::new("sample", "log_softmax");
const SAMPLE: Kernel = Kernel::new("sample", "sample");

/// Of both kernels.
const THREADS: usize = 256;
/// A block's workspace is in shared memory up to here: every architecture of the build has as much for one block.
const SHARED_LIMIT: usize = 96 << 10;

/// Memory that sampling keeps; it grows once.
#[derive(Default)]
pub(super) struct SampleMemory {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// The rows' parameters, then their last tokens.
    input: Bytes,
    results: Bytes,
    workspaces: Bytes,
    staged: Vec<u8>,
}

/// The workspace of one block, laid out by the kernel.
#[derive(Clone, Copy)]
struct Workspace {
    /// Keys of candidates.
    capacity: usize,
    /// Keys of the most probable ids.
    chosen: usize,
    bytes: usize,
}

impl Workspace {
    /// For `top_k` of `vocabulary` ids.
    fn new(vocabulary: usize, top_k: usize) -> Self {
        let chosen = top_k.min(vocabulary);
        // A thread's largest key bounds what it may bring: see the kernel.
        let capacity = match chosen {
            0..=THREADS => (chosen * vocabulary.div_ceil(THREADS)).min(vocabulary),
            _ => vocabulary,
        };
        let keys = (capacity + chosen) * size_of::<u64>();
        Self {
            capacity,
            chosen,
            bytes: keys + vocabulary.next_multiple_of(2) * size_of::<f32>(),
        }
    }
}

impl Held {
    /// Stages what the kernel reads: parameters of the rows, then all last tokens. Returns where the tokens begin.
    fn stage(&mut self, rows: &[SampleRow<'_>]) -> usize {
        self.staged.clear();
        let mut first = 0;
        for row in rows {
            let params = row_params(row, first);
            first += params.history_count;
            self.staged.extend_from_slice(bytemuck::bytes_of(&params));
        }
        let tokens = self.staged.len();
        for row in rows {
            self.staged
                .extend_from_slice(bytemuck::cast_slice(window(row)));
        }
        tokens
    }
}

/// The last tokens that count.
fn window<'a>(row: &SampleRow<'a>) -> &'a [i32] {
    &row.history[row.history.len().saturating_sub(row.params.window)..]
}

fn row_params(row: &SampleRow<'_>, history_first: i32) -> SampleRowParams {
    let (seed, step, given, is_given) = match row.uniforms {
        Uniforms::Philox { seed, step } => (seed, step, [0.0; 2], 0),
        Uniforms::Given(given) => (0, 0, given, 1),
    };
    SampleRowParams {
        seed,
        given,
        top_p: row.params.top_p,
        top_k: i32::try_from(row.params.top_k).unwrap_or(i32::MAX),
        window: i32::try_from(row.params.window).unwrap_or(i32::MAX),
        repetition_rate: row.params.repetition_rate,
        step,
        is_given,
        forbidden: row.forbidden.unwrap_or(-1),
        history_first,
        history_count: window(row).len() as i32,
        reserved: 0,
    }
}

// SAFETY: plain values without padding: the fields fill the struct.
unsafe impl bytemuck::Zeroable for SampleRowParams {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for SampleRowParams {}
// SAFETY: three i32 values.
unsafe impl bytemuck::Zeroable for SampledRow {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for SampledRow {}

impl Sample for Cuda {
    fn log_softmax(&self, logits: &Tensor<Self>, out: &mut Tensor<Self>) -> Result<()> {
        check_shape!("log_softmax", out.shape(), logits.shape());
        let params = abi::LogSoftmaxParams {
            x: logits.mat(),
            out: out.mat(),
        };
        let shape = Shape::blocks(logits.rows(), THREADS as u32);
        // SAFETY: shapes checked above.
        unsafe { self.launcher.launch(LOG_SOFTMAX, shape, &params) }
    }

    fn sample(
        &self,
        logits: &Tensor<Self>,
        rows: &[SampleRow<'_>],
        out: &mut Ids<Self>,
    ) -> Result<Vec<Sampled>> {
        check_shape!("sample", rows.len(), logits.rows());
        check_shape!("sample", out.len(), rows.len());
        let top_k = rows.iter().map(|r| r.params.top_k).max().unwrap_or(0);
        let workspace = Workspace::new(logits.cols(), top_k);
        let shared = workspace.bytes <= SHARED_LIMIT;
        let mut held = (self.sampling.held.lock()).unwrap_or_else(PoisonError::into_inner);
        let held = &mut *held;
        let tokens = held.stage(rows) as u64;
        self.grow(&mut held.input, held.staged.len(), "sampling")?;
        self.grow(
            &mut held.results,
            rows.len() * size_of::<SampledRow>(),
            "sampling",
        )?;
        if !shared {
            self.grow(
                &mut held.workspaces,
                rows.len() * workspace.bytes,
                "sampling",
            )?;
        }
        // SAFETY: `input` has just been made large enough.
        unsafe { self.to_device(&held.staged, held.input.address()) }?;
        let params = abi::SampleParams {
            logits: logits.mat(),
            rows: held.input.address(),
            history: held.input.address() + tokens,
            tokens: out.address(),
            results: held.results.address(),
            workspace: if shared { 0 } else { held.workspaces.address() },
            capacity: workspace.capacity as i32,
            chosen: workspace.chosen as i32,
        };
        let shape = Shape::blocks(rows.len(), THREADS as u32).shared(if shared {
            workspace.bytes
        } else {
            0
        });
        // SAFETY: shapes checked above, and the memory is as large as the kernel's layout says.
        unsafe { self.launcher.launch(SAMPLE, shape, &params) }?;
        let mut drawn: Vec<SampledRow> = vec![bytemuck::Zeroable::zeroed(); rows.len()];
        self.read(held.results.address(), &mut drawn)?;
        Ok(drawn.iter().map(sampled).collect())
    }
}

fn sampled(row: &SampledRow) -> Sampled {
    Sampled {
        token: row.token,
        draws: row.draws as u32,
        candidates: row.candidates as u32,
    }
}
