//! Harmonic source (`SineGen2` and `SourceModuleHnNSF` of the reference's `hifigan/generator.py`) and the short Fourier transforms of one sequence.

use std::f64::consts::TAU;

use crate::backend::SineSource;

/// Phase of one harmonic at the frames, in radians times `upsample`: the running sum of `frac(h · f0 / rate)`, added up in f64 and
/// rounded to f32 at every frame, then scaled by 2π and by the upsampling factor in f32, as PyTorch's CPU kernels do.
pub fn frame_phases(f0: &[f32], harmonic: usize, params: &SineSource) -> Vec<f32> {
    let mut sum = 0.0f64;
    f0.iter()
        .map(|&f0| {
            let turns = (f0 * harmonic as f32 / params.sample_rate_hz).rem_euclid(1.0);
            sum += f64::from(turns);
            sum as f32 * 2.0 * std::f32::consts::PI * params.upsample as f32
        })
        .collect()
}

/// Where sample `i` lies between the frames: `(frame before, frame after, weight of the one after)`. The position is computed in f32 with a fused
/// multiply-add, as the CPU kernel of `torch.nn.functional.interpolate` does: its rounding moves the phase by far more than an ulp.
pub fn frame_of(i: usize, frames: usize, upsample: usize) -> (usize, usize, f32) {
    let scale = (1.0 / upsample as f64) as f32;
    let position = scale.mul_add(i as f32 + 0.5, -0.5).max(0.0);
    let low = (position as usize).min(frames - 1);
    let high = (low + 1).min(frames - 1);
    (low, high, (position - low as f32).clamp(0.0, 1.0))
}

/// `f0 [T]` and `noise(sample, harmonic)` → `out [T · upsample]`.
pub fn sine_source(
    f0: &[f32],
    params: &SineSource,
    noise: impl Fn(usize, usize) -> f32,
    w: &[f32],
    b: f32,
    out: &mut [f32],
) {
    let phases: Vec<Vec<f32>> = (1..=params.harmonics)
        .map(|h| frame_phases(f0, h, params))
        .collect();
    for (i, out) in out.iter_mut().enumerate() {
        let voiced = f0[i / params.upsample] > params.voiced_threshold_hz;
        let noise_amp = if voiced {
            params.noise_std
        } else {
            params.sine_amp / 3.0
        };
        let (low, high, weight) = frame_of(i, f0.len(), params.upsample);
        let mut sum = f64::from(b);
        for (h, phase) in phases.iter().enumerate() {
            let phase = (1.0 - weight).mul_add(phase[low], weight * phase[high]);
            let sine = f64::from(phase).sin() as f32 * params.sine_amp;
            let value = if voiced { sine } else { 0.0 } + noise_amp * noise(i, h);
            sum += f64::from(value) * f64::from(w[h]);
        }
        *out = sum.tanh() as f32;
    }
}

/// The periodic Hann window, f32.
pub fn hann(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| (0.5 - 0.5 * (TAU * i as f64 / n as f64).cos()) as f32)
        .collect()
}

/// `s [T]` → `out [T / hop + 1, n_fft + 2]`, real parts then imaginary parts; edges mirrored by `n_fft / 2`.
pub fn stft(s: &[f32], n_fft: usize, hop: usize, out: &mut [f32]) {
    let (window, bins) = (hann(n_fft), n_fft / 2 + 1);
    let at = |i: isize| {
        let last = s.len() as isize - 1;
        let i = i.abs();
        s[if i > last { 2 * last - i } else { i } as usize]
    };
    for (frame, out) in out.chunks_exact_mut(2 * bins).enumerate() {
        let first = (frame * hop) as isize - (n_fft / 2) as isize;
        for bin in 0..bins {
            let (mut re, mut im) = (0.0, 0.0);
            for n in 0..n_fft {
                let value = f64::from(at(first + n as isize)) * f64::from(window[n]);
                let angle = TAU * ((bin * n) % n_fft) as f64 / n_fft as f64;
                re += value * angle.cos();
                im -= value * angle.sin();
            }
            out[bin] = re as f32;
            out[bins + bin] = im as f32;
        }
    }
}

/// `h [T, n_fft + 2]` → `out [(T − 1) · hop]`; see [`istft_head`](crate::backend::Vocoder::istft_head).
pub fn istft_head(h: &[f32], n_fft: usize, hop: usize, limit: f32, out: &mut [f32]) {
    let (window, bins) = (hann(n_fft), n_fft / 2 + 1);
    let frames = h.len() / (2 * bins);
    let mut signal = vec![0.0f64; (frames - 1) * hop + n_fft];
    let mut envelope = vec![0.0f64; signal.len()];
    for (frame, h) in h.chunks_exact(2 * bins).enumerate() {
        for n in 0..n_fft {
            let mut value = 0.0;
            for bin in 0..bins {
                let magnitude = f64::from(h[bin]).exp().min(100.0);
                let phase = f64::from(h[bins + bin]).sin();
                let angle = TAU * ((bin * n) % n_fft) as f64 / n_fft as f64;
                let edge = bin == 0 || bin == n_fft / 2;
                let weight = if edge { 1.0 } else { 2.0 };
                value += weight * magnitude * (phase + angle).cos()
                    // The imaginary parts of the first and last bin do not count.
                    + if edge { magnitude * phase.sin() * angle.sin() } else { 0.0 };
            }
            let w = f64::from(window[n]);
            signal[frame * hop + n] += value / n_fft as f64 * w;
            envelope[frame * hop + n] += w * w;
        }
    }
    for (i, out) in out.iter_mut().enumerate() {
        let i = i + n_fft / 2;
        *out = ((signal[i] / envelope[i]) as f32).clamp(-limit, limit);
    }
}
