//! Repetition-aware sampling of speech tokens (`ras_sampling` of the reference, after VALL-E 2).

use super::{Memory, Result, check_shape};
use crate::tensor::{Ids, Tensor};

/// The sampling section of `cosyvoice2.yaml`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SampleParams {
    pub top_p: f32,
    pub top_k: usize,
    /// Last tokens that count as repetitions.
    pub window: usize,
    /// A token that fills more than this share of the window is redrawn.
    pub repetition_rate: f32,
}

/// Where a row's random numbers in `[0, 1)` come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Uniforms {
    /// Philox: a function of `(seed, step)` alone.
    Philox { seed: u64, step: u32 },
    /// Recorded draws: the first for the nucleus, the second for the redraw.
    Given([f64; 2]),
}

/// What sampling has to know of one sequence.
#[derive(Clone, Debug)]
pub struct SampleRow<'a> {
    pub params: SampleParams,
    pub uniforms: Uniforms,
    /// Tokens so far; only the last `window` are read.
    pub history: &'a [i32],
    /// The token after those is known to the device alone: it is in the row's slot, where the draw before left it.
    pub ahead: bool,
    /// An id that cannot be chosen (the end token before the minimum length).
    pub forbidden: Option<i32>,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    pub token: i32,
    /// Random numbers used: 1, or 2 after a redraw.
    pub draws: u32,
    /// Candidates of the first draw.
    pub candidates: u32,
}

/// Sampling ops.
pub trait Sample: Memory {
    /// Draws that are under way.
    type Drawn: Send;

    /// How many draws of a sequence may be asked for before the first is read: 0 where ops return when they are done.
    const DRAWS_AHEAD: usize = 0;

    /// `out[i] = log_softmax(logits[i])`: `[N, V]` both.
    fn log_softmax(&self, logits: &Tensor<Self>, out: &mut Tensor<Self>) -> Result<()>;

    /// Draws one token per row of `logits [B, V]`, without waiting for it: that of row `b` goes to `tokens[slots[b]]`, where the next
    /// [`embed`](Memory::embed) and the next draw find it. No slot twice.
    fn draw(
        &self,
        logits: &Tensor<Self>,
        rows: &[SampleRow<'_>],
        slots: &[u32],
        tokens: &mut Ids<Self>,
    ) -> Result<Self::Drawn>;

    /// Waits for draws: one result per row.
    fn drawn(&self, draws: Self::Drawn) -> Result<Vec<Sampled>>;

    /// The two at once: the id of row `b` goes to `out[b]`.
    fn sample(
        &self,
        logits: &Tensor<Self>,
        rows: &[SampleRow<'_>],
        out: &mut Ids<Self>,
    ) -> Result<Vec<Sampled>> {
        check_shape!("sample", out.len(), rows.len());
        let slots: Vec<u32> = (0..rows.len() as u32).collect();
        self.drawn(self.draw(logits, rows, &slots, out)?)
    }
}
