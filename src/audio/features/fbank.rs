//! Kaldi filter bank features that the speaker encoder reads (torchaudio `compliance/kaldi.py: fbank`, dither 0).
//!
//! The steps before the FFT are f32 as in torchaudio: what they round away is most of the energy of a silent frame.

use std::f64::consts::PI;

use super::spectrum::PowerSpectrum;
use super::{Features, kaldi_filterbank};
use crate::audio::AudioError;

/// Parameters that differ between models; the rest are Kaldi's defaults (Povey window, pre-emphasis 0.97, no DC).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FbankParams {
    pub rate_hz: u32,
    pub bins: usize,
    pub frame_ms: f64,
    pub shift_ms: f64,
    pub min_hz: f64,
}

impl FbankParams {
    /// Frames of 25 ms every 10 ms at 16 kHz from 20 Hz, with `bins` filters.
    pub fn standard(bins: usize) -> Self {
        Self {
            rate_hz: 16_000,
            bins,
            frame_ms: 25.0,
            shift_ms: 10.0,
            min_hz: 20.0,
        }
    }
}

const PREEMPHASIS: f32 = 0.97;

/// Natural logarithm of the filter energies, `[T, bins]`, of whole frames only. The official caller passes samples in
/// [−1, 1], not in the 16-bit range that Kaldi expects; so does ours.
///
/// # Errors
/// [`AudioError::TooShort`] when there is no whole frame.
pub fn kaldi_fbank(x: &[f32], p: &FbankParams) -> Result<Features, AudioError> {
    let samples = |ms: f64| (f64::from(p.rate_hz) * ms * 0.001) as usize;
    let (size, shift) = (samples(p.frame_ms), samples(p.shift_ms));
    if x.len() < size {
        return Err(AudioError::TooShort {
            seconds: x.len() as f64 / f64::from(p.rate_hz),
            needed_seconds: p.frame_ms * 0.001,
        });
    }
    let rows = (x.len() - size) / shift + 1;
    let padded = size.next_power_of_two();
    let nyquist = f64::from(p.rate_hz) / 2.0;
    let bank = kaldi_filterbank(p.rate_hz, padded, p.bins, p.min_hz, nyquist);
    let window = povey(size);
    let mut fft = PowerSpectrum::new(padded);
    let mut frame = vec![0.0; padded];
    let mut power = vec![0.0; padded / 2 + 1];
    let mut data = Vec::with_capacity(rows * p.bins);
    for row in 0..rows {
        let input = &x[row * shift..][..size];
        let mean = (input.iter().map(|&v| f64::from(v)).sum::<f64>() / size as f64) as f32;
        let mut previous = input[0] - mean;
        for ((v, &s), w) in frame.iter_mut().zip(input).zip(&window) {
            let s = s - mean;
            *v = f64::from((s - PREEMPHASIS * previous) * w);
            previous = s;
        }
        frame[size..].fill(0.0);
        fft.of(&mut frame, &mut power);
        let floor = f64::from(f32::EPSILON);
        data.extend(bank.apply(&power).map(|e| e.max(floor).ln() as f32));
    }
    Ok(Features {
        rows,
        bins: p.bins,
        data,
    })
}

/// A symmetric Hann window to the power of 0.85.
fn povey(size: usize) -> Vec<f32> {
    let last = size.saturating_sub(1).max(1) as f64;
    (0..size)
        .map(|n| (0.5 - 0.5 * (2.0 * PI * n as f64 / last).cos()).powf(0.85) as f32)
        .collect()
}

/// Takes each bin's mean over time away.
pub fn subtract_mean(features: &mut Features) {
    let Features { rows, bins, data } = features;
    let mut mean = vec![0.0f64; *bins];
    for row in data.chunks(*bins) {
        for (m, &v) in mean.iter_mut().zip(row) {
            *m += f64::from(v);
        }
    }
    for row in data.chunks_mut(*bins) {
        for (m, v) in mean.iter().zip(row) {
            *v -= (m / *rows as f64) as f32;
        }
    }
}
