//! The velocity network of the flow: `CausalConditionalDecoder` of the reference (`flow/decoder.py`, over Matcha-TTS'
//! `models/components/{decoder,transformer}.py`), for one resolution level, as every CosyVoice2 checkpoint has.
//!
//! In: `[2N, 4C]` rows (conditional, then unconditional) and the Euler step of every sequence. Out: velocities `[2N, C]`.
//! The Euler steps of all utterances stand on one fixed schedule, so what the network makes of the time is
//! tabulated per step when the weights are loaded; sequences at different steps share every launch.

use super::layers::{LayerNorm, conv1d, linear, pointwise};
use super::prefix::Carry;
use crate::backend::{Act, Backend, ConvGeom, Epilogue, Masks, Result};
use crate::checkpoint::Scope;
use crate::model::config::EstimatorConfig;
use crate::tensor::{Ids, Segments, Tensor, Trace};

/// Epsilon of every norm here (PyTorch's default).
const EPS: f32 = 1e-5;
/// Kernel of every convolution but the pointwise ones.
const KERNEL: usize = 3;
/// Rows that the longest chain of convolutions between two attention layers looks back at: three in a row.
pub(super) const HALO: usize = 3 * (KERNEL - 1);
/// Hidden channels of the time and feed-forward layers, in channels.
const EXPANSION: usize = 4;
/// Factor on `t` before its sinusoids.
const TIME_SCALE: f32 = 1000.0;

/// `CausalBlock1D`: convolution, norm, Mish.
struct ConvBlock<B: Backend> {
    channels: usize,
    conv: B::Conv1d,
    norm: LayerNorm<B>,
}

/// `CausalResnetBlock1D`.
struct Resnet<B: Backend> {
    block1: ConvBlock<B>,
    block2: ConvBlock<B>,
    residual: B::Linear,
    /// What is added after the first block at each Euler step, `[S, C]`.
    time: Tensor<B>,
}

/// `BasicTransformerBlock`: self-attention and GELU feed-forward, norm first.
struct Transformer<B: Backend> {
    /// Channels of all heads.
    inner: usize,
    norm1: LayerNorm<B>,
    qkv: B::Linear,
    output: B::Linear,
    norm3: LayerNorm<B>,
    up: B::Linear,
    down: B::Linear,
}

/// A residual block and the transformer blocks behind it.
struct Stage<B: Backend> {
    resnet: Resnet<B>,
    transformers: Vec<Transformer<B>>,
    /// Name in the checkpoint.
    name: String,
}

/// The velocity network.
pub(super) struct Estimator<B: Backend> {
    channels: usize,
    heads: usize,
    down: Stage<B>,
    down_conv: B::Conv1d,
    mid: Vec<Stage<B>>,
    up: Stage<B>,
    up_conv: B::Conv1d,
    final_block: ConvBlock<B>,
    final_proj: B::Linear,
    /// Time embedding of each Euler step, `[S, 4C]`.
    time: Tensor<B>,
}

/// Buffers of a stage.
struct Scratch<B: Backend> {
    /// Row buffers `[2N, C]`.
    y: Tensor<B>,
    z: Tensor<B>,
    /// `[2N, 4C]`
    wide: Tensor<B>,
    /// `[2N, 3 · H·Dh]`
    qkv: Tensor<B>,
    /// `[2N, H·Dh]`
    attended: Tensor<B>,
    /// Time rows of the sequences `[2B, ·]`.
    time: Tensor<B>,
    /// Rows with all those before them that attention sees.
    keys: Tensor<B>,
    spare: Tensor<B>,
}

/// Buffers of a forward pass.
pub(super) struct EstimatorWorkspace<B: Backend> {
    /// Row buffers `[2N, C]`.
    x: Tensor<B>,
    next: Tensor<B>,
    skip: Tensor<B>,
    /// `[2N, 2C]`
    joined: Tensor<B>,
    /// Rows with those before them that convolutions look back at.
    halo: Tensor<B>,
    scratch: Scratch<B>,
}

impl<B: Backend> EstimatorWorkspace<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        let empty = || backend.alloc(0, 0);
        Ok(Self {
            x: empty()?,
            next: empty()?,
            skip: empty()?,
            joined: empty()?,
            halo: empty()?,
            scratch: Scratch {
                y: empty()?,
                z: empty()?,
                wide: empty()?,
                qkv: empty()?,
                attended: empty()?,
                time: empty()?,
                keys: empty()?,
                spare: empty()?,
            },
        })
    }
}

/// Where the sequences of a call are and what they attend to: `2B` entries, conditional ones first.
pub(super) struct Batch<'a, B: Backend> {
    pub(super) segments: &'a Segments<B>,
    pub(super) masks: &'a Masks<B>,
    /// Euler step of each sequence, `[2B]`.
    pub(super) steps: &'a Ids<B>,
    /// What earlier calls have left, when any sequence has or wants that.
    pub(super) carry: Option<Carry<'a, B>>,
}

impl<B: Backend> Batch<'_, B> {
    /// Rows of convolution inputs.
    fn halo(&self) -> &Segments<B> {
        self.carry.as_ref().map_or(self.segments, |c| &c.halo)
    }

    /// Rows that attention sees.
    fn keys(&self) -> &Segments<B> {
        self.carry.as_ref().map_or(self.segments, |c| &c.keys)
    }

    /// `x [2N, C]` with the rows that convolutions look back at.
    fn with_halo<'t>(
        &mut self,
        backend: &B,
        x: &'t Tensor<B>,
        buffer: &'t mut Tensor<B>,
    ) -> Result<&'t Tensor<B>> {
        let Some(carry) = &mut self.carry else {
            return Ok(x);
        };
        carry.extend_halo(backend, x, self.segments, buffer)?;
        Ok(buffer)
    }

    /// Takes those rows away again.
    fn without_halo(&self, backend: &B, x: &mut Tensor<B>, spare: &mut Tensor<B>) -> Result<()> {
        match &self.carry {
            Some(carry) => carry.drop_halo(backend, self.segments, x, spare),
            None => Ok(()),
        }
    }

    /// `x [2N, C]` with all rows before it.
    fn with_keys<'t>(
        &mut self,
        backend: &B,
        x: &'t Tensor<B>,
        buffer: &'t mut Tensor<B>,
    ) -> Result<&'t Tensor<B>> {
        let Some(carry) = &mut self.carry else {
            return Ok(x);
        };
        carry.extend_keys(backend, x, self.segments, buffer)?;
        Ok(buffer)
    }
}

/// Where intermediates are recorded: under a prefix, or nowhere.
pub(super) struct Tracer<'a> {
    pub(super) trace: &'a Trace,
    pub(super) prefix: &'a str,
}

impl Tracer<'_> {
    pub(super) fn record<B: Backend>(
        &self,
        backend: &B,
        name: &str,
        tensor: &Tensor<B>,
    ) -> Result<()> {
        if self.trace.is_on() {
            let name = format!("{}.{name}", self.prefix);
            self.trace.record(backend, &name, tensor)?;
        }
        Ok(())
    }
}

impl<B: Backend> Estimator<B> {
    /// `times` are the values of `t` at which the network is evaluated, one per Euler step.
    pub(super) fn load(
        backend: &B,
        scope: &Scope<'_>,
        config: &EstimatorConfig,
        times: &[f32],
    ) -> Result<Self> {
        if config.channels.len() != 1 {
            scope.complain("channels", "one resolution level", config.channels.len());
        }
        let c = config.channels.first().copied().unwrap_or_default();
        let time = time_embedding(backend, &scope.at("time_mlp"), config.in_channels, c, times)?;
        let stage = |name: String, module: &Scope<'_>, input| {
            Stage::load(backend, name, module, config, [input, c], &time)
        };
        let (downs, mids, ups) = (
            scope.at("down_blocks").at(0),
            scope.at("mid_blocks"),
            scope.at("up_blocks").at(0),
        );
        Ok(Self {
            channels: c,
            heads: config.num_heads,
            down: stage("down_blocks.0".to_owned(), &downs, config.in_channels)?,
            down_conv: conv1d(backend, &downs.at(2), c, c, KERNEL)?,
            mid: (0..config.num_mid_blocks)
                .map(|i| stage(format!("mid_blocks.{i}"), &mids.at(i), c))
                .collect::<Result<_>>()?,
            up: stage("up_blocks.0".to_owned(), &ups, 2 * c)?,
            up_conv: conv1d(backend, &ups.at(2), c, c, KERNEL)?,
            final_block: ConvBlock::load(backend, &scope.at("final_block"), c, c)?,
            final_proj: pointwise(backend, &scope.at("final_proj"), c, config.out_channels)?,
            time,
        })
    }

    /// Attention layers.
    pub(super) fn layers(&self) -> usize {
        let stages = [&self.down, &self.up].into_iter().chain(&self.mid);
        stages.map(|s| s.transformers.len()).sum()
    }

    /// Hidden channels.
    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// Velocities `out [2N, C]` for `input [2N, 4C]`.
    pub(super) fn forward(
        &self,
        backend: &B,
        input: &Tensor<B>,
        mut batch: Batch<'_, B>,
        ws: &mut EstimatorWorkspace<B>,
        out: &mut Tensor<B>,
        trace: &Tracer<'_>,
    ) -> Result<()> {
        let (c, heads, batch) = (self.channels, self.heads, &mut batch);
        let EstimatorWorkspace {
            x,
            next,
            skip,
            joined,
            halo,
            scratch: s,
        } = ws;
        if trace.trace.is_on() {
            backend.resize(&mut s.time, batch.segments.count(), self.time.cols())?;
            backend.gather_rows(&self.time, batch.steps, &mut s.time)?;
            trace.record(backend, "time_mlp", &s.time)?;
        }
        let rows = batch.with_halo(backend, input, halo)?;
        self.down.resnet(backend, rows, batch, s, skip, trace)?;
        self.down.transform(backend, heads, batch, s, skip, trace)?;
        // The convolution and the residual block behind it look back as one.
        let rows = batch.with_halo(backend, skip, halo)?;
        conv(backend, &self.down_conv, rows, batch.halo(), c, x)?;
        trace.record(backend, "down_blocks.0.2", x)?;
        if self.mid.is_empty() {
            batch.without_halo(backend, x, &mut s.spare)?;
        }
        for (i, stage) in self.mid.iter().enumerate() {
            let rows = match i {
                0 => &*x,
                _ => batch.with_halo(backend, x, halo)?,
            };
            stage.resnet(backend, rows, batch, s, next, trace)?;
            stage.transform(backend, heads, batch, s, next, trace)?;
            std::mem::swap(x, next);
        }
        backend.resize(joined, x.rows(), 2 * c)?;
        backend.concat_cols(&[x, skip], joined)?;
        let rows = batch.with_halo(backend, joined, halo)?;
        self.up.resnet(backend, rows, batch, s, x, trace)?;
        self.up.transform(backend, heads, batch, s, x, trace)?;
        let rows = batch.with_halo(backend, x, halo)?;
        conv(backend, &self.up_conv, rows, batch.halo(), c, next)?;
        trace.record(backend, "up_blocks.0.2", next)?;
        self.final_block
            .forward(backend, next, batch.halo(), &mut s.y, x)?;
        trace.record(backend, "final_block", x)?;
        batch.without_halo(backend, x, &mut s.spare)?;
        backend.linear(x, &self.final_proj, Epilogue::None, out)?;
        trace.record(backend, "final_proj", out)
    }
}

/// A causal convolution to `c` channels that keeps the number of rows.
fn conv<B: Backend>(
    backend: &B,
    w: &B::Conv1d,
    x: &Tensor<B>,
    segments: &Segments<B>,
    c: usize,
    out: &mut Tensor<B>,
) -> Result<()> {
    backend.resize(out, x.rows(), c)?;
    let geom = ConvGeom::causal(KERNEL, 1);
    backend.conv1d(x, segments, w, geom, None, Epilogue::None, out, segments)
}

/// Sinusoids and `time_mlp` for every Euler step: `[S, 4C]`.
fn time_embedding<B: Backend>(
    backend: &B,
    scope: &Scope<'_>,
    input: usize,
    channels: usize,
    times: &[f32],
) -> Result<Tensor<B>> {
    let (steps, hidden) = (times.len(), EXPANSION * channels);
    let linear_1 = linear(backend, &scope.at("linear_1"), input, hidden)?;
    let linear_2 = linear(backend, &scope.at("linear_2"), hidden, hidden)?;
    let mut t = backend.alloc_f32(steps, 1)?;
    backend.upload(times, &mut t)?;
    let mut sinusoids = backend.alloc(steps, input)?;
    backend.time_embedding(&t, TIME_SCALE, &mut sinusoids)?;
    let mut h = backend.alloc(steps, hidden)?;
    backend.linear(&sinusoids, &linear_1, Epilogue::Act(Act::Silu), &mut h)?;
    let mut out = backend.alloc(steps, hidden)?;
    backend.linear(&h, &linear_2, Epilogue::None, &mut out)?;
    Ok(out)
}

impl<B: Backend> ConvBlock<B> {
    fn load(backend: &B, scope: &Scope<'_>, input: usize, output: usize) -> Result<Self> {
        let block = scope.at("block");
        Ok(Self {
            channels: output,
            conv: conv1d(backend, &block.at(0), input, output, KERNEL)?,
            norm: LayerNorm::load(backend, &block.at(2), output, EPS)?,
        })
    }

    /// `x [2N, Ci]` → `out [2N, Co]`, with `convolved [2N, Co]` in between.
    fn forward(
        &self,
        backend: &B,
        x: &Tensor<B>,
        segments: &Segments<B>,
        convolved: &mut Tensor<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        conv(backend, &self.conv, x, segments, self.channels, convolved)?;
        backend.resize(out, x.rows(), self.channels)?;
        self.norm
            .forward(backend, convolved, 1.0, Some(Act::Mish), out)
    }
}

impl<B: Backend> Resnet<B> {
    fn load(
        backend: &B,
        scope: &Scope<'_>,
        [input, output]: [usize; 2],
        time: &Tensor<B>,
    ) -> Result<Self> {
        let (steps, hidden) = time.shape();
        let projection = linear(backend, &scope.at("mlp").at(1), hidden, output)?;
        let mut activated = backend.alloc(steps, hidden)?;
        backend.copy_rows(time, 0, &mut activated, 0, steps)?;
        backend.activate(Act::Mish, &mut activated)?;
        let mut projected = backend.alloc(steps, output)?;
        backend.linear(&activated, &projection, Epilogue::None, &mut projected)?;
        Ok(Self {
            block1: ConvBlock::load(backend, &scope.at("block1"), input, output)?,
            block2: ConvBlock::load(backend, &scope.at("block2"), output, output)?,
            residual: pointwise(backend, &scope.at("res_conv"), input, output)?,
            time: projected,
        })
    }

    /// `x [·, Ci]` with its halo → `out [2N, Co]` without.
    fn forward(
        &self,
        backend: &B,
        x: &Tensor<B>,
        batch: &Batch<'_, B>,
        s: &mut Scratch<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        let segments = batch.halo();
        self.block1
            .forward(backend, x, segments, &mut s.y, &mut s.z)?;
        backend.resize(&mut s.time, segments.count(), self.time.cols())?;
        backend.gather_rows(&self.time, batch.steps, &mut s.time)?;
        backend.add_segment_rows(&mut s.z, segments, &s.time)?;
        self.block2
            .forward(backend, &s.z, segments, &mut s.y, out)?;
        std::mem::swap(&mut s.z, out);
        backend.resize(out, s.z.rows(), s.z.cols())?;
        backend.linear(x, &self.residual, Epilogue::Add(&s.z), out)?;
        batch.without_halo(backend, out, &mut s.spare)
    }
}

impl<B: Backend> Transformer<B> {
    fn load(backend: &B, scope: &Scope<'_>, config: &EstimatorConfig, c: usize) -> Result<Self> {
        let inner = config.num_heads * config.attention_head_dim;
        let attn = scope.at("attn1");
        let part = |name: &str| attn.at(name).weight("weight", &[inner, c]);
        let (q, k, v) = (part("to_q"), part("to_k"), part("to_v"));
        let net = scope.at("ff").at("net");
        Ok(Self {
            inner,
            norm1: LayerNorm::load(backend, &scope.at("norm1"), c, EPS)?,
            qkv: backend.pack_linears(&[(&q, None), (&k, None), (&v, None)])?,
            output: linear(backend, &attn.at("to_out").at(0), inner, c)?,
            norm3: LayerNorm::load(backend, &scope.at("norm3"), c, EPS)?,
            up: linear(backend, &net.at(0).at("proj"), c, EXPANSION * c)?,
            down: linear(backend, &net.at(2), EXPANSION * c, c)?,
        })
    }

    /// Over `x [2N, C]` in place.
    fn forward(
        &self,
        backend: &B,
        heads: usize,
        batch: &mut Batch<'_, B>,
        s: &mut Scratch<B>,
        x: &mut Tensor<B>,
    ) -> Result<()> {
        let (rows, c) = x.shape();
        let seen = batch.with_keys(backend, x, &mut s.keys)?;
        backend.resize(&mut s.y, seen.rows(), c)?;
        backend.resize(&mut s.qkv, seen.rows(), 3 * self.inner)?;
        backend.resize(&mut s.attended, rows, self.inner)?;
        self.norm1.forward(backend, seen, 1.0, None, &mut s.y)?;
        backend.self_attention(
            (&s.y, &self.qkv),
            &mut s.qkv,
            heads,
            batch.keys(),
            batch.segments,
            None,
            batch.masks,
            &mut s.attended,
        )?;
        backend.linear(&s.attended, &self.output, Epilogue::Accumulate, x)?;
        backend.resize(&mut s.y, rows, c)?;
        backend.resize(&mut s.wide, rows, EXPANSION * c)?;
        self.norm3.forward(backend, x, 1.0, None, &mut s.y)?;
        backend.feed_forward(&s.y, &self.up, Act::Gelu, &self.down, &mut s.wide, x)
    }
}

impl<B: Backend> Stage<B> {
    fn load(
        backend: &B,
        name: String,
        scope: &Scope<'_>,
        config: &EstimatorConfig,
        dims: [usize; 2],
        time: &Tensor<B>,
    ) -> Result<Self> {
        let list = scope.at(1);
        Ok(Self {
            resnet: Resnet::load(backend, &scope.at(0), dims, time)?,
            transformers: (0..config.n_blocks)
                .map(|i| Transformer::load(backend, &list.at(i), config, dims[1]))
                .collect::<Result<_>>()?,
            name,
        })
    }

    /// The residual block: `x [·, Ci]` with its halo → `out [2N, C]`.
    fn resnet(
        &self,
        backend: &B,
        x: &Tensor<B>,
        batch: &Batch<'_, B>,
        scratch: &mut Scratch<B>,
        out: &mut Tensor<B>,
        trace: &Tracer<'_>,
    ) -> Result<()> {
        self.resnet.forward(backend, x, batch, scratch, out)?;
        trace.record(backend, &format!("{}.0", self.name), out)
    }

    /// The transformer blocks, over `x [2N, C]` in place.
    fn transform(
        &self,
        backend: &B,
        heads: usize,
        batch: &mut Batch<'_, B>,
        scratch: &mut Scratch<B>,
        x: &mut Tensor<B>,
        trace: &Tracer<'_>,
    ) -> Result<()> {
        for (i, transformer) in self.transformers.iter().enumerate() {
            transformer.forward(backend, heads, batch, scratch, x)?;
            trace.record(backend, &format!("{}.1.{i}", self.name), x)?;
        }
        Ok(())
    }
}
