//! The generator: mel and source in, waveform out, over a ragged batch.
//!
//! Each stage upsamples the mel branch by a transposed convolution, adds the source's spectrum brought to the same rate, and runs residual blocks of several
//! kernel sizes whose results are averaged. In: `mel [N, mels]`, `source [Σ samples, 1]`. Out: `wave [Σ samples, 1]`.
//! Reference: `HiFTGenerator.decode` (`cosyvoice/hifigan/generator.py`).

use super::resblock::ResBlock;
use crate::backend::{Act, Backend, ConvGeom, Epilogue, Fidelity, Result};
use crate::checkpoint::Scope;
use crate::model::config::HiftConfig;
use crate::tensor::{Ids, Segments, Tensor, Trace};

/// Kernel of the first and last convolutions.
const OUTER_KERNEL: usize = 7;
/// Slope before the last convolution: PyTorch's default, not the one of the configuration.
const LAST_SLOPE: f32 = 0.01;

pub(super) struct Generator<B: Backend> {
    pre: B::Conv1d,
    stages: Vec<Stage<B>>,
    post: B::Conv1d,
    base_channels: usize,
    slope: f32,
    n_fft: usize,
    hop: usize,
    limit: f32,
}

struct Stage<B: Backend> {
    up: B::ConvT1d,
    rate: usize,
    down: B::Conv1d,
    down_geom: ConvGeom,
    down_kernel: usize,
    source_block: ResBlock<B>,
    blocks: Vec<ResBlock<B>>,
    channels: usize,
}

/// What the generator reads.
pub(super) struct Input<'a, B: Backend> {
    pub(super) mel: &'a Tensor<B>,
    pub(super) frames: &'a Segments<B>,
    pub(super) source: &'a Tensor<B>,
    pub(super) samples: &'a Segments<B>,
}

/// Activations, reused by all stages.
pub(super) struct Scratch<B: Backend> {
    spectrum: Tensor<B>,
    spectrum_rows: Segments<B>,
    /// Rows of `x`.
    rows: Segments<B>,
    /// Rows of `fused`, and of the upsampled mel branch: the same but in the last stage.
    fused_rows: Segments<B>,
    up_rows: Segments<B>,
    mirror: Ids<B>,
    x: Tensor<B>,
    fused: Tensor<B>,
    t: Tensor<B>,
    block: Tensor<B>,
    /// Log magnitudes and phases of the waveform.
    head: Tensor<B>,
}

impl<B: Backend> Scratch<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        let empty = || backend.alloc_signal(0, 0);
        Ok(Self {
            spectrum: empty()?,
            spectrum_rows: Segments::new(backend, &[])?,
            rows: Segments::new(backend, &[])?,
            fused_rows: Segments::new(backend, &[])?,
            up_rows: Segments::new(backend, &[])?,
            mirror: backend.ids(&[])?,
            x: empty()?,
            fused: empty()?,
            t: empty()?,
            block: empty()?,
            head: backend.alloc_f32(0, 0)?,
        })
    }
}

impl<B: Backend> Generator<B> {
    pub(super) fn load(backend: &B, scope: &Scope<'_>, config: &HiftConfig) -> Result<Self> {
        let bins = config.istft_n_fft + 2;
        let base = config.base_channels;
        let conv = |name: &str, out: usize, input: usize| {
            let conv = scope.at(name);
            let w = conv.weight_norm(&[out, input, OUTER_KERNEL]);
            backend.pack_conv1d(&w, Some(&conv.weight("bias", &[out])), 1, Fidelity::Signal)
        };
        let stages = (0..config.upsample_rates.len())
            .map(|i| Stage::load(backend, scope, config, i))
            .collect::<Result<Vec<_>>>()?;
        let last = stages.last().map_or(base, |s| s.channels);
        Ok(Self {
            pre: conv("conv_pre", base, config.in_channels)?,
            stages,
            post: conv("conv_post", bins, last)?,
            base_channels: base,
            slope: config.lrelu_slope,
            n_fft: config.istft_n_fft,
            hop: config.istft_hop_len,
            limit: config.audio_limit,
        })
    }

    pub(super) fn run(
        &self,
        backend: &B,
        input: Input<'_, B>,
        s: &mut Scratch<B>,
        wave: &mut Tensor<B>,
        trace: &Trace,
    ) -> Result<()> {
        let rows: Vec<usize> = input.samples.lengths().map(|n| n / self.hop + 1).collect();
        s.spectrum_rows.update(backend, &rows)?;
        let bins = self.n_fft + 2;
        backend.resize(&mut s.spectrum, s.spectrum_rows.total(), bins)?;
        let (n_fft, hop) = (self.n_fft, self.hop);
        let (out, out_rows) = (&mut s.spectrum, &s.spectrum_rows);
        backend.stft(input.source, input.samples, n_fft, hop, out, out_rows)?;
        trace.record(backend, "hift.stft", &s.spectrum)?;

        let outer = ConvGeom::same(OUTER_KERNEL, 1);
        let frames: Vec<usize> = input.frames.lengths().collect();
        s.rows.update(backend, &frames)?;
        backend.resize(&mut s.x, input.mel.rows(), self.base_channels)?;
        backend.conv1d(
            input.mel,
            input.frames,
            &self.pre,
            outer,
            None,
            Epilogue::None,
            &mut s.x,
            &s.rows,
        )?;
        trace.record(backend, "hift.conv_pre", &s.x)?;
        for (i, stage) in self.stages.iter().enumerate() {
            let last = i + 1 == self.stages.len();
            stage.fuse(backend, self.slope, last, s, i, trace)?;
            stage.blend(backend, s, i * stage.blocks.len(), trace)?;
        }
        backend.resize(&mut s.head, s.rows.total(), bins)?;
        let pre = Some(Act::LeakyRelu(LAST_SLOPE));
        let (ep, out) = (Epilogue::None, &mut s.head);
        backend.conv1d(&s.x, &s.rows, &self.post, outer, pre, ep, out, &s.rows)?;
        trace.record(backend, "hift.conv_post", &s.head)?;
        backend.resize(wave, input.samples.total(), 1)?;
        backend.istft_head(
            &s.head,
            &s.rows,
            n_fft,
            hop,
            self.limit,
            wave,
            input.samples,
        )
    }
}

impl<B: Backend> Stage<B> {
    fn load(backend: &B, scope: &Scope<'_>, config: &HiftConfig, i: usize) -> Result<Self> {
        let (rate, kernel) = (config.upsample_rates[i], config.upsample_kernel_sizes[i]);
        if kernel < rate || (kernel - rate) % 2 != 0 {
            let expected = format!("{rate} plus an even number");
            scope.complain(format!("upsample_kernel_sizes.{i}"), expected, kernel);
        }
        let (input, channels) = (config.base_channels >> i, config.base_channels >> (i + 1));
        let up = scope.at("ups").at(i);
        let w = up.weight_norm(&[input, channels, kernel]);
        let bias = up.weight("bias", &[channels]);
        let padding = kernel.saturating_sub(rate) / 2;
        // The source's spectrum has the last stage's rate; it comes down by all rates that follow this stage.
        let stride: usize = config.upsample_rates[i + 1..].iter().product();
        let (down_kernel, pad) = if stride == 1 {
            (1, 0)
        } else {
            (2 * stride, stride / 2)
        };
        let down = scope.at("source_downs").at(i);
        let down_w = down.weight("weight", &[channels, config.istft_n_fft + 2, down_kernel]);
        let down_bias = down.weight("bias", &[channels]);
        let kernels = config.resblock_kernel_sizes.len();
        let blocks = (0..kernels).map(|j| {
            let scope = scope.at("resblocks").at(i * kernels + j);
            let kernel = config.resblock_kernel_sizes[j];
            let dilations = &config.resblock_dilation_sizes[j];
            ResBlock::load(backend, &scope, channels, kernel, dilations)
        });
        Ok(Self {
            up: backend.pack_conv_transpose1d(&w, Some(&bias), rate, padding)?,
            rate,
            down: backend.pack_conv1d(&down_w, Some(&down_bias), 1, Fidelity::Signal)?,
            down_geom: ConvGeom {
                left: pad,
                right: pad,
                stride,
                ..ConvGeom::same(1, 1)
            },
            down_kernel,
            source_block: ResBlock::load(
                backend,
                &scope.at("source_resblocks").at(i),
                channels,
                config.source_resblock_kernel_sizes[i],
                &config.source_resblock_dilation_sizes[i],
            )?,
            blocks: blocks.collect::<Result<_>>()?,
            channels,
        })
    }

    /// Source branch at this stage's rate, plus the upsampled mel branch: `s.fused`.
    fn fuse(
        &self,
        backend: &B,
        slope: f32,
        last: bool,
        s: &mut Scratch<B>,
        stage: usize,
        trace: &Trace,
    ) -> Result<()> {
        let down: Vec<usize> = s
            .spectrum_rows
            .lengths()
            .map(|n| self.down_geom.output_rows(n, self.down_kernel))
            .collect();
        let up: Vec<usize> = s.rows.lengths().map(|n| n * self.rate).collect();
        s.up_rows.update(backend, &up)?;
        s.fused_rows.update(backend, &down)?;
        backend.resize(&mut s.fused, s.fused_rows.total(), self.channels)?;
        let (geom, ep) = (self.down_geom, Epilogue::None);
        let (spectrum, rows) = (&s.spectrum, &s.spectrum_rows);
        let (fused, fused_rows) = (&mut s.fused, &s.fused_rows);
        backend.conv1d(
            spectrum, rows, &self.down, geom, None, ep, fused, fused_rows,
        )?;
        trace_stage(trace, backend, "source_downs", stage, fused)?;
        self.source_block
            .run_in_place(backend, fused_rows, &mut s.t, fused)?;
        trace_stage(trace, backend, "source_resblocks", stage, fused)?;

        let pre = Some(Act::LeakyRelu(slope));
        let (x, rows, w) = (&s.x, &s.rows, &self.up);
        if last {
            backend.resize(&mut s.t, s.up_rows.total(), self.channels)?;
            let (ep, out) = (Epilogue::None, &mut s.t);
            backend.conv_transpose1d(x, rows, w, pre, ep, out, &s.up_rows)?;
            backend.upload_ids(&mirrored_starts(s.up_rows.offsets()), &mut s.mirror)?;
            backend.resize(&mut s.block, fused_rows.total(), self.channels)?;
            backend.gather_rows(&s.t, &s.mirror, &mut s.block)?;
            backend.axpby(1.0, &s.block, 1.0, fused)?;
        } else {
            let ep = Epilogue::Accumulate;
            backend.conv_transpose1d(x, rows, w, pre, ep, fused, &s.up_rows)?;
        }
        std::mem::swap(&mut s.rows, &mut s.fused_rows);
        trace_stage(trace, backend, "fused", stage, fused)
    }

    /// Mean of the residual blocks over `s.fused`: `s.x`.
    fn blend(&self, backend: &B, s: &mut Scratch<B>, first: usize, trace: &Trace) -> Result<()> {
        let count = self.blocks.len();
        for (j, block) in self.blocks.iter().enumerate() {
            let out = if j == 0 { &mut s.x } else { &mut s.block };
            block.run(backend, &s.fused, &s.rows, &mut s.t, out)?;
            trace_stage(trace, backend, "resblocks", first + j, out)?;
            if j > 0 {
                let scale = if j + 1 == count {
                    1.0 / count as f32
                } else {
                    1.0
                };
                backend.axpby(scale, &s.block, scale, &mut s.x)?;
            }
        }
        Ok(())
    }
}

/// Rows of sequences at `offsets`, each with its second row set before its first (`torch.nn.ReflectionPad1d((1, 0))`).
fn mirrored_starts(offsets: &[usize]) -> Vec<i32> {
    let mut rows = Vec::new();
    for w in offsets.windows(2) {
        let (start, end) = (w[0] as i32, w[1] as i32);
        if start < end {
            rows.push((start + 1).min(end - 1));
        }
        rows.extend(start..end);
    }
    rows
}

fn trace_stage<B: Backend>(
    trace: &Trace,
    backend: &B,
    name: &str,
    i: usize,
    x: &Tensor<B>,
) -> Result<()> {
    if trace.is_on() {
        trace.record(backend, &format!("hift.{name}.{i}"), x)?;
    }
    Ok(())
}
