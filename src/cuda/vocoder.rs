//! The ends of the vocoder on the device, f32 throughout. Kernels: `kernels/vocoder.cu`.

use std::sync::{Mutex, PoisonError};

use super::Cuda;
use super::abi;
use super::buffer::{Bytes, Dtype, NO_MAT};
use super::launch::{Kernel, Shape};
use crate::backend::{Result, SineSource, SourceNoise, Vocoder, check_shape};
use crate::tensor::{Segments, Tensor};

const SOURCE_PHASES: Kernel = Kernel::new("vocoder", "source_phases");
const SINE_SOURCE: Kernel = Kernel::new("vocoder", "sine_source");
const STFT: Kernel = Kernel::new("vocoder", "stft");
const ISTFT_HEAD: Kernel = Kernel::new("vocoder", "istft_head");

const THREADS: u32 = 256;
/// Values of shared memory that a block of the transforms may use: 48 KiB.
const SHARED_VALUES: usize = 12 << 10;
/// Most output rows of a block: frames of the transform, samples of its inverse.
const FRAMES: usize = 64;
const SAMPLES: usize = 512;

impl Vocoder for Cuda {
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
        check_shape!("sine_source", f0.dtype(), Dtype::F32);
        check_shape!("sine_source", out.shape(), (f0.rows() * up, 1));
        check_shape!("sine_source", w.shape(), (1, harmonics));
        check_shape!("sine_source", b.shape(), (1, 1));
        let mut held = (self.source.held.lock()).unwrap_or_else(PoisonError::into_inner);
        let held = &mut *held;
        let phases = &mut held.phases;
        self.grow(phases, f0.rows() * harmonics * size_of::<f32>(), "phases")?;
        let phases = phases.address();
        let sums = abi::SourcePhasesParams {
            f0: f0.mat(),
            offsets: segments.device().address(),
            phases,
            harmonics: harmonics as i32,
            upsample: up as f32,
            sample_rate_hz: params.sample_rate_hz,
            reserved: 0,
        };
        let given = self.stage_noise(held, &noise, segments, (out.rows(), harmonics))?;
        let samples = abi::SineSourceParams {
            f0: f0.mat(),
            noise: given,
            w: w.mat(),
            b: b.mat(),
            out: out.mat(),
            offsets: segments.device().address(),
            phases,
            seeds: held.seeds.address(),
            first_samples: held.first_samples.address(),
            upsample: up as i32,
            harmonics: harmonics as i32,
            frames_per_sample: (1.0 / up as f64) as f32,
            sine_amp: params.sine_amp,
            noise_std: params.noise_std,
            voiced_threshold_hz: params.voiced_threshold_hz,
        };
        let blocks = (segments.longest() * up).div_ceil(THREADS as usize);
        let shape = Shape::grid([blocks, segments.count(), 1], THREADS);
        // SAFETY: shapes checked above; the memory held here is freed in the stream's order.
        unsafe {
            self.launcher.launch(
                SOURCE_PHASES,
                Shape::blocks(segments.count(), THREADS),
                &sums,
            )?;
            self.launcher.launch(SINE_SOURCE, shape, &samples)
        }
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
        check_shape!("stft", s.shape(), (segments.total(), 1));
        check_shape!("stft", out.shape(), (out_segments.total(), n_fft + 2));
        check_shape!("stft", segments.count(), out_segments.count());
        for (from, to) in segments.lengths().zip(out_segments.lengths()) {
            check_shape!("stft", to, from / hop + 1);
            assert!(from > n_fft / 2, "stft: {from} samples, n_fft {n_fft}");
        }
        let room = SHARED_VALUES.saturating_sub(4 * n_fft) / hop + 1;
        let rows = room.min(FRAMES);
        let shared = 4 * n_fft + (rows - 1) * hop;
        self.transform(
            STFT,
            (s, segments),
            (out, out_segments),
            (n_fft, hop),
            (rows, shared),
            0.0,
        )
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
        check_shape!("istft_head", h.shape(), (segments.total(), n_fft + 2));
        check_shape!("istft_head", out.shape(), (out_segments.total(), 1));
        check_shape!("istft_head", segments.count(), out_segments.count());
        for (from, to) in segments.lengths().zip(out_segments.lengths()) {
            check_shape!("istft_head", to, from.saturating_sub(1) * hop);
        }
        let shared = |rows: usize| 3 * n_fft + ((rows + n_fft) / hop + 2) * (n_fft + 2);
        let mut rows = SAMPLES;
        while rows > hop && shared(rows) > SHARED_VALUES {
            rows /= 2;
        }
        let block = (rows, shared(rows));
        self.transform(
            ISTFT_HEAD,
            (h, segments),
            (out, out_segments),
            (n_fft, hop),
            block,
            limit,
        )
    }
}

/// Memory that making the source keeps; it grows once.
#[derive(Default)]
pub(super) struct SourceMemory {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    phases: Bytes,
    /// Where each sequence's noise comes from.
    seeds: Bytes,
    first_samples: Bytes,
}

impl Cuda {
    /// Sends the noise's seeds to the device; returns the noise where it is given.
    fn stage_noise(
        &self,
        held: &mut Held,
        noise: &SourceNoise<'_, Self>,
        segments: &Segments<Self>,
        shape: (usize, usize),
    ) -> Result<abi::Mat> {
        match noise {
            SourceNoise::Given(values) => {
                check_shape!("sine_source", values.shape(), shape);
                Ok(values.mat())
            }
            SourceNoise::Philox {
                seeds,
                first_samples,
            } => {
                check_shape!("sine_source", seeds.len(), segments.count());
                check_shape!("sine_source", first_samples.len(), segments.count());
                self.stage(&mut held.seeds, seeds)?;
                self.stage(&mut held.first_samples, first_samples)?;
                Ok(NO_MAT)
            }
        }
    }

    fn stage(&self, bytes: &mut Bytes, values: &[u64]) -> Result<()> {
        self.grow(bytes, size_of_val(values), "seeds")?;
        // SAFETY: `bytes` has just been made large enough.
        unsafe { self.to_device(bytemuck::cast_slice(values), bytes.address()) }
    }

    /// Launches a transform whose blocks make `rows` output rows of a segment each, with `shared` values of shared memory.
    fn transform(
        &self,
        kernel: Kernel,
        (x, segments): (&Tensor<Self>, &Segments<Self>),
        (out, out_segments): (&mut Tensor<Self>, &Segments<Self>),
        (n_fft, hop): (usize, usize),
        (rows, shared): (usize, usize),
        limit: f32,
    ) -> Result<()> {
        let params = abi::SpectrumParams {
            x: x.mat(),
            out: out.mat(),
            offsets: segments.device().address(),
            out_offsets: out_segments.device().address(),
            n_fft: n_fft as i32,
            hop: hop as i32,
            block_rows: rows as i32,
            limit,
        };
        let blocks = out_segments.longest().div_ceil(rows);
        let shape = Shape::grid([blocks, segments.count(), 1], THREADS);
        // SAFETY: shapes checked by the callers.
        unsafe {
            self.launcher
                .launch(kernel, shape.shared(shared * size_of::<f32>()), &params)
        }
    }
}
