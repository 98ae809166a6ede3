//! The ends of the vocoder. Both Fourier transforms are products with small matrices that hold window and scale.

use std::f64::consts::TAU;

use super::gemm::{self, Input, Output, Panels, Row, Span, Stored, WIDTH, Weights};
use super::isa::per_isa;
use super::math::{cos_reduced, exp, ln, sin_cos, sin_of_phase, sin_reduced, tanh};
use super::reference::vocoder::{frame_of, frame_phases, hann};
use super::{Cpu, Isa, Scratch, Store, check_shape};
use crate::backend::philox::{Stream, philox, uniform_and_angle};
use crate::backend::{Result, SineSource, SourceNoise, Vocoder};
use crate::tensor::{Segments, Tensor};

/// Samples that are worked on together.
const SAMPLES: usize = 512;
/// Largest magnitude of a bin.
const MAGNITUDE_LIMIT: f32 = 100.0;

impl Vocoder for Cpu {
    fn sine_source(
        &self,
        f0: &Tensor<Self>,
        segments: &Segments<Self>,
        params: &SineSource,
        noise: SourceNoise<'_, Self>,
        w: &Tensor<Self>,
        b: &Tensor<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let (harmonics, up) = (params.harmonics, params.upsample);
        check_shape!("sine_source", f0.shape(), (segments.total(), 1));
        check_shape!("sine_source", out.shape(), (f0.rows() * up, 1));
        check_shape!("sine_source", w.shape(), (1, harmonics));
        check_shape!("sine_source", b.shape(), (1, 1));
        for s in 0..segments.count() {
            let frames = segments.range(s);
            let first = frames.start * up;
            let f0 = &f0.data()[frames.clone()];
            let phases: Vec<Vec<f32>> = (1..=harmonics)
                .map(|h| frame_phases(f0, h, params))
                .collect();
            let to = &mut out.data_mut()[first..frames.end * up];
            // Rows of `SAMPLES` values would drop the last samples: the pool hands out rows of one.
            self.pool.rows(to, 1, |start, block| {
                for (i, out) in block.chunks_mut(SAMPLES).enumerate() {
                    let start = start + i * SAMPLES;
                    let source = Source {
                        f0,
                        phases: &phases,
                        params,
                        w: w.data(),
                        bias: b.data()[0],
                    };
                    let mut draws = vec![0.0; harmonics * out.len()];
                    match &noise {
                        SourceNoise::Given(noise) => {
                            for i in 0..out.len() {
                                for (h, &v) in noise.row(first + start + i).iter().enumerate() {
                                    draws[h * out.len() + i] = v;
                                }
                            }
                        }
                        SourceNoise::Philox {
                            seeds,
                            first_samples,
                        } => {
                            let position = first_samples[s] + start as u64;
                            draw(self.isa, seeds[s], position, harmonics, &mut draws);
                        }
                    }
                    source.samples(self.isa, start, &draws, out);
                }
            });
        }
        Ok(())
    }

    fn stft(
        &self,
        s: &Tensor<Self>,
        segments: &Segments<Self>,
        n_fft: usize,
        hop: usize,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        let (cols, half) = (n_fft + 2, n_fft / 2);
        check_shape!("stft", s.shape(), (segments.total(), 1));
        check_shape!("stft", out.shape(), (out_segments.total(), cols));
        let mut scratch = self.scratch();
        let padded = &mut scratch.padded;
        padded.grow(segments.total() + segments.count() * 2 * half)?;
        let mut spans = Vec::with_capacity(segments.count());
        for b in 0..segments.count() {
            let (from, to) = (segments.range(b), out_segments.range(b));
            check_shape!("stft", to.len(), from.len() / hop + 1);
            assert!(
                from.len() > half,
                "stft: {} samples, n_fft {n_fft}",
                from.len()
            );
            let first = from.start + b * 2 * half;
            let signal = &s.data()[from];
            let padded = &mut padded.as_mut_slice()[first..first + signal.len() + 2 * half];
            padded[half..half + signal.len()].copy_from_slice(signal);
            for i in 0..half {
                padded[i] = signal[half - i];
                padded[half + signal.len() + i] = signal[signal.len() - 2 - i];
            }
            spans.push(Span {
                input: first,
                rows: to.len(),
                out: to.start,
            });
        }
        let window = hann(n_fft);
        let matrix = small_matrix(cols, n_fft, |column, n| {
            let (bin, imaginary) = (column % (half + 1), column > half);
            let angle = TAU * ((bin * n) % n_fft) as f64 / n_fft as f64;
            f64::from(window[n]) * if imaginary { -angle.sin() } else { angle.cos() }
        })?;
        let input = (padded.as_slice(), hop, n_fft);
        self.small_product(input, &spans, &matrix, cols, out.data_mut());
        Ok(())
    }

    fn istft_head(
        &self,
        h: &Tensor<Self>,
        segments: &Segments<Self>,
        n_fft: usize,
        hop: usize,
        limit: f32,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        let (cols, half) = (n_fft + 2, n_fft / 2);
        let frames = h.rows();
        check_shape!("istft_head", h.shape(), (segments.total(), cols));
        check_shape!("istft_head", out.shape(), (out_segments.total(), 1));
        let mut scratch = self.scratch();
        let Scratch { padded, product } = &mut *scratch;
        padded.grow(frames * cols)?;
        product.grow(frames * n_fft)?;
        let spectrum = &mut padded.as_mut_slice()[..frames * cols];
        self.pool.rows(spectrum, cols, |first, rows| {
            rows.copy_from_slice(&h.data()[first * cols..][..rows.len()]);
            for row in rows.chunks_exact_mut(cols) {
                spectrum_of(self.isa, row);
            }
        });
        let window = hann(n_fft);
        let matrix = small_matrix(n_fft, cols, |n, column| {
            let (bin, imaginary) = (column % (half + 1), column > half);
            let angle = TAU * ((bin * n) % n_fft) as f64 / n_fft as f64;
            let edge = bin == 0 || bin == half;
            // The first and last bin occur once and are real.
            let basis = match (imaginary, edge) {
                (false, true) => angle.cos(),
                (false, false) => 2.0 * angle.cos(),
                (true, true) => 0.0,
                (true, false) => -2.0 * angle.sin(),
            };
            basis * f64::from(window[n]) / n_fft as f64
        })?;
        let span = Span {
            input: 0,
            rows: frames,
            out: 0,
        };
        let waves = &mut product.as_mut_slice()[..frames * n_fft];
        self.small_product((spectrum, cols, cols), &[span], &matrix, n_fft, waves);
        for b in 0..segments.count() {
            let (from, to) = (segments.range(b), out_segments.range(b));
            check_shape!("istft_head", to.len(), from.len().saturating_sub(1) * hop);
            let waves = &waves[from.start * n_fft..from.end * n_fft];
            self.pool.rows(&mut out.data_mut()[to], 1, |first, out| {
                overlap_add(waves, &window, (hop, first), limit, out);
            });
        }
        Ok(())
    }
}

impl Cpu {
    /// `out = x Wᵀ`: rows of `depth` values, `stride` apart.
    fn small_product(
        &self,
        (values, stride, depth): (&[f32], usize, usize),
        spans: &[Span],
        matrix: &Panels,
        columns: usize,
        out: &mut [f32],
    ) {
        let input = Input {
            values,
            row_stride: stride,
            taps: 1,
            tap_stride: 0,
            depth,
        };
        let weights = Weights {
            panels: matrix,
            bias: &vec![0.0; matrix.count * WIDTH],
        };
        let output = Output {
            values: out,
            stride: columns,
            row_step: 1,
            first_column: 0,
            columns,
        };
        gemm::run(
            (&self.pool, self.isa),
            input,
            spans,
            weights,
            Store::Set,
            output,
        );
    }
}

/// Packs `m [rows, cols]`.
fn small_matrix(rows: usize, cols: usize, m: impl Fn(usize, usize) -> f64) -> Result<Panels> {
    Panels::pack(rows.div_ceil(WIDTH), cols, Stored::F32, |row, out| {
        (row < rows).then(|| {
            (out.iter_mut().enumerate()).for_each(|(col, v)| *v = m(row, col) as f32);
            Row::Values
        })
    })
}

per_isa! {
    /// Normals of at most `SAMPLES` samples from `position` on: `out [harmonics, samples]`, as `philox::source_normals` up to rounding.
    fn draw<FMA>(seed: u64, position: u64, harmonics: usize, out: &mut [f32]) {
        let count = out.len() / harmonics;
        let mut words = [[0u32; SAMPLES]; 4];
        for lane in 0..harmonics.div_ceil(4) {
            let [a, b, c, d] = &mut words;
            let of_sample = a[..count].iter_mut().zip(&mut b[..count]).zip(&mut c[..count]).zip(&mut d[..count]);
            for (i, (((a, b), c), d)) in of_sample.enumerate() {
                [*a, *b, *c, *d] = philox(seed, Stream::SourceNoise, position + i as u64, lane as u32);
            }
            for pair in 0..2 {
                let (first, second) = (&words[2 * pair][..count], &words[2 * pair + 1][..count]);
                let mut sines = [0.0; SAMPLES];
                let mut cosines = [0.0; SAMPLES];
                let normals = sines[..count].iter_mut().zip(&mut cosines[..count]);
                for ((sine, cosine), (&a, &b)) in normals.zip(first.iter().zip(second)) {
                    let (u, angle) = uniform_and_angle(a, b);
                    let r = (-2.0 * ln::<FMA>(u)).sqrt();
                    let (sin, cos) = sin_cos::<FMA>(angle);
                    (*sine, *cosine) = (r * sin, r * cos);
                }
                for (h, normals) in (4 * lane + 2 * pair..harmonics).zip([&cosines, &sines]) {
                    out[h * count..(h + 1) * count].copy_from_slice(&normals[..count]);
                }
            }
        }
    }
}

/// What the samples of a sequence are made from.
struct Source<'a> {
    f0: &'a [f32],
    /// Of each harmonic, at the frames.
    phases: &'a [Vec<f32>],
    params: &'a SineSource,
    w: &'a [f32],
    bias: f32,
}

impl Source<'_> {
    /// Samples from `first` on, with `draws [harmonics, samples]`.
    fn samples(&self, isa: Isa, first: usize, draws: &[f32], out: &mut [f32]) {
        let n = out.len();
        let params = self.params;
        let mut phase = [0.0; SAMPLES];
        let mut frame = [(0, 0, 0.0); SAMPLES];
        let mut amplitude = [(0.0, 0.0); SAMPLES];
        for i in 0..n {
            frame[i] = frame_of(first + i, self.f0.len(), params.upsample);
            let voiced = self.f0[(first + i) / params.upsample] > params.voiced_threshold_hz;
            amplitude[i] = match voiced {
                true => (params.sine_amp, params.noise_std),
                false => (0.0, params.sine_amp / 3.0),
            };
        }
        out.fill(self.bias);
        for (h, phases) in self.phases.iter().enumerate() {
            between(isa, phases, &frame[..n], &mut phase[..n]);
            let draws = &draws[h * n..(h + 1) * n];
            add_harmonic(isa, &phase[..n], &amplitude[..n], draws, self.w[h], out);
        }
        squash(isa, out);
    }
}

per_isa! {
    /// Of each sample the value between those of its two frames; fused on every CPU, as on a GPU.
    fn between<FMA>(phases: &[f32], frames: &[(usize, usize, f32)], out: &mut [f32]) {
        for (out, &(low, high, weight)) in out.iter_mut().zip(frames) {
            *out = (1.0 - weight).mul_add(phases[low], weight * phases[high]);
        }
    }
}

per_isa! {
    /// `out += w · (a sin(phase) + b · noise)` with amplitudes `(a, b)`.
    fn add_harmonic<FMA>(phase: &[f32], amplitude: &[(f32, f32)], noise: &[f32], w: f32, out: &mut [f32]) {
        for (((out, &phase), &(sine, noisy)), &noise) in out.iter_mut().zip(phase).zip(amplitude).zip(noise) {
            *out += w * (sine * sin_of_phase::<FMA>(phase) + noisy * noise);
        }
    }
}

per_isa! {
    /// `x = tanh(x)`
    fn squash<FMA>(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = tanh::<FMA>(*x);
        }
    }
}

per_isa! {
    /// Log magnitudes and phase arguments of one frame to real and imaginary parts, in place.
    fn spectrum_of<FMA>(row: &mut [f32]) {
        let bins = row.len() / 2;
        let (a, b) = row.split_at_mut(bins);
        for (a, b) in a.iter_mut().zip(b) {
            let magnitude = exp::<FMA>(*a);
            let magnitude = if magnitude > MAGNITUDE_LIMIT { MAGNITUDE_LIMIT } else { magnitude };
            let phase = sin_of_phase::<FMA>(*b);
            *a = magnitude * cos_reduced::<FMA>(phase);
            *b = magnitude * sin_reduced::<FMA>(phase);
        }
    }
}

/// Samples from `first` on: windowed waves `[T, n_fft]` added up, over the sum of squared windows.
fn overlap_add(
    waves: &[f32],
    window: &[f32],
    (hop, first): (usize, usize),
    limit: f32,
    out: &mut [f32],
) {
    let n_fft = window.len();
    let frames = waves.len() / n_fft;
    for (i, out) in out.iter_mut().enumerate() {
        let at = first + i + n_fft / 2;
        let (mut sum, mut envelope) = (0.0f32, 0.0f32);
        let last = (at / hop).min(frames - 1);
        for frame in (at + 1).saturating_sub(n_fft).div_ceil(hop)..=last {
            let n = at - frame * hop;
            sum += waves[frame * n_fft + n];
            envelope += window[n] * window[n];
        }
        *out = (sum / envelope).clamp(-limit, limit);
    }
}
