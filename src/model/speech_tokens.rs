//! Speech tokenizer v2: log-mel of a prompt to 25 Hz tokens.
//!
//! In: Whisper log-mel `[T, mels]`; out: `T / 4` tokens. Two strided convolutions, transformer blocks whose attention has rotary
//! positions and an FSMN memory (a depthwise convolution over the values, added to the output), and finite scalar quantisation: the
//! digits of a token are rounded values of a small projection. After `s3tokenizer/model_v2.py`.

use crate::audio::features::Features;
use crate::backend::{
    Act, Attention, Conv, ConvGeom, Dense, Epilogue, Fidelity, Mask, Masks, Memory, Norm, Padding,
    Result,
};
use crate::checkpoint::Scope;
use crate::cpu::{Cpu, CpuConv1d, CpuLinear};
use crate::model::config::SpeechTokensConfig;
use crate::tensor::{Segments, Tensor, Trace};

/// Keeps the quantiser's values off the edge of the outermost level.
const FSQ_SCALE: f32 = 0.999;

/// The tokenizer with its weights.
pub struct SpeechTokenizer {
    config: SpeechTokensConfig,
    stem: Vec<StemConv>,
    blocks: Vec<Block>,
    /// `[digits, state]`
    project: CpuLinear,
}

struct StemConv {
    conv: CpuConv1d,
    geom: ConvGeom,
    kernel: usize,
}

struct LayerNorm {
    weight: Tensor<Cpu>,
    bias: Tensor<Cpu>,
    eps: f32,
}

struct Block {
    attn_norm: LayerNorm,
    /// `[3 · state, state]`: query, key (without bias), value.
    qkv: CpuLinear,
    /// Depthwise over time.
    memory: CpuConv1d,
    out: CpuLinear,
    mlp_norm: LayerNorm,
    up: CpuLinear,
    down: CpuLinear,
    inner: usize,
}

/// Activations of one recording.
struct Work {
    /// `[T, state]`
    x: Tensor<Cpu>,
    normed: Tensor<Cpu>,
    /// `[T, 3 · state]`
    qkv: Tensor<Cpu>,
    /// The values alone, `[T, state]`
    v: Tensor<Cpu>,
    mixed: Tensor<Cpu>,
    /// `[T, inner]`
    hidden: Tensor<Cpu>,
    segments: Segments<Cpu>,
    masks: Masks<Cpu>,
}

impl SpeechTokenizer {
    /// Reads the weights below `scope`, which is the root of `speech_tokenizer_v2.onnx`. Missing ones are noted there.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn load(cpu: &Cpu, scope: &Scope<'_>, config: &SpeechTokensConfig) -> Result<Self> {
        let state = config.state;
        let mut stem = Vec::new();
        let mut channels = config.num_mels;
        for (i, &stride) in config.strides.iter().enumerate() {
            let scope = scope.at(format!("conv{}", i + 1));
            let kernel = last_dim(&scope, "weight");
            let weight = scope.weight("weight", &[state, channels, kernel]);
            let conv = cpu.pack_conv1d(
                &weight,
                Some(&scope.weight("bias", &[state])),
                1,
                Fidelity::Usual,
            )?;
            let geom = ConvGeom {
                stride,
                ..ConvGeom::same(kernel, 1)
            };
            stem.push(StemConv { conv, geom, kernel });
            channels = state;
        }
        let blocks = (0..config.num_blocks)
            .map(|i| Block::load(cpu, &scope.at("blocks").at(i), config))
            .collect::<Result<_>>()?;
        let project = linear(
            cpu,
            &scope.at("quantizer.project_in"),
            config.fsq_digits,
            state,
        )?;
        Ok(Self {
            config: config.clone(),
            stem,
            blocks,
            project,
        })
    }

    /// Dimensions of the tokenizer.
    pub fn config(&self) -> &SpeechTokensConfig {
        &self.config
    }

    /// Number of different tokens.
    pub fn vocabulary(&self) -> usize {
        (0..self.config.fsq_digits).fold(1, |n, _| n * self.config.fsq_levels)
    }

    /// Tokens of one recording's features; empty when it has no rows.
    ///
    /// # Errors
    /// When memory runs out.
    ///
    /// # Panics
    /// When the features have another number of bins than the tokenizer reads.
    pub fn encode(&self, cpu: &Cpu, features: &Features, trace: &Trace) -> Result<Vec<i32>> {
        assert_eq!(
            features.bins, self.config.num_mels,
            "speech tokenizer: mels"
        );
        if features.rows == 0 {
            return Ok(Vec::new());
        }
        let x = self.stem(cpu, features)?;
        let mut work = Work::new(cpu, x)?;
        for block in &self.blocks {
            block.forward(cpu, &self.config, &mut work)?;
        }
        trace.record(cpu, "speech_tokens.hidden", &work.x)?;
        self.quantise(cpu, &work.x, trace)
    }

    fn stem(&self, cpu: &Cpu, features: &Features) -> Result<Tensor<Cpu>> {
        let mut x = cpu.tensor(features.rows, features.bins, &features.data)?;
        let mut segments = Segments::new(cpu, &[features.rows])?;
        for layer in &self.stem {
            let rows = layer.geom.output_rows(x.rows(), layer.kernel);
            let out_segments = Segments::new(cpu, &[rows])?;
            let mut out = cpu.alloc(rows, self.config.state)?;
            cpu.conv1d(
                &x,
                &segments,
                &layer.conv,
                layer.geom,
                None,
                Epilogue::Act(Act::Gelu),
                &mut out,
                &out_segments,
            )?;
            (x, segments) = (out, out_segments);
        }
        Ok(x)
    }

    /// `token = Σ_k (round(0.999 · tanh(p_k)) + 1) · levels^k`
    fn quantise(&self, cpu: &Cpu, x: &Tensor<Cpu>, trace: &Trace) -> Result<Vec<i32>> {
        let mut p = cpu.alloc(x.rows(), self.config.fsq_digits)?;
        cpu.linear(x, &self.project, Epilogue::Act(Act::Tanh), &mut p)?;
        p.data_mut().iter_mut().for_each(|v| *v *= FSQ_SCALE);
        trace.record(cpu, "speech_tokens.pre_round", &p)?;
        let levels = self.config.fsq_levels as i32;
        let digits = p.data().chunks_exact(self.config.fsq_digits);
        Ok(digits
            .map(|row| {
                row.iter()
                    .rev()
                    .fold(0, |n, v| n * levels + v.round_ties_even() as i32 + 1)
            })
            .collect())
    }
}

impl Block {
    fn load(cpu: &Cpu, scope: &Scope<'_>, config: &SpeechTokensConfig) -> Result<Self> {
        let d = config.state;
        let attn = scope.at("attn");
        let parts = ["query", "key", "value"].map(|name| {
            let part = attn.at(name);
            (part.weight("weight", &[d, d]), part.optional("bias", &[d]))
        });
        let kernel = last_dim(&attn, "fsmn_block.weight");
        let inner = mlp_width(scope);
        Ok(Self {
            attn_norm: LayerNorm::load(cpu, &scope.at("attn_ln"), d, config.attn_norm_eps)?,
            qkv: cpu.pack_linears(&parts.each_ref().map(|(w, b)| (w, b.as_ref())))?,
            memory: cpu.pack_conv1d(
                &attn.weight("fsmn_block.weight", &[d, 1, kernel]),
                None,
                d,
                Fidelity::Usual,
            )?,
            out: linear(cpu, &attn.at("out"), d, d)?,
            mlp_norm: LayerNorm::load(cpu, &scope.at("mlp_ln"), d, config.mlp_norm_eps)?,
            up: linear(cpu, &scope.at("mlp.0"), inner, d)?,
            down: linear(cpu, &scope.at("mlp.2"), d, inner)?,
            inner,
        })
    }

    fn forward(&self, cpu: &Cpu, config: &SpeechTokensConfig, w: &mut Work) -> Result<()> {
        let (d, heads) = (config.state, config.num_heads);
        let dim = d / heads;
        self.attn_norm.forward(cpu, &w.x, &mut w.normed)?;
        cpu.linear(&w.normed, &self.qkv, Epilogue::None, &mut w.qkv)?;
        cpu.rotate_halves(&mut w.qkv, 0, 2 * heads, dim, config.rope_theta);
        cpu.attention(
            &w.qkv,
            heads,
            &w.segments,
            &w.segments,
            None,
            &w.masks,
            &mut w.mixed,
        )?;
        cpu.linear(&w.mixed, &self.out, Epilogue::Accumulate, &mut w.x)?;
        // The memory: the values and their depthwise convolution.
        w.copy_values();
        let [left, right] = config.fsmn_padding;
        let geom = ConvGeom {
            stride: 1,
            dilation: 1,
            left,
            right,
            padding: Padding::Zero,
        };
        let ep = Epilogue::Accumulate;
        cpu.conv1d(
            &w.v,
            &w.segments,
            &self.memory,
            geom,
            None,
            ep,
            &mut w.x,
            &w.segments,
        )?;
        cpu.axpby(1.0, &w.v, 1.0, &mut w.x)?;

        self.mlp_norm.forward(cpu, &w.x, &mut w.normed)?;
        cpu.resize(&mut w.hidden, w.x.rows(), self.inner)?;
        let (up, down) = (&self.up, &self.down);
        cpu.feed_forward(&w.normed, up, Act::Gelu, down, &mut w.hidden, &mut w.x)
    }
}

impl LayerNorm {
    fn load(cpu: &Cpu, scope: &Scope<'_>, size: usize, eps: f32) -> Result<Self> {
        let vector = |n: &str| cpu.tensor(1, size, &scope.weight(n, &[size]).to_f32());
        Ok(Self {
            weight: vector("weight")?,
            bias: vector("bias")?,
            eps,
        })
    }

    fn forward(&self, cpu: &Cpu, x: &Tensor<Cpu>, out: &mut Tensor<Cpu>) -> Result<()> {
        cpu.layer_norm(x, &self.weight, &self.bias, self.eps, 1.0, None, out)
    }
}

impl Work {
    fn new(cpu: &Cpu, x: Tensor<Cpu>) -> Result<Self> {
        let (rows, d) = x.shape();
        let row = || cpu.alloc(rows, d);
        Ok(Self {
            normed: row()?,
            qkv: cpu.alloc(rows, 3 * d)?,
            v: row()?,
            mixed: row()?,
            hidden: cpu.alloc(0, 0)?,
            segments: Segments::new(cpu, &[rows])?,
            masks: Masks::uniform(cpu, Mask::Full, 1)?,
            x,
        })
    }

    fn copy_values(&mut self) {
        let d = self.v.cols();
        let rows = self.qkv.data().chunks_exact(3 * d);
        for (to, from) in self.v.data_mut().chunks_exact_mut(d).zip(rows) {
            to.copy_from_slice(&from[2 * d..]);
        }
    }
}

/// A linear layer with a bias.
fn linear(cpu: &Cpu, scope: &Scope<'_>, out: usize, inputs: usize) -> Result<CpuLinear> {
    let weight = scope.weight("weight", &[out, inputs]);
    cpu.pack_linear(&weight, Some(&scope.weight("bias", &[out])))
}

/// Width of a block's MLP, from its weight.
fn mlp_width(block: &Scope<'_>) -> usize {
    let shape = block.shape("mlp.0.weight");
    shape.and_then(|s| s.first().copied()).unwrap_or(1)
}

/// Kernel size of a convolution, from its weight.
fn last_dim(scope: &Scope<'_>, name: &str) -> usize {
    let shape = scope.shape(name);
    shape.and_then(|s| s.last().copied()).unwrap_or(1).max(1)
}
