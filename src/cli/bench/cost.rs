//! What each stage costs: operations and bytes of every kernel launch, from the dims alone.
//!
//! Activations and weights count two bytes each (bf16), f32 outputs four. Multiply-adds of attention, which are small beside the
//! linear layers', are counted over all keys.

use crate::model::config::{EstimatorConfig, FlowConfig, FlowEncoderConfig, HiftConfig, LlmConfig};

/// Bytes of a value.
const VALUE: f64 = 2.0;

/// One kernel launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Op {
    pub(super) flop: f64,
    pub(super) bytes: f64,
    /// Output tiles of 128 by 128 that a matrix product has to spread over the device; 0 for everything else.
    pub(super) tiles: f64,
}

impl Op {
    /// `[n, k] × [k, m]`.
    fn product(n: usize, k: usize, m: usize) -> Self {
        Self {
            flop: 2.0 * (n * k * m) as f64,
            bytes: VALUE * (n * k + k * m + n * m) as f64,
            tiles: (n.div_ceil(128) * m.div_ceil(128)) as f64,
        }
    }

    /// A convolution of `kernel` taps as a product; its input is read once.
    fn conv(rows_in: usize, rows: usize, kernel: usize, ci: usize, co: usize) -> Self {
        Self {
            bytes: VALUE * (rows_in * ci + kernel * ci * co + rows * co) as f64,
            ..Self::product(rows, kernel * ci, co)
        }
    }

    /// Something that reads and writes so many values.
    fn pass(values: usize) -> Self {
        Self {
            flop: 0.0,
            bytes: VALUE * values as f64,
            tiles: 0.0,
        }
    }

    /// Attention of `queries` rows over `keys` rows each, of `heads` heads; `read` values of keys and values come from memory.
    fn attention(queries: usize, keys: usize, width: usize, read: usize) -> Self {
        Self {
            flop: 4.0 * (queries * keys * width) as f64,
            bytes: VALUE * (2 * queries * width + read) as f64,
            tiles: 0.0,
        }
    }
}

/// One step of the language model: `new` rows of each of `batch` sequences that look back on `context` positions.
pub(super) fn llm_step(c: &LlmConfig, batch: usize, new: usize, context: usize) -> Vec<Op> {
    let (n, d) = (batch * new, c.hidden_size);
    let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    let seen = context + new;
    let layer = [
        Op::pass(2 * n * d),
        Op::product(n, d, q + 2 * kv),
        Op::pass(2 * n * (q + 2 * kv)),
        Op::attention(n, seen, q, 2 * batch * seen * kv),
        Op::product(n, q, d),
        Op::pass(2 * n * d),
        Op::product(n, d, 2 * c.intermediate_size),
        Op::product(n, c.intermediate_size, d),
    ];
    let mut ops = vec![Op::pass(2 * n * d)];
    ops.extend(std::iter::repeat_n(layer, c.num_layers).flatten());
    ops.extend([
        Op::pass(2 * batch * d),
        Op::product(batch, d, c.speech_vocab_size),
        Op::pass(2 * batch * c.speech_vocab_size),
    ]);
    ops
}

/// Weights that every token is multiplied with.
pub(super) fn llm_parameters(c: &LlmConfig) -> usize {
    let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    let layer = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size);
    c.num_layers * layer + c.hidden_size * c.speech_vocab_size
}

/// The flow's encoder for `batch` utterances of `tokens` speech tokens.
pub(super) fn flow_encoder(c: &FlowConfig, batch: usize, tokens: usize) -> Vec<Op> {
    let e = &c.encoder;
    let (n, d) = (batch * tokens, e.output_size);
    let up = n * e.up_stride;
    let mut ops = vec![
        Op::pass(2 * n * e.input_size),
        Op::product(n, e.input_size, d),
        Op::pass(2 * n * d),
        Op::conv(n, n, c.pre_lookahead_len + 1, d, d),
        Op::conv(n, n, 3, d, d),
    ];
    let blocks = |ops: &mut Vec<Op>, count: usize, rows: usize, each: usize| {
        ops.extend(std::iter::repeat_n(encoder_block(e, rows, each), count).flatten());
    };
    blocks(&mut ops, e.num_blocks, n, tokens);
    ops.extend([
        Op::pass(3 * up * d),
        Op::conv(up, up, 2 * e.up_stride + 1, d, d),
        Op::product(up, d, d),
        Op::pass(2 * up * d),
    ]);
    blocks(&mut ops, e.num_up_blocks, up, tokens * e.up_stride);
    ops.extend([Op::pass(2 * up * d), Op::product(up, d, c.output_size)]);
    ops
}

fn encoder_block(e: &FlowEncoderConfig, n: usize, keys: usize) -> [Op; 7] {
    let (d, hidden) = (e.output_size, e.linear_units);
    // Content and position scores.
    let mut attention = Op::attention(n, keys, d, 2 * n * d);
    attention.flop *= 1.5;
    [
        Op::pass(2 * n * d),
        Op::product(n, d, 3 * d),
        attention,
        Op::product(n, d, d),
        Op::pass(2 * n * d),
        Op::product(n, d, hidden),
        Op::product(n, hidden, d),
    ]
}

/// One Euler step of `batch` utterances of `frames` mel frames, both halves of the guidance.
pub(super) fn euler_step(c: &FlowConfig, batch: usize, frames: usize) -> Vec<Op> {
    let e = &c.estimator;
    let n = 2 * batch * frames;
    let width = e.channels.first().copied().unwrap_or(0);
    let mut ops = vec![Op::pass(n * (e.in_channels + e.out_channels))];
    let mut stage = |input: usize| {
        ops.extend(resnet(n, input, width));
        ops.extend(std::iter::repeat_n(transformer(e, n, frames), e.n_blocks).flatten());
    };
    stage(e.in_channels);
    for _ in 0..e.num_mid_blocks {
        stage(width);
    }
    stage(2 * width);
    ops.extend([
        Op::conv(n, n, 3, width, width),
        Op::pass(3 * n * width),
        Op::conv(n, n, 3, width, width),
        Op::conv(n, n, 3, width, width),
        Op::pass(2 * n * width),
        Op::product(n, width, e.out_channels),
        Op::pass(2 * n * e.out_channels),
    ]);
    ops
}

fn resnet(n: usize, input: usize, c: usize) -> [Op; 6] {
    [
        Op::conv(n, n, 3, input, c),
        Op::pass(2 * n * c),
        Op::pass(2 * n * c),
        Op::conv(n, n, 3, c, c),
        Op::pass(2 * n * c),
        Op::product(n, input, c),
    ]
}

fn transformer(e: &EstimatorConfig, n: usize, frames: usize) -> [Op; 7] {
    let c = e.channels.first().copied().unwrap_or(0);
    let inner = e.num_heads * e.attention_head_dim;
    [
        Op::pass(2 * n * c),
        Op::product(n, c, 3 * inner),
        Op::attention(n, frames, inner, 2 * n * inner),
        Op::product(n, inner, c),
        Op::pass(2 * n * c),
        Op::product(n, c, 4 * c),
        Op::product(n, 4 * c, c),
    ]
}

/// The vocoder for `batch` utterances of `frames` mel frames.
pub(super) fn vocoder(c: &HiftConfig, batch: usize, frames: usize) -> Vec<Op> {
    const OUTER_KERNEL: usize = 7;
    const F0_KERNEL: usize = 3;
    let n = batch * frames;
    let f0 = &c.f0_predictor;
    let mut ops: Vec<Op> = (0..f0.num_layers)
        .map(|i| {
            let input = if i == 0 {
                f0.in_channels
            } else {
                f0.cond_channels
            };
            Op::conv(n, n, F0_KERNEL, input, f0.cond_channels)
        })
        .collect();
    ops.push(Op::product(n, f0.cond_channels, 1));
    let bins = c.istft_n_fft + 2;
    let ratio: usize = c.upsample_rates.iter().product();
    let samples = n * ratio * c.istft_hop_len;
    // Source and its spectrum in f32.
    ops.extend([
        Op::pass(2 * samples),
        Op::pass(2 * (samples + n * ratio * bins)),
    ]);
    ops.push(Op::conv(n, n, OUTER_KERNEL, c.in_channels, c.base_channels));
    let (mut rows, mut channels) = (n, c.base_channels);
    for (i, (&rate, &kernel)) in (c.upsample_rates.iter().zip(&c.upsample_kernel_sizes)).enumerate()
    {
        let half = channels / 2;
        let mut up = Op::conv(rows, rows * rate, kernel, channels, half);
        // Every output row takes one in `rate` of the taps.
        up.flop /= rate as f64;
        ops.push(up);
        rows *= rate;
        channels = half;
        let stride: usize = c.upsample_rates[i + 1..].iter().product();
        let taps = if stride == 1 { 1 } else { 2 * stride };
        ops.push(Op::conv(rows * stride, rows, taps, bins, channels));
        let source = (c.source_resblock_kernel_sizes.iter())
            .zip(&c.source_resblock_dilation_sizes)
            .nth(i);
        let blocks = c
            .resblock_kernel_sizes
            .iter()
            .zip(&c.resblock_dilation_sizes);
        for (&kernel, dilations) in blocks.chain(source) {
            let conv = Op::conv(rows, rows, kernel, channels, channels);
            ops.extend(std::iter::repeat_n(conv, 2 * dilations.len()));
        }
        ops.extend(std::iter::repeat_n(
            Op::pass(3 * rows * channels),
            c.resblock_kernel_sizes.len() - 1,
        ));
    }
    ops.push(Op::conv(rows, rows, OUTER_KERNEL, channels, bins));
    ops.push(Op::pass(2 * (rows * bins + samples)));
    ops
}

/// Floating point operations of a list of launches.
pub(super) fn flop(ops: &[Op]) -> f64 {
    ops.iter().map(|op| op.flop).sum()
}
