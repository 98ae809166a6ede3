//! The vocoder stage: waiting mel to samples, with the caches and the cross-fade of the official streaming rules
//! (`CosyVoice2Model.token2wav`, `cosyvoice/cli/model.py`).
//!
//! A chunk that is not the last keeps back its last frames: they are vocoded again in front of the next chunk, with the same excitation, and the two
//! renderings are faded into each other.

use super::request::EngineError;
use super::sequence::{PendingMel, Sequence, VocoderCache};
use crate::audio::stream::CrossFade;
use crate::backend::{Backend, SourceNoise};
use crate::model::vocoder::{Hift, HiftWorkspace};
use crate::tensor::{Segments, Tensor, Trace};

/// Mel frames that a chunk shares with the next (`mel_cache_len` of the reference).
const CACHED_FRAMES: usize = 8;

/// Buffers of the stage.
pub(super) struct VocodeStage<B: Backend> {
    mel: Tensor<B>,
    segments: Segments<B>,
    ws: HiftWorkspace<B>,
    fade: CrossFade,
}

impl<B: Backend> VocodeStage<B> {
    pub(super) fn new(backend: &B, hift: &Hift<B>) -> Result<Self, EngineError> {
        Ok(Self {
            mel: backend.alloc_f32(0, 0)?,
            segments: Segments::new(backend, &[])?,
            ws: HiftWorkspace::new(backend)?,
            fade: CrossFade::new(CACHED_FRAMES * hift.samples_per_frame()),
        })
    }

    /// Vocodes the waiting mel of each of `chosen` as one batch: `(sequence, samples, last)`.
    pub(super) fn run(
        &mut self,
        backend: &B,
        hift: &Hift<B>,
        sequences: &mut [Sequence<B>],
        chosen: &[usize],
        trace: &Trace,
    ) -> Result<Vec<(usize, Vec<f32>, bool)>, EngineError> {
        // Recorded noise is one tensor for the whole call: such a sequence goes alone.
        let (recorded, drawn): (Vec<usize>, Vec<usize>) = chosen
            .iter()
            .partition(|&&i| sequences[i].request.draws.is_some());
        let mut results = Vec::with_capacity(chosen.len());
        for group in recorded.chunks(1).chain([drawn.as_slice()]) {
            if !group.is_empty() {
                self.run_group(backend, hift, sequences, group, trace, &mut results)?;
            }
        }
        Ok(results)
    }

    fn run_group(
        &mut self,
        backend: &B,
        hift: &Hift<B>,
        sequences: &mut [Sequence<B>],
        group: &[usize],
        trace: &Trace,
        results: &mut Vec<(usize, Vec<f32>, bool)>,
    ) -> Result<(), EngineError> {
        let chunks: Vec<(usize, PendingMel<B>)> = group
            .iter()
            .filter_map(|&i| Some((i, sequences[i].mel.take()?)))
            .collect();
        self.gather(backend, sequences, &chunks)?;
        let samples_per_frame = hift.samples_per_frame();
        let total = self.segments.total() * samples_per_frame;
        let given = sequences[group[0]].next_noise(total);
        let given = match &given {
            Some(values) => Some(backend.tensor(total, values.len() / total.max(1), values)?),
            None => None,
        };
        let cached: Vec<Option<&Tensor<B>>> = chunks
            .iter()
            .map(|(i, _)| sequences[*i].cache.as_ref().map(|c| &c.source))
            .collect();
        let seeds: Vec<u64> = chunks.iter().map(|(i, _)| sequences[*i].seed).collect();
        let first_samples: Vec<u64> = chunks
            .iter()
            .map(|(i, m)| {
                let overlap = sequences[*i].cache.as_ref().map_or(0, |c| c.mel.rows());
                (m.first_frame.saturating_sub(overlap) * samples_per_frame) as u64
            })
            .collect();
        let noise = match &given {
            Some(noise) => SourceNoise::Given(noise),
            None => SourceNoise::Philox {
                seeds: &seeds,
                first_samples: &first_samples,
            },
        };
        hift.run(
            backend,
            &self.mel,
            &self.segments,
            &cached,
            noise,
            &mut self.ws,
            trace,
        )?;
        drop(cached);
        self.deliver(backend, hift, sequences, chunks, results)
    }

    /// Cached frames, then new ones, of every chunk.
    fn gather(
        &mut self,
        backend: &B,
        sequences: &[Sequence<B>],
        chunks: &[(usize, PendingMel<B>)],
    ) -> Result<(), EngineError> {
        let overlap = |i: usize| sequences[i].cache.as_ref().map_or(0, |c| c.mel.rows());
        let lengths: Vec<usize> = chunks
            .iter()
            .map(|(i, m)| overlap(*i) + m.mel.rows())
            .collect();
        let mels = chunks.first().map_or(0, |(_, m)| m.mel.cols());
        self.segments.update(backend, &lengths)?;
        backend.resize(&mut self.mel, self.segments.total(), mels)?;
        for (b, (i, pending)) in chunks.iter().enumerate() {
            let mut row = self.segments.range(b).start;
            if let Some(cache) = &sequences[*i].cache {
                backend.copy_rows(&cache.mel, 0, &mut self.mel, row, cache.mel.rows())?;
                row += cache.mel.rows();
            }
            backend.copy_rows(&pending.mel, 0, &mut self.mel, row, pending.mel.rows())?;
        }
        Ok(())
    }

    /// Fades each chunk into the one before, keeps back its end unless it is the last.
    fn deliver(
        &mut self,
        backend: &B,
        hift: &Hift<B>,
        sequences: &mut [Sequence<B>],
        chunks: Vec<(usize, PendingMel<B>)>,
        results: &mut Vec<(usize, Vec<f32>, bool)>,
    ) -> Result<(), EngineError> {
        let mut wave = Vec::new();
        backend.download(self.ws.wave(), &mut wave)?;
        for (b, (i, pending)) in chunks.into_iter().enumerate() {
            let range = self.ws.samples().range(b);
            let mut samples = wave[range.clone()].to_vec();
            if let Some(cache) = sequences[i].cache.take() {
                self.fade.blend(&cache.speech, &mut samples);
            }
            if !pending.last {
                let frames = self.segments.range(b);
                let kept = CACHED_FRAMES.min(frames.len());
                let kept_samples = kept * hift.samples_per_frame();
                let mut mel = backend.alloc_f32(kept, self.mel.cols())?;
                backend.copy_rows(&self.mel, frames.end - kept, &mut mel, 0, kept)?;
                let mut source = backend.alloc_f32(kept_samples, 1)?;
                let from = range.end - kept_samples;
                backend.copy_rows(self.ws.source(), from, &mut source, 0, kept_samples)?;
                let speech = samples.split_off(samples.len() - kept_samples);
                sequences[i].cache = Some(VocoderCache {
                    mel,
                    source,
                    speech,
                });
            }
            results.push((i, samples, pending.last));
        }
        Ok(())
    }
}
