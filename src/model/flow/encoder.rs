//! Speech tokens at the token rate to hidden rows at the mel rate: `UpsampleConformerEncoder` of the reference
//! (`transformer/upsample_encoder.py`, with `encoder_layer.py`, `attention.py`, `subsampling.py`).
//!
//! In: embedded tokens `[N, I]`, look-ahead included where there is any. Out: `[stride · N', D]`.

use super::layers::{LayerNorm, conv1d, linear};
use super::positions::Positions;
use crate::backend::{Act, Backend, ConvGeom, Epilogue, Mask, Masks, Padding, RelPos, Result};
use crate::checkpoint::Scope;
use crate::model::config::FlowEncoderConfig;
use crate::tensor::{Segments, Tensor, Trace};

/// Slope of the look-ahead layer's leaky ReLU (PyTorch's default).
const LEAKY_SLOPE: f32 = 0.01;
/// Kernel of the look-ahead layer's second convolution.
const LOOKAHEAD_KERNEL: usize = 3;

/// `LinearNoSubsampling`: linear, norm, and the positional encoding's factor √D.
struct Embed<B: Backend> {
    linear: B::Linear,
    norm: LayerNorm<B>,
}

/// `RelPositionMultiHeadedAttention`.
struct SelfAttention<B: Backend> {
    qkv: B::Linear,
    output: B::Linear,
    pos: B::Linear,
    /// `[1, D]`
    pos_bias_u: Tensor<B>,
    /// `[1, D]`
    pos_bias_v: Tensor<B>,
}

/// `ConformerEncoderLayer`: attention and feed-forward, norm first.
struct Block<B: Backend> {
    norm_mha: LayerNorm<B>,
    attention: SelfAttention<B>,
    norm_ff: LayerNorm<B>,
    w_1: B::Linear,
    w_2: B::Linear,
}

/// The upsampling conformer.
pub(super) struct Encoder<B: Backend> {
    config: FlowEncoderConfig,
    lookahead: usize,
    embed: Embed<B>,
    lookahead_conv1: B::Conv1d,
    lookahead_conv2: B::Conv1d,
    blocks: Vec<Block<B>>,
    up_conv: B::Conv1d,
    up_embed: Embed<B>,
    up_blocks: Vec<Block<B>>,
    after_norm: LayerNorm<B>,
}

/// Buffers of a forward pass, and what is kept from pass to pass.
pub(super) struct EncoderWorkspace<B: Backend> {
    x: Tensor<B>,
    /// Second row buffer: inputs and norms.
    y: Tensor<B>,
    qkv: Tensor<B>,
    attended: Tensor<B>,
    hidden: Tensor<B>,
    positions: Positions<B>,
    up_positions: Positions<B>,
}

impl<B: Backend> EncoderWorkspace<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            x: backend.alloc(0, 0)?,
            y: backend.alloc(0, 0)?,
            qkv: backend.alloc(0, 0)?,
            attended: backend.alloc(0, 0)?,
            hidden: backend.alloc(0, 0)?,
            positions: Positions::default(),
            up_positions: Positions::default(),
        })
    }
}

/// One utterance's part of a packed batch of tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenSpan {
    /// Rows of the utterance.
    pub(super) tokens: usize,
    /// Whether its last rows are spoken too; otherwise they are look-ahead.
    pub(super) finalize: bool,
    /// Attention in chunks.
    pub(super) streaming: bool,
}

impl<B: Backend> Encoder<B> {
    pub(super) fn load(
        backend: &B,
        scope: &Scope<'_>,
        config: &FlowEncoderConfig,
        lookahead: usize,
    ) -> Result<Self> {
        let d = config.output_size;
        let embed = |name: &str, input| -> Result<Embed<B>> {
            let out = scope.at(name).at("out");
            Ok(Embed {
                linear: linear(backend, &out.at(0), input, d)?,
                norm: LayerNorm::load(backend, &out.at(1), d, config.norm_eps)?,
            })
        };
        let blocks = |name: &str, count| -> Result<Vec<Block<B>>> {
            let list = scope.at(name);
            (0..count)
                .map(|i| Block::load(backend, &list.at(i), config))
                .collect()
        };
        let ahead = scope.at("pre_lookahead_layer");
        let up_conv = scope.at("up_layer").at("conv");
        Ok(Self {
            embed: embed("embed", config.input_size)?,
            lookahead_conv1: conv1d(backend, &ahead.at("conv1"), d, d, lookahead + 1)?,
            lookahead_conv2: conv1d(backend, &ahead.at("conv2"), d, d, LOOKAHEAD_KERNEL)?,
            blocks: blocks("encoders", config.num_blocks)?,
            up_conv: conv1d(backend, &up_conv, d, d, 2 * config.up_stride + 1)?,
            up_embed: embed("up_embed", config.input_size)?,
            up_blocks: blocks("up_encoders", config.num_up_blocks)?,
            after_norm: LayerNorm::load(backend, &scope.at("after_norm"), d, config.norm_eps)?,
            config: config.clone(),
            lookahead,
        })
    }

    /// Rows that come out for an utterance.
    pub(super) fn output_rows(&self, span: TokenSpan) -> usize {
        let spoken = if span.finalize {
            span.tokens
        } else {
            span.tokens.saturating_sub(self.lookahead)
        };
        spoken * self.config.up_stride
    }

    /// `embedded [N, I]` → `out [stride · N', D]`, `N'` without the look-ahead rows.
    pub(super) fn forward(
        &self,
        backend: &B,
        embedded: &Tensor<B>,
        spans: &[TokenSpan],
        ws: &mut EncoderWorkspace<B>,
        out: &mut Tensor<B>,
        trace: &Trace,
    ) -> Result<()> {
        let stride = self.config.up_stride;
        let lengths: Vec<usize> = spans
            .iter()
            .map(|&s| self.output_rows(s) / stride)
            .collect();
        let segments = Segments::new(backend, &lengths)?;
        self.embed_tokens(backend, embedded, spans, ws, trace)?;
        let masks = self.masks(backend, spans, 1)?;
        ws.positions.cover(
            backend,
            segments.longest(),
            self.blocks.iter().map(|b| &b.attention.pos),
            self.config.output_size,
        )?;
        for (i, block) in self.blocks.iter().enumerate() {
            block.forward(backend, &self.config, &segments, &masks, i, false, ws)?;
            trace.record(backend, &format!("flow.encoder.encoders.{i}"), &ws.x)?;
        }
        let up_lengths: Vec<usize> = lengths.iter().map(|l| l * stride).collect();
        let up_segments = Segments::new(backend, &up_lengths)?;
        self.upsample(backend, &up_segments, ws, trace)?;
        let masks = self.masks(backend, spans, stride)?;
        ws.up_positions.cover(
            backend,
            up_segments.longest(),
            self.up_blocks.iter().map(|b| &b.attention.pos),
            self.config.output_size,
        )?;
        for (i, block) in self.up_blocks.iter().enumerate() {
            block.forward(backend, &self.config, &up_segments, &masks, i, true, ws)?;
            trace.record(backend, &format!("flow.encoder.up_encoders.{i}"), &ws.x)?;
        }
        backend.resize(out, ws.x.rows(), ws.x.cols())?;
        self.after_norm.forward(backend, &ws.x, 1.0, None, out)?;
        trace.record(backend, "flow.encoder.after_norm", out)
    }

    fn masks(&self, backend: &B, spans: &[TokenSpan], stride: usize) -> Result<Masks<B>> {
        let chunk = self.config.static_chunk_size * stride;
        let masks: Vec<Mask> = spans.iter().map(|s| mask(s.streaming, chunk)).collect();
        Masks::new(backend, &masks)
    }

    /// Embedding and look-ahead layer; leaves the spoken rows in `ws.x`.
    fn embed_tokens(
        &self,
        backend: &B,
        embedded: &Tensor<B>,
        spans: &[TokenSpan],
        ws: &mut EncoderWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let (rows, d) = (embedded.rows(), self.config.output_size);
        let lengths: Vec<usize> = spans.iter().map(|s| s.tokens).collect();
        let segments = Segments::new(backend, &lengths)?;
        for t in [&mut ws.x, &mut ws.y, &mut ws.hidden, &mut ws.attended] {
            backend.resize(t, rows, d)?;
        }
        self.embed
            .forward(backend, embedded, d, &mut ws.y, &mut ws.x)?;
        trace.record(backend, "flow.encoder.embed", &ws.x)?;
        // Look-ahead rows are real input here; what this padding makes of them is dropped below.
        let ahead = ConvGeom {
            stride: 1,
            dilation: 1,
            left: 0,
            right: self.lookahead,
            padding: Padding::Zero,
        };
        backend.conv1d(
            &ws.x,
            &segments,
            &self.lookahead_conv1,
            ahead,
            None,
            Epilogue::Act(Act::LeakyRelu(LEAKY_SLOPE)),
            &mut ws.y,
            &segments,
        )?;
        backend.conv1d(
            &ws.y,
            &segments,
            &self.lookahead_conv2,
            ConvGeom::causal(LOOKAHEAD_KERNEL, 1),
            None,
            Epilogue::Add(&ws.x),
            &mut ws.hidden,
            &segments,
        )?;
        let spoken = |b: usize| self.output_rows(spans[b]) / self.config.up_stride;
        let kept = (0..spans.len()).map(spoken).sum();
        backend.resize(&mut ws.x, kept, d)?;
        let mut row = 0;
        for b in 0..spans.len() {
            let start = segments.range(b).start;
            backend.copy_rows(&ws.hidden, start, &mut ws.x, row, spoken(b))?;
            row += spoken(b);
        }
        trace.record(backend, "flow.encoder.pre_lookahead_layer", &ws.x)
    }

    /// Nearest upsampling, causal convolution, second embedding; from `ws.x` to `ws.x`.
    fn upsample(
        &self,
        backend: &B,
        segments: &Segments<B>,
        ws: &mut EncoderWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let (rows, d) = (segments.total(), self.config.output_size);
        for t in [&mut ws.y, &mut ws.hidden] {
            backend.resize(t, rows, d)?;
        }
        backend.upsample_rows(&ws.x, self.config.up_stride, &mut ws.y)?;
        backend.conv1d(
            &ws.y,
            segments,
            &self.up_conv,
            ConvGeom::causal(2 * self.config.up_stride + 1, 1),
            None,
            Epilogue::None,
            &mut ws.hidden,
            segments,
        )?;
        trace.record(backend, "flow.encoder.up_layer", &ws.hidden)?;
        backend.resize(&mut ws.x, rows, d)?;
        self.up_embed
            .forward(backend, &ws.hidden, d, &mut ws.y, &mut ws.x)?;
        trace.record(backend, "flow.encoder.up_embed", &ws.x)
    }
}

/// Chunks when streaming, everything otherwise.
pub(super) fn mask(streaming: bool, chunk: usize) -> Mask {
    if streaming && chunk > 0 {
        Mask::Chunk(chunk)
    } else {
        Mask::Full
    }
}

impl<B: Backend> Embed<B> {
    /// `x [N, I]` → `out [N, D]`, with `projected [N, D]` in between.
    fn forward(
        &self,
        backend: &B,
        x: &Tensor<B>,
        d: usize,
        projected: &mut Tensor<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        backend.linear(x, &self.linear, Epilogue::None, projected)?;
        let scale = (d as f64).sqrt() as f32;
        self.norm.forward(backend, projected, scale, None, out)
    }
}

impl<B: Backend> Block<B> {
    fn load(backend: &B, scope: &Scope<'_>, config: &FlowEncoderConfig) -> Result<Self> {
        let (d, hidden) = (config.output_size, config.linear_units);
        let norm = |name: &str| LayerNorm::load(backend, &scope.at(name), d, config.block_norm_eps);
        let ff = scope.at("feed_forward");
        Ok(Self {
            norm_mha: norm("norm_mha")?,
            attention: SelfAttention::load(backend, &scope.at("self_attn"), config)?,
            norm_ff: norm("norm_ff")?,
            w_1: linear(backend, &ff.at("w_1"), d, hidden)?,
            w_2: linear(backend, &ff.at("w_2"), hidden, d)?,
        })
    }

    /// One block over `ws.x`; `layer` picks the projected positions.
    fn forward(
        &self,
        backend: &B,
        config: &FlowEncoderConfig,
        segments: &Segments<B>,
        masks: &Masks<B>,
        layer: usize,
        up: bool,
        ws: &mut EncoderWorkspace<B>,
    ) -> Result<()> {
        let (rows, d) = (segments.total(), config.output_size);
        backend.resize(&mut ws.y, rows, d)?;
        backend.resize(&mut ws.qkv, rows, 3 * d)?;
        backend.resize(&mut ws.attended, rows, d)?;
        backend.resize(&mut ws.hidden, rows, config.linear_units)?;
        self.norm_mha
            .forward(backend, &ws.x, 1.0, None, &mut ws.y)?;
        let attention = &self.attention;
        let positions = if up { &ws.up_positions } else { &ws.positions };
        let rel = RelPos {
            p: positions.layer(layer),
            u: &attention.pos_bias_u,
            v: &attention.pos_bias_v,
            center: positions.center(),
        };
        backend.self_attention(
            (&ws.y, &attention.qkv),
            &mut ws.qkv,
            config.attention_heads,
            segments,
            segments,
            Some(rel),
            masks,
            &mut ws.attended,
        )?;
        backend.linear(
            &ws.attended,
            &attention.output,
            Epilogue::Accumulate,
            &mut ws.x,
        )?;
        self.norm_ff.forward(backend, &ws.x, 1.0, None, &mut ws.y)?;
        let (w_1, w_2) = (&self.w_1, &self.w_2);
        backend.feed_forward(&ws.y, w_1, Act::Silu, w_2, &mut ws.hidden, &mut ws.x)
    }
}

impl<B: Backend> SelfAttention<B> {
    fn load(backend: &B, scope: &Scope<'_>, config: &FlowEncoderConfig) -> Result<Self> {
        let (d, heads) = (config.output_size, config.attention_heads);
        let square = |name: &str| scope.at(name).weight("weight", &[d, d]);
        let bias = |name: &str| scope.at(name).weight("bias", &[d]);
        let (q, k, v) = (square("linear_q"), square("linear_k"), square("linear_v"));
        let (bq, bk, bv) = (bias("linear_q"), bias("linear_k"), bias("linear_v"));
        let position_bias = |name: &str| {
            let w = scope.weight(name, &[heads, d / heads]);
            backend.tensor(1, d, &w.to_f32())
        };
        Ok(Self {
            qkv: backend.pack_linears(&[(&q, Some(&bq)), (&k, Some(&bk)), (&v, Some(&bv))])?,
            output: linear(backend, &scope.at("linear_out"), d, d)?,
            pos: backend.pack_linear(&square("linear_pos"), None)?,
            pos_bias_u: position_bias("pos_bias_u")?,
            pos_bias_v: position_bias("pos_bias_v")?,
        })
    }
}
