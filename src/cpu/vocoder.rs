//! The ends of the vocoder.

use super::reference::vocoder as reference;
use super::{Cpu, check_shape};
use crate::backend::philox::source_normals;
use crate::backend::{Result, SineSource, SourceNoise, Vocoder};
use crate::tensor::{Segments, Tensor};

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
            let samples = frames.start * up..frames.end * up;
            let draw = |i: usize, h: usize| match &noise {
                SourceNoise::Given(noise) => noise.row(samples.start + i)[h],
                SourceNoise::Philox {
                    seeds,
                    first_samples,
                } => source_normals(seeds[s], first_samples[s] + i as u64, (h / 4) as u32)[h % 4],
            };
            reference::sine_source(
                &f0.data()[frames],
                params,
                draw,
                w.data(),
                b.data()[0],
                &mut out.data_mut()[samples.clone()],
            );
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
        let cols = n_fft + 2;
        check_shape!("stft", s.shape(), (segments.total(), 1));
        check_shape!("stft", out.shape(), (out_segments.total(), cols));
        for b in 0..segments.count() {
            let (from, to) = (segments.range(b), out_segments.range(b));
            check_shape!("stft", to.len(), from.len() / hop + 1);
            assert!(
                from.len() > n_fft / 2,
                "stft: {} samples, n_fft {n_fft}",
                from.len()
            );
            let out = &mut out.data_mut()[to.start * cols..to.end * cols];
            reference::stft(&s.data()[from], n_fft, hop, out);
        }
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
        let cols = n_fft + 2;
        check_shape!("istft_head", h.shape(), (segments.total(), cols));
        check_shape!("istft_head", out.shape(), (out_segments.total(), 1));
        for b in 0..segments.count() {
            let (from, to) = (segments.range(b), out_segments.range(b));
            check_shape!("istft_head", to.len(), from.len().saturating_sub(1) * hop);
            if to.is_empty() {
                continue;
            }
            let h = &h.data()[from.start * cols..from.end * cols];
            reference::istft_head(h, n_fft, hop, limit, &mut out.data_mut()[to]);
        }
        Ok(())
    }
}
