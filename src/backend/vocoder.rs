//! The ends of the HiFT vocoder: harmonic source, its short STFT, and the inverse STFT of the output.

use super::{Memory, Result};
use crate::tensor::{Segments, Tensor};

/// Constants of the harmonic source (`SineGen2` and `SourceModuleHnNSF` of the reference).
#[derive(Clone, Copy, Debug)]
pub struct SineSource {
    /// Samples per mel frame.
    pub upsample: usize,
    pub sample_rate_hz: f32,
    /// Sines: the fundamental and its overtones.
    pub harmonics: usize,
    /// Amplitude of the sines.
    pub sine_amp: f32,
    /// Standard deviation of the noise where voiced; `sine_amp / 3` where unvoiced.
    pub noise_std: f32,
    /// Voiced above this f0.
    pub voiced_threshold_hz: f32,
}

/// Gaussian noise of the source.
pub enum SourceNoise<'a, B: Memory> {
    /// Counter-based: sample `i` of sequence `b`, harmonic `h` is a function of `(seeds[b], first[b] + i, h)` alone.
    Philox {
        seeds: &'a [u64],
        first_samples: &'a [u64],
    },
    /// Given values `[Σ samples, harmonics]`, for comparison with recorded draws.
    Given(&'a Tensor<B>),
}

/// Vocoder ops.
pub trait Vocoder: Memory {
    /// `f0 [N, 1]` in Hz → excitation `out [N · upsample, 1]` = `tanh(w · (sines + noise) + b)`, `w [1, harmonics]`, `b [1, 1]`.
    /// Phases start at zero in every sequence.
    fn sine_source(
        &self,
        f0: &Tensor<Self>,
        segments: &Segments<Self>,
        params: &SineSource,
        noise: SourceNoise<'_, Self>,
        w: &Tensor<Self>,
        b: &Tensor<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// `torch.stft(n_fft, hop, periodic Hann, center, reflect)` of each sequence: `s [N, 1]` →
    /// `out [N', n_fft + 2]`, real parts then imaginary parts, `T / hop + 1` rows per sequence.
    fn stft(
        &self,
        s: &Tensor<Self>,
        segments: &Segments<Self>,
        n_fft: usize,
        hop: usize,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()>;

    /// `h [N, n_fft + 2]` holds log magnitudes and phase arguments: magnitude `min(exp(h), 100)`, phase `sin(h)`, inverse STFT
    /// (centred, periodic Hann), clamp to `±limit`: `out [N', 1]`, `(T − 1) · hop` samples per sequence.
    fn istft_head(
        &self,
        h: &Tensor<Self>,
        segments: &Segments<Self>,
        n_fft: usize,
        hop: usize,
        limit: f32,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()>;
}
