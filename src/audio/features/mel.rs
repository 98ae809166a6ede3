//! The mel spectrogram that the flow is conditioned on (Matcha-TTS `utils/audio.py: mel_spectrogram`).

use super::spectrum::{PowerSpectrum, hann_periodic, reflected};
use super::{Features, slaney_filterbank};
use crate::audio::AudioError;

/// `feat_extractor` of `cosyvoice2.yaml`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MelParams {
    pub n_fft: usize,
    pub num_mels: usize,
    pub rate_hz: u32,
    pub hop: usize,
    pub window: usize,
    pub min_hz: f64,
    /// Half the sample rate when absent.
    pub max_hz: Option<f64>,
}

/// Natural logarithm of the mel magnitudes, `[T, num_mels]`, where a hop of samples gives a row: `x.len() / hop` rows
/// when `hop` divides `n_fft`.
///
/// # Errors
/// [`AudioError::TooShort`] when the mirrored padding of `(n_fft − hop) / 2` does not fit.
pub fn mel_spectrogram(x: &[f32], p: &MelParams) -> Result<Features, AudioError> {
    let pad = p.n_fft.saturating_sub(p.hop) / 2;
    if x.len() <= pad || x.len() + 2 * pad < p.n_fft {
        return Err(AudioError::TooShort {
            seconds: x.len() as f64 / f64::from(p.rate_hz),
            needed_seconds: (pad + 1).max(p.n_fft) as f64 / f64::from(p.rate_hz),
        });
    }
    let rows = (x.len() + 2 * pad - p.n_fft) / p.hop + 1;
    let nyquist = f64::from(p.rate_hz) / 2.0;
    let bank = slaney_filterbank(
        p.rate_hz,
        p.n_fft,
        p.num_mels,
        p.min_hz,
        p.max_hz.unwrap_or(nyquist),
    );
    let window = hann_periodic(p.window, p.n_fft);
    let mut fft = PowerSpectrum::new(p.n_fft);
    let mut frame = vec![0.0; p.n_fft];
    let mut magnitude = vec![0.0; p.n_fft / 2 + 1];
    let mut data = Vec::with_capacity(rows * p.num_mels);
    for row in 0..rows {
        let start = (row * p.hop) as isize - pad as isize;
        for (n, (v, w)) in frame.iter_mut().zip(&window).enumerate() {
            *v = w * reflected(x, start + n as isize);
        }
        fft.of(&mut frame, &mut magnitude);
        for m in &mut magnitude {
            *m = (*m + 1e-9).sqrt();
        }
        data.extend(bank.apply(&magnitude).map(|e| e.max(1e-5).ln() as f32));
    }
    Ok(Features {
        rows,
        bins: p.num_mels,
        data,
    })
}
