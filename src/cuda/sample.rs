//! Log-probabilities and sampling. What sampling has to know of its rows goes to the device with the launch; what it drew comes
//! back in one copy, for which nobody waits until it is asked for.

use std::sync::{Mutex, PoisonError};

use cudarc::driver::{CudaEvent, PinnedHostSlice, result};

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
/// Least room for results: the draws of a few hundred sequences.
const LANDING_BYTES: usize = 4096;
/// A block's workspace is in shared memory up to here: every architecture of the build has as much for one block.
const SHARED_LIMIT: usize = 96 << 10;

/// Memory that sampling keeps; it grows once.
#[derive(Default)]
pub(super) struct SampleMemory {
    held: Mutex<Held>,
    /// Where results land, of draws that were read.
    spare: Mutex<Vec<Landing>>,
}

/// Where the results of draws land: on the device, then in pinned memory; the event says when.
struct Landing {
    results: Bytes,
    pinned: PinnedHostSlice<u8>,
    event: CudaEvent,
}

/// Draws that are under way.
pub struct CudaDrawn {
    landing: Option<Landing>,
    rows: usize,
}

impl Drop for CudaDrawn {
    /// The copy to pinned memory has to be over before that is given back.
    fn drop(&mut self) {
        if let Some(landing) = &self.landing
            && let Err(error) = landing.event.synchronize()
        {
            tracing::debug!(?error, "draws that nobody reads");
        }
    }
}

#[derive(Default)]
struct Held {
    /// The rows' parameters, then their last tokens.
    input: Bytes,
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
    fn stage(&mut self, rows: &[SampleRow<'_>], slots: &[u32]) -> usize {
        self.staged.clear();
        let mut first = 0;
        for (row, &slot) in rows.iter().zip(slots) {
            let params = row_params(row, slot, first);
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

/// The last tokens that count, but for the one that is ahead.
fn window<'a>(row: &SampleRow<'a>) -> &'a [i32] {
    let known = row.params.window.saturating_sub(usize::from(row.ahead));
    &row.history[row.history.len().saturating_sub(known)..]
}

fn row_params(row: &SampleRow<'_>, slot: u32, history_first: i32) -> SampleRowParams {
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
        slot: slot as i32,
        ahead: i32::from(row.ahead),
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
    type Drawn = CudaDrawn;

    const DRAWS_AHEAD: usize = 1;

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

    fn draw(
        &self,
        logits: &Tensor<Self>,
        rows: &[SampleRow<'_>],
        slots: &[u32],
        tokens: &mut Ids<Self>,
    ) -> Result<CudaDrawn> {
        check_shape!("draw", rows.len(), logits.rows());
        check_shape!("draw", slots.len(), rows.len());
        let in_range = |&s: &u32| (s as usize) < tokens.len();
        check_shape!("draw", slots.iter().all(in_range), true);
        let top_k = rows.iter().map(|r| r.params.top_k).max().unwrap_or(0);
        let workspace = Workspace::new(logits.cols(), top_k);
        let shared = workspace.bytes <= SHARED_LIMIT;
        let mut held = (self.sampling.held.lock()).unwrap_or_else(PoisonError::into_inner);
        let held = &mut *held;
        let history = held.stage(rows, slots) as u64;
        self.grow(&mut held.input, held.staged.len(), "sampling")?;
        if !shared {
            self.grow(
                &mut held.workspaces,
                rows.len() * workspace.bytes,
                "sampling",
            )?;
        }
        let landing = self.landing(rows.len() * size_of::<SampledRow>())?;
        // SAFETY: `input` has just been made large enough.
        unsafe { self.to_device(&held.staged, held.input.address()) }?;
        let params = abi::SampleParams {
            logits: logits.mat(),
            rows: held.input.address(),
            history: held.input.address() + history,
            tokens: tokens.address(),
            results: landing.results.address(),
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
        self.land(landing, rows.len())
    }

    fn drawn(&self, mut draws: CudaDrawn) -> Result<Vec<Sampled>> {
        let fail = |e| self.error("waiting for a draw", e);
        let Some(landing) = draws.landing.take() else {
            return Ok(Vec::new());
        };
        landing.event.synchronize().map_err(fail)?;
        let bytes = landing.pinned.as_slice().map_err(fail)?;
        let results: &[SampledRow] =
            bytemuck::cast_slice(&bytes[..draws.rows * size_of::<SampledRow>()]);
        let drawn = results.iter().map(sampled).collect();
        let mut spare = (self.sampling.spare.lock()).unwrap_or_else(PoisonError::into_inner);
        spare.push(landing);
        Ok(drawn)
    }
}

impl Cuda {
    /// Room for so many bytes of results.
    fn landing(&self, bytes: usize) -> Result<Landing> {
        let spare = (self.sampling.spare.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(landing) = spare.filter(|l| l.results.len() >= bytes) {
            return Ok(landing);
        }
        let fail = |e| self.error("allocating pinned memory", e);
        let bytes = bytes.next_power_of_two().max(LANDING_BYTES);
        // SAFETY: the bytes are written by a copy before they are read; not write-combined.
        let pinned =
            unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes, 0) }.map_err(fail)?;
        Ok(Landing {
            results: self.bytes(bytes, "sampling")?,
            pinned,
            event: self.context.new_event(None).map_err(fail)?,
        })
    }

    /// Has the results of `rows` draws come to the host.
    fn land(&self, mut landing: Landing, rows: usize) -> Result<CudaDrawn> {
        let fail = |e| self.error("copying from the device", e);
        self.launcher.flush()?;
        self.context.bind_to_thread().map_err(fail)?;
        let bytes = rows * size_of::<SampledRow>();
        let pinned = &mut landing.pinned.as_mut_slice().map_err(fail)?[..bytes];
        if rows > 0 {
            // SAFETY: both hold as many bytes; the pinned ones are read and given back only after the event.
            unsafe {
                result::memcpy_dtoh_async(
                    pinned,
                    landing.results.address(),
                    self.stream.cu_stream(),
                )
            }
            .map_err(fail)?;
        }
        landing.event.record(&self.stream).map_err(fail)?;
        Ok(CudaDrawn {
            landing: Some(landing),
            rows,
        })
    }
}

fn sampled(row: &SampledRow) -> Sampled {
    Sampled {
        token: row.token,
        draws: row.draws as u32,
        candidates: row.candidates as u32,
    }
}
