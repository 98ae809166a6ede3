//! What the calls of a streamed utterance keep for the calls after them.
//!
//! The reference computes the whole prefix again for every chunk. Under chunked attention that is the same work with
//! the same result: a row depends on its own chunk and on what lies before it, never on what follows. So for each Euler step
//! we keep the inputs of the attention layers, from which keys and values are made again, and the last rows that convolutions
//! look back at. A call then computes its new rows alone, and they are, bit for bit, what the whole would give.

use super::estimator::HALO;
use crate::backend::{Backend, Result};
use crate::tensor::{Segments, Tensor};

/// Whole chunks of mel frames that earlier calls of one utterance have computed. Memory per frame, in values: 2 guidance halves ·
/// Euler steps · attention layers · channels.
pub struct FlowPrefix<B: Backend> {
    frames: usize,
    /// Frames that the running call adds when it is done.
    growth: usize,
    steps: Vec<StepPrefix<B>>,
}

/// What is kept of one Euler step.
struct StepPrefix<B: Backend> {
    /// For each chain of convolutions the last rows of its input, `[2 · min(HALO, frames), C]`.
    halos: Vec<Tensor<B>>,
    /// One piece per call.
    pieces: Vec<Piece<B>>,
}

/// Inputs of all attention layers for the frames that one call added.
struct Piece<B: Backend> {
    frames: usize,
    /// `[layers · 2 · frames, C]`, the conditional half of a layer before the unconditional one.
    rows: Tensor<B>,
}

impl<B: Backend> Default for FlowPrefix<B> {
    fn default() -> Self {
        Self {
            frames: 0,
            growth: 0,
            steps: Vec::new(),
        }
    }
}

impl<B: Backend> FlowPrefix<B> {
    /// Mel frames that need not be computed again, the prompt's included.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Announces how many frames the next call adds.
    pub(super) fn grow_by(&mut self, frames: usize) {
        self.growth = frames;
    }

    /// Takes over what the call that has just ended has added.
    pub(super) fn commit(&mut self) {
        self.frames += std::mem::take(&mut self.growth);
    }

    fn halo(&self) -> usize {
        self.frames.min(HALO)
    }
}

/// The prefixes of a batch during one evaluation of the estimator. Layers and chains count themselves, in the order of the network.
pub(super) struct Carry<'a, B: Backend> {
    prefixes: Vec<Option<&'a mut FlowPrefix<B>>>,
    /// Euler step of each utterance.
    steps: Vec<usize>,
    chain: usize,
    layer: usize,
    /// Rows of both guidance halves with what convolutions look back at, `2B` entries.
    pub(super) halo: Segments<B>,
    /// The same with all rows before them.
    pub(super) keys: Segments<B>,
}

impl<'a, B: Backend> Carry<'a, B> {
    /// For utterances of `lengths` new rows at `steps`; nothing when none of them keeps anything.
    pub(super) fn new(
        backend: &B,
        prefixes: Vec<Option<&'a mut FlowPrefix<B>>>,
        lengths: &[usize],
        steps: &[usize],
        layers: usize,
        channels: usize,
    ) -> Result<Option<Self>> {
        if prefixes.iter().all(Option::is_none) {
            return Ok(None);
        }
        let longer = |by: fn(&FlowPrefix<B>) -> usize| {
            let rows =
                |(p, n): (&Option<&mut FlowPrefix<B>>, &usize)| n + p.as_deref().map_or(0, by);
            let one: Vec<usize> = prefixes.iter().zip(lengths).map(rows).collect();
            Segments::new(backend, &one.repeat(2))
        };
        let (halo, keys) = (longer(FlowPrefix::halo)?, longer(FlowPrefix::frames)?);
        let mut carry = Self {
            prefixes,
            steps: steps.to_vec(),
            chain: 0,
            layer: 0,
            halo,
            keys,
        };
        for (prefix, &step) in carry.prefixes.iter_mut().zip(steps) {
            let Some(prefix) = prefix else { continue };
            while prefix.steps.len() <= step {
                prefix.steps.push(StepPrefix {
                    halos: Vec::new(),
                    pieces: Vec::new(),
                });
            }
            let frames = prefix.growth;
            let rows = backend.alloc(layers * 2 * frames, channels)?;
            prefix.steps[step].pieces.push(Piece { frames, rows });
        }
        Ok(Some(carry))
    }

    /// Sets the rows that convolutions look back at before those of `x [2N, C]`, and keeps the last ones for the next call.
    pub(super) fn extend_halo(
        &mut self,
        backend: &B,
        x: &Tensor<B>,
        segments: &Segments<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        let (chain, count) = (self.chain, self.prefixes.len());
        self.chain += 1;
        backend.resize(out, self.halo.total(), x.cols())?;
        for entry in 0..segments.count() {
            let (rows, to) = (segments.range(entry), self.halo.range(entry));
            let halo = to.len() - rows.len();
            if let Some(prefix) = self.prefixes[entry % count].as_deref()
                && halo > 0
            {
                let kept = &prefix.steps[self.steps[entry % count]].halos[chain];
                backend.copy_rows(kept, entry / count * halo, out, to.start, halo)?;
            }
            backend.copy_rows(x, rows.start, out, to.start + halo, rows.len())?;
        }
        for (b, prefix) in self.prefixes.iter_mut().enumerate() {
            let Some(prefix) = prefix else { continue };
            let end = prefix.halo() + prefix.growth;
            let kept = (prefix.frames + prefix.growth).min(HALO);
            let mut last = backend.alloc(2 * kept, x.cols())?;
            for half in 0..2 {
                let start = self.halo.range(half * count + b).start + end - kept;
                backend.copy_rows(out, start, &mut last, half * kept, kept)?;
            }
            let halos = &mut prefix.steps[self.steps[b]].halos;
            match halos.get_mut(chain) {
                Some(halo) => *halo = last,
                None => halos.push(last),
            }
        }
        Ok(())
    }

    /// Leaves in `x` the new rows alone; `spare` takes its buffer.
    pub(super) fn drop_halo(
        &self,
        backend: &B,
        segments: &Segments<B>,
        x: &mut Tensor<B>,
        spare: &mut Tensor<B>,
    ) -> Result<()> {
        backend.resize(spare, segments.total(), x.cols())?;
        for entry in 0..segments.count() {
            let (rows, from) = (segments.range(entry), self.halo.range(entry));
            let first = from.end - rows.len();
            backend.copy_rows(x, first, spare, rows.start, rows.len())?;
        }
        std::mem::swap(x, spare);
        Ok(())
    }

    /// All rows that the next attention layer sees: what was kept, then `x [2N, C]`, which is kept in turn.
    pub(super) fn extend_keys(
        &mut self,
        backend: &B,
        x: &Tensor<B>,
        segments: &Segments<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        let (layer, count) = (self.layer, self.prefixes.len());
        self.layer += 1;
        backend.resize(out, self.keys.total(), x.cols())?;
        for entry in 0..segments.count() {
            let (b, half) = (entry % count, entry / count);
            let (rows, to) = (segments.range(entry), self.keys.range(entry));
            backend.copy_rows(x, rows.start, out, to.end - rows.len(), rows.len())?;
            let Some(prefix) = self.prefixes[b].as_deref_mut() else {
                continue;
            };
            let place = |frames: usize| (2 * layer + half) * frames;
            let Some((new, old)) = prefix.steps[self.steps[b]].pieces.split_last_mut() else {
                continue;
            };
            let mut at = to.start;
            for piece in old {
                let first = place(piece.frames);
                backend.copy_rows(&piece.rows, first, out, at, piece.frames)?;
                at += piece.frames;
            }
            if new.frames > 0 {
                let first = place(new.frames);
                backend.copy_rows(x, rows.start, &mut new.rows, first, new.frames)?;
            }
        }
        Ok(())
    }
}
