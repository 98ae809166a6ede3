//! Power spectra of windowed frames.

use std::f64::consts::PI;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// One real FFT with its buffers.
pub(super) struct PowerSpectrum {
    fft: Arc<dyn RealToComplex<f64>>,
    spectrum: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
}

impl PowerSpectrum {
    pub(super) fn new(size: usize) -> Self {
        let fft = RealFftPlanner::new().plan_fft_forward(size);
        Self {
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            fft,
        }
    }

    /// `|FFT(frame)|²`: `size / 2 + 1` bins. The frame is used as scratch.
    pub(super) fn of(&mut self, frame: &mut [f64], power: &mut [f64]) {
        self.fft
            .process_with_scratch(frame, &mut self.spectrum, &mut self.scratch)
            .expect("the buffers have the sizes of the plan. This is a bug.");
        for (p, c) in power.iter_mut().zip(&self.spectrum) {
            *p = c.norm_sqr();
        }
    }
}

/// `torch.hann_window(size)` (periodic), centred in `padded` samples as `torch.stft` does.
pub(super) fn hann_periodic(size: usize, padded: usize) -> Vec<f64> {
    let mut window = vec![0.0; padded];
    let left = padded.saturating_sub(size) / 2;
    for (n, w) in window[left..].iter_mut().take(size).enumerate() {
        *w = 0.5 - 0.5 * (2.0 * PI * n as f64 / size as f64).cos();
    }
    window
}

/// Sample `i` of `x` mirrored at both ends without repeating them; `|i|` beyond the ends is less than `x.len()`.
pub(super) fn reflected(x: &[f32], i: isize) -> f64 {
    let last = x.len() as isize - 1;
    let i = i.abs();
    let i = if i > last { 2 * last - i } else { i };
    f64::from(x[i as usize])
}
