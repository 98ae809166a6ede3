//! The velocity network of the flow: `CausalConditionalDecoder` of the reference (`flow/decoder.py`, over Matcha-TTS'
//! `models/components/{decoder,transformer}.py`), for one resolution level, as every CosyVoice2 checkpoint has.
//!
//! In: `[2N, 4C]` rows (conditional, then unconditional) and the Euler step of every sequence. Out: velocities `[2N, C]`.
//! The Euler steps of all utterances stand on one fixed schedule, so what the network makes of the time is
//! tabulated per step when the weights are loaded; sequences at different steps share every launch.

use super::layers::{LayerNorm, conv1d, linear, pointwise};
use crate::backend::{Act, Backend, ConvGeom, Epilogue, Masks, Result};
use crate::checkpoint::Scope;
use crate::model::config::EstimatorConfig;
use crate::tensor::{Ids, Segments, Tensor, Trace};

/// Epsilon of every norm here (PyTorch's default).
const EPS: f32 = 1e-5;
/// Kernel of every convolution but the pointwise ones.
const KERNEL: usize = 3;
/// Hidden channels of the time and feed-forward layers, in channels.
const EXPANSION: usize = 4;
/// Factor on `t` before its sinusoids.
const TIME_SCALE: f32 = 1000.0;

/// `CausalBlock1D`: convolution, norm, Mish.
struct ConvBlock<B: Backend> {
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
    inner: usize,
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
}

/// Buffers of a forward pass.
pub(super) struct EstimatorWorkspace<B: Backend> {
    /// Row buffers `[2N, C]`.
    x: Tensor<B>,
    next: Tensor<B>,
    skip: Tensor<B>,
    /// `[2N, 2C]`
    joined: Tensor<B>,
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
            scratch: Scratch {
                y: empty()?,
                z: empty()?,
                wide: empty()?,
                qkv: empty()?,
                attended: empty()?,
                time: empty()?,
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
            inner: config.num_heads * config.attention_head_dim,
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

    /// Velocities `out [2N, C]` for `input [2N, 4C]`.
    pub(super) fn forward(
        &self,
        backend: &B,
        input: &Tensor<B>,
        batch: &Batch<'_, B>,
        ws: &mut EstimatorWorkspace<B>,
        out: &mut Tensor<B>,
        trace: &Tracer<'_>,
    ) -> Result<()> {
        self.resize(backend, input.rows(), ws)?;
        let EstimatorWorkspace {
            x,
            next,
            skip,
            joined,
            scratch,
        } = ws;
        if trace.trace.is_on() {
            backend.resize(&mut scratch.time, batch.segments.count(), self.time.cols())?;
            backend.gather_rows(&self.time, batch.steps, &mut scratch.time)?;
            trace.record(backend, "time_mlp", &scratch.time)?;
        }
        self.down
            .forward(backend, self.heads, input, batch, scratch, skip, trace)?;
        conv(backend, &self.down_conv, skip, batch, x)?;
        trace.record(backend, "down_blocks.0.2", x)?;
        for stage in &self.mid {
            stage.forward(backend, self.heads, x, batch, scratch, next, trace)?;
            std::mem::swap(x, next);
        }
        backend.concat_cols(&[x, skip], joined)?;
        self.up
            .forward(backend, self.heads, joined, batch, scratch, x, trace)?;
        conv(backend, &self.up_conv, x, batch, next)?;
        trace.record(backend, "up_blocks.0.2", next)?;
        self.final_block
            .forward(backend, next, batch, &mut scratch.y, x)?;
        trace.record(backend, "final_block", x)?;
        backend.linear(x, &self.final_proj, Epilogue::None, out)?;
        trace.record(backend, "final_proj", out)
    }

    fn resize(&self, backend: &B, rows: usize, ws: &mut EstimatorWorkspace<B>) -> Result<()> {
        let (c, s) = (self.channels, &mut ws.scratch);
        for (tensor, cols) in [
            (&mut ws.x, c),
            (&mut ws.next, c),
            (&mut ws.skip, c),
            (&mut ws.joined, 2 * c),
            (&mut s.y, c),
            (&mut s.z, c),
            (&mut s.wide, EXPANSION * c),
            (&mut s.qkv, 3 * self.inner),
            (&mut s.attended, self.inner),
        ] {
            backend.resize(tensor, rows, cols)?;
        }
        Ok(())
    }
}

/// A causal convolution that keeps the number of rows.
fn conv<B: Backend>(
    backend: &B,
    w: &B::Conv1d,
    x: &Tensor<B>,
    batch: &Batch<'_, B>,
    out: &mut Tensor<B>,
) -> Result<()> {
    let geom = ConvGeom::causal(KERNEL, 1);
    let segments = batch.segments;
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
            conv: conv1d(backend, &block.at(0), input, output, KERNEL)?,
            norm: LayerNorm::load(backend, &block.at(2), output, EPS)?,
        })
    }

    /// `x [2N, Ci]` → `out [2N, Co]`, with `convolved [2N, Co]` in between.
    fn forward(
        &self,
        backend: &B,
        x: &Tensor<B>,
        batch: &Batch<'_, B>,
        convolved: &mut Tensor<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        conv(backend, &self.conv, x, batch, convolved)?;
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

    fn forward(
        &self,
        backend: &B,
        x: &Tensor<B>,
        batch: &Batch<'_, B>,
        s: &mut Scratch<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        self.block1.forward(backend, x, batch, &mut s.y, &mut s.z)?;
        backend.resize(&mut s.time, batch.segments.count(), self.time.cols())?;
        backend.gather_rows(&self.time, batch.steps, &mut s.time)?;
        backend.add_segment_rows(&mut s.z, batch.segments, &s.time)?;
        self.block2.forward(backend, &s.z, batch, &mut s.y, out)?;
        std::mem::swap(&mut s.z, out);
        backend.linear(x, &self.residual, Epilogue::Add(&s.z), out)
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
        batch: &Batch<'_, B>,
        s: &mut Scratch<B>,
        x: &mut Tensor<B>,
    ) -> Result<()> {
        self.norm1.forward(backend, x, 1.0, None, &mut s.y)?;
        backend.linear(&s.y, &self.qkv, Epilogue::None, &mut s.qkv)?;
        let (segments, masks) = (batch.segments, batch.masks);
        backend.attention(
            &s.qkv,
            heads,
            segments,
            segments,
            None,
            masks,
            &mut s.attended,
        )?;
        backend.linear(&s.attended, &self.output, Epilogue::Accumulate, x)?;
        self.norm3.forward(backend, x, 1.0, None, &mut s.y)?;
        backend.linear(&s.y, &self.up, Epilogue::Act(Act::Gelu), &mut s.wide)?;
        backend.linear(&s.wide, &self.down, Epilogue::Accumulate, x)
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

    /// `x [2N, Ci]` → `out [2N, C]`.
    #[allow(clippy::too_many_arguments)]
    fn forward(
        &self,
        backend: &B,
        heads: usize,
        x: &Tensor<B>,
        batch: &Batch<'_, B>,
        scratch: &mut Scratch<B>,
        out: &mut Tensor<B>,
        trace: &Tracer<'_>,
    ) -> Result<()> {
        self.resnet.forward(backend, x, batch, scratch, out)?;
        trace.record(backend, &format!("{}.0", self.name), out)?;
        for (i, transformer) in self.transformers.iter().enumerate() {
            transformer.forward(backend, heads, batch, scratch, out)?;
            trace.record(backend, &format!("{}.1.{i}", self.name), out)?;
        }
        Ok(())
    }
}
