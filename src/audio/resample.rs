//! Band-limited resampling, the same filter as `torchaudio.transforms.Resample` with its defaults.
//!
//! In: samples at one rate; out: samples at another. The filter is a sinc under a Hann window of six zero crossings on each
//! side, with a cut-off at 0.99 of the lower Nyquist frequency, sampled once per output phase of the reduced ratio
//! (Julius Smith, "Digital Audio Resampling"; torchaudio `functional._get_sinc_resample_kernel`).

use std::f64::consts::PI;

/// Zero crossings of the sinc on each side.
const LOWPASS_WIDTH: f64 = 6.0;
/// Cut-off as a share of the lower of both Nyquist frequencies.
const ROLLOFF: f64 = 0.99;

/// Resamples `x` from `from_hz` to `to_hz`: `ceil(len · to / from)` samples.
///
/// # Panics
/// When a rate is zero.
pub fn resample(x: &[f32], from_hz: u32, to_hz: u32) -> Vec<f32> {
    assert!(from_hz > 0 && to_hz > 0, "resample: a rate is zero");
    if from_hz == to_hz {
        return x.to_vec();
    }
    let kernel = Kernel::new(from_hz, to_hz);
    let length = kernel.output_len(x.len());
    (0..length).map(|n| kernel.output(x, n)).collect()
}

/// The filter of one reduced ratio: per output phase, the taps that are not zero.
struct Kernel {
    /// Input samples per period.
    orig: usize,
    /// Output samples per period.
    new: usize,
    phases: Vec<Phase>,
}

/// Taps that weigh inputs `start, start + 1, …` relative to the period's first input sample.
struct Phase {
    start: i64,
    taps: Vec<f32>,
}

impl Kernel {
    fn new(from_hz: u32, to_hz: u32) -> Self {
        let g = gcd(from_hz, to_hz);
        let (orig, new) = ((from_hz / g) as usize, (to_hz / g) as usize);
        let base = orig.min(new) as f64 * ROLLOFF;
        let width = (LOWPASS_WIDTH * orig as f64 / base).ceil() as i64;
        let phases = (0..new)
            .map(|p| Self::phase(p, orig, new, base, width))
            .collect();
        Self { orig, new, phases }
    }

    fn phase(p: usize, orig: usize, new: usize, base: f64, width: i64) -> Phase {
        // The official code takes this quotient in f32 and everything after it in f64.
        let shift = f64::from(-(p as f32) / new as f32);
        let centre = (p * orig / new) as i64;
        let first = (centre - width - 1).max(-width);
        let last = (centre + width + 2).min(width + orig as i64);
        let scale = base / orig as f64;
        let mut start = first;
        let mut taps = Vec::new();
        for i in first..last {
            let t = (shift + i as f64 / orig as f64) * base;
            if t.abs() >= LOWPASS_WIDTH {
                if taps.is_empty() {
                    start = i + 1;
                }
                continue;
            }
            let window = (t * PI / LOWPASS_WIDTH / 2.0).cos().powi(2);
            let sinc = if t == 0.0 {
                1.0
            } else {
                (t * PI).sin() / (t * PI)
            };
            taps.push((sinc * window * scale) as f32);
        }
        Phase { start, taps }
    }

    fn output_len(&self, len: usize) -> usize {
        // The official code rounds the quotient to f32 before the ceiling, and cannot give more than whole periods.
        let quotient = (self.new as f64 * len as f64 / self.orig as f64) as f32;
        (quotient.ceil() as usize).min((len / self.orig + 1) * self.new)
    }

    fn output(&self, x: &[f32], n: usize) -> f32 {
        let phase = &self.phases[n % self.new];
        let start = (n / self.new * self.orig) as i64 + phase.start;
        let skip = (-start).clamp(0, phase.taps.len() as i64) as usize;
        let from = (start + skip as i64) as usize;
        let inputs = x.get(from..).unwrap_or_default();
        let sum: f64 = phase.taps[skip..]
            .iter()
            .zip(inputs)
            .map(|(&w, &v)| f64::from(w) * f64::from(v))
            .sum();
        sum as f32
    }
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_keeps_its_frequency_and_level() {
        for (from, to) in [(48_000, 24_000), (16_000, 24_000), (44_100, 16_000)] {
            let tone = |rate: u32, n: usize| (2.0 * PI * 1000.0 * n as f64 / f64::from(rate)).sin();
            let x: Vec<f32> = (0..from as usize / 10)
                .map(|n| tone(from, n) as f32)
                .collect();
            let y = resample(&x, from, to);
            assert_eq!(y.len(), to as usize / 10);
            let edge = y.len() / 10;
            for (n, &v) in y.iter().enumerate().take(y.len() - edge).skip(edge) {
                assert!((f64::from(v) - tone(to, n)).abs() < 0.01, "{from} to {to}");
            }
        }
    }

    #[test]
    fn rates_without_a_common_factor_need_little_memory() {
        let kernel = Kernel::new(47_999, 24_000);
        let taps: usize = kernel.phases.iter().map(|p| p.taps.len()).sum();
        assert!(taps < 24_000 * 30, "{taps} taps");
        assert_eq!(resample(&[0.5; 4800], 47_999, 24_000).len(), 2401);
    }

    #[test]
    fn short_inputs_work() {
        assert!(resample(&[], 48_000, 16_000).is_empty());
        assert_eq!(resample(&[1.0], 48_000, 16_000).len(), 1);
        assert_eq!(resample(&[1.0], 16_000, 48_000).len(), 3);
    }
}
