//! One layer of the Qwen2 decoder: RMS norm, grouped-query attention with rotary positions, RMS norm, gated MLP.
//!
//! In and out: the residual stream `h [N, D]`. Reference: `Qwen2DecoderLayer` of transformers, weights under `layers.<i>`.

use crate::backend::{AttnPlan, Backend, Epilogue, Result, Weight};
use crate::checkpoint::Scope;
use crate::model::config::LlmConfig;
use crate::tensor::Tensor;

/// Packed weights of one layer.
pub(super) struct Block<B: Backend> {
    input_norm: Tensor<B>,
    qkv: B::Linear,
    o: B::Linear,
    post_norm: Tensor<B>,
    gate_up: B::Linear,
    down: B::Linear,
    /// Channels of all query heads, of `qkv`, and of one half of the gated MLP.
    widths: [usize; 3],
    eps: f32,
    theta: f32,
}

/// Scratch of a layer, shared by all of them.
pub(super) struct Scratch<B: Backend> {
    normed: Tensor<B>,
    qkv: Tensor<B>,
    q: Tensor<B>,
    pub(super) attended: Tensor<B>,
    gated: Tensor<B>,
}

impl<B: Backend> Scratch<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        let empty = || backend.alloc(0, 0);
        Ok(Self {
            normed: empty()?,
            qkv: empty()?,
            q: empty()?,
            attended: empty()?,
            gated: empty()?,
        })
    }
}

impl<B: Backend> Block<B> {
    pub(super) fn load(backend: &B, scope: &Scope<'_>, config: &LlmConfig) -> Result<Self> {
        let d = config.hidden_size;
        let attn = scope.at("self_attn");
        let projection = |name: &str, heads: usize| {
            let (rows, part) = (heads * config.head_dim, attn.at(name));
            (
                part.weight("weight", &[rows, d]),
                part.weight("bias", &[rows]),
            )
        };
        let parts = [
            projection("q_proj", config.num_heads),
            projection("k_proj", config.num_kv_heads),
            projection("v_proj", config.num_kv_heads),
        ];
        let parts: Vec<_> = parts.iter().map(|(w, b)| (w, Some(b))).collect();
        let mlp = |name: &str, shape: [usize; 2]| scope.at("mlp").at(name).weight("weight", &shape);
        let (up, down) = ([config.intermediate_size, d], [d, config.intermediate_size]);
        let o = attn.weight("o_proj.weight", &[d, config.num_heads * config.head_dim]);
        Ok(Self {
            input_norm: norm_weight(backend, &scope.weight("input_layernorm.weight", &[d]))?,
            qkv: backend.pack_linears(&parts)?,
            o: backend.pack_linear(&o, None)?,
            post_norm: norm_weight(
                backend,
                &scope.weight("post_attention_layernorm.weight", &[d]),
            )?,
            gate_up: backend.pack_gate_up(&mlp("gate_proj", up), &mlp("up_proj", up))?,
            down: backend.pack_linear(&mlp("down_proj", down), None)?,
            widths: [
                config.num_heads * config.head_dim,
                (config.num_heads + 2 * config.num_kv_heads) * config.head_dim,
                config.intermediate_size,
            ],
            eps: config.rms_norm_eps,
            theta: config.rope_theta,
        })
    }

    /// Norm, projections and rotation of all rows of `h`; their keys and values go to the cache, their queries to the scratch.
    pub(super) fn project(
        &self,
        backend: &B,
        h: &Tensor<B>,
        plan: &AttnPlan<B>,
        layer: usize,
        kv: &mut B::KvCache,
        s: &mut Scratch<B>,
    ) -> Result<()> {
        let (n, [q, qkv, _]) = (h.rows(), self.widths);
        backend.resize(&mut s.normed, n, h.cols())?;
        backend.resize(&mut s.qkv, n, qkv)?;
        backend.resize(&mut s.q, n, q)?;
        backend.rms_norm(h, None, &self.input_norm, self.eps, &mut s.normed)?;
        backend.linear(&s.normed, &self.qkv, Epilogue::None, &mut s.qkv)?;
        backend.rope_store_kv(&s.qkv, plan, self.theta, kv, layer, &mut s.q)
    }

    /// Attention of the scratch's queries over the cache, into `attended`.
    pub(super) fn attend(
        &self,
        backend: &B,
        plan: &AttnPlan<B>,
        layer: usize,
        kv: &B::KvCache,
        s: &mut Scratch<B>,
    ) -> Result<()> {
        backend.resize(&mut s.attended, s.q.rows(), s.q.cols())?;
        backend.paged_attention(&s.q, kv, layer, plan, &mut s.attended)
    }

    /// Adds the attention's output and the MLP to `h`. `attended` holds the same rows as `h`.
    pub(super) fn finish(
        &self,
        backend: &B,
        attended: Option<&Tensor<B>>,
        h: &mut Tensor<B>,
        s: &mut Scratch<B>,
    ) -> Result<()> {
        let attended = attended.unwrap_or(&s.attended);
        backend.linear(attended, &self.o, Epilogue::Accumulate, h)?;
        backend.resize(&mut s.normed, h.rows(), h.cols())?;
        backend.resize(&mut s.gated, h.rows(), self.widths[2])?;
        backend.rms_norm(h, None, &self.post_norm, self.eps, &mut s.normed)?;
        backend.linear(&s.normed, &self.gate_up, Epilogue::SiluMul, &mut s.gated)?;
        backend.linear(&s.gated, &self.down, Epilogue::Accumulate, h)
    }
}

/// The weight `[D]` of a norm as a row.
pub(super) fn norm_weight<B: Backend>(backend: &B, w: &Weight<'_>) -> Result<Tensor<B>> {
    backend.tensor(1, w.len(), &w.to_f32())
}
