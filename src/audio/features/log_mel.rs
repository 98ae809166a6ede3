//! The log-mel spectrogram that the speech tokenizer reads (openai-whisper `audio.py: log_mel_spectrogram`).

use super::spectrum::{PowerSpectrum, hann_periodic, reflected};
use super::{Features, slaney_filterbank};
use crate::audio::AudioError;

/// Geometry of Whisper's features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WhisperParams {
    pub rate_hz: u32,
    pub n_fft: usize,
    pub hop: usize,
    pub mels: usize,
}

impl WhisperParams {
    /// Whisper's own 16 kHz, 25 ms windows, 10 ms hops, with `mels` bins.
    pub fn standard(mels: usize) -> Self {
        Self {
            rate_hz: 16_000,
            n_fft: 400,
            hop: 160,
            mels,
        }
    }
}

/// `[x.len() / hop, mels]`, logarithm to base 10 within 8 of its maximum, moved to about [−1, 1].
///
/// # Errors
/// [`AudioError::TooShort`] when the mirrored padding of `n_fft / 2` does not fit or there is no whole hop.
pub fn whisper_log_mel(x: &[f32], p: &WhisperParams) -> Result<Features, AudioError> {
    let pad = p.n_fft / 2;
    let rows = x.len() / p.hop;
    if x.len() <= pad || rows == 0 {
        return Err(AudioError::TooShort {
            seconds: x.len() as f64 / f64::from(p.rate_hz),
            needed_seconds: (pad + 1).max(p.hop) as f64 / f64::from(p.rate_hz),
        });
    }
    let bank = slaney_filterbank(p.rate_hz, p.n_fft, p.mels, 0.0, f64::from(p.rate_hz) / 2.0);
    let window = hann_periodic(p.n_fft, p.n_fft);
    let mut fft = PowerSpectrum::new(p.n_fft);
    let mut frame = vec![0.0; p.n_fft];
    let mut power = vec![0.0; p.n_fft / 2 + 1];
    let mut logs = Vec::with_capacity(rows * p.mels);
    for row in 0..rows {
        let start = (row * p.hop) as isize - pad as isize;
        for (n, (v, w)) in frame.iter_mut().zip(&window).enumerate() {
            *v = w * reflected(x, start + n as isize);
        }
        fft.of(&mut frame, &mut power);
        logs.extend(bank.apply(&power).map(|e| e.max(1e-10).log10()));
    }
    let floor = logs.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v)) - 8.0;
    Ok(Features {
        rows,
        bins: p.mels,
        data: logs
            .into_iter()
            .map(|v| ((v.max(floor) + 4.0) / 4.0) as f32)
            .collect(),
    })
}
