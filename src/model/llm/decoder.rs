//! The whole language model over a batch of sequences: embeddings, layers, final norm, speech head.
//!
//! In: new rows of each sequence and its pages. Out: logits `[R, V]` over speech tokens for the last row of each sequence that asks.
//! Reference: `Qwen2LM`, `Qwen2Encoder.forward_one_step` (`cosyvoice/llm/llm.py`). The text head that the reference also computes and
//! throws away is left out.

use super::InputToken;
use super::block::{Block, Scratch, norm_weight};
use super::prompt::Vocabulary;
use crate::backend::{AttnPlan, Backend, Epilogue, KvShape, PlanSequence, Result};
use crate::checkpoint::Scope;
use crate::model::config::LlmConfig;
use crate::tensor::{Ids, Tensor, Trace};

/// The language model's weights.
pub struct Llm<B: Backend> {
    config: LlmConfig,
    text: B::Embedding,
    speech: B::Embedding,
    marks: B::Embedding,
    blocks: Vec<Block<B>>,
    norm: Tensor<B>,
    head: B::Linear,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepSequence<'a> {
    /// New rows, at least one.
    pub inputs: &'a [InputToken],
    /// Positions that are in the cache already.
    pub context: usize,
    /// Pages of the sequence, enough for `context + inputs.len()` positions.
    pub pages: &'a [u32],
    /// Whether the logits of its last row are wanted.
    pub logits: bool,
}

/// Activations of a step; kept and reused, it allocates nothing once it has seen the largest step.
pub struct LlmWorkspace<B: Backend> {
    which: Ids<B>,
    ids: Ids<B>,
    rows: Ids<B>,
    plan: AttnPlan<B>,
    h: Tensor<B>,
    scratch: Scratch<B>,
    last_h: Tensor<B>,
    last_attended: Tensor<B>,
    normed: Tensor<B>,
    logits: Tensor<B>,
}

impl<B: Backend> LlmWorkspace<B> {
    /// # Errors
    /// When the backend cannot allocate.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            which: backend.ids(&[])?,
            ids: backend.ids(&[])?,
            rows: backend.ids(&[])?,
            plan: AttnPlan::new(backend, 1, &[])?,
            h: backend.alloc_f32(0, 0)?,
            scratch: Scratch::new(backend)?,
            last_h: backend.alloc_f32(0, 0)?,
            last_attended: backend.alloc(0, 0)?,
            normed: backend.alloc(0, 0)?,
            logits: backend.alloc_f32(0, 0)?,
        })
    }

    /// Logits of the last step, `[R, V]`: one row per sequence that asked, in order.
    pub fn logits(&self) -> &Tensor<B> {
        &self.logits
    }
}

impl<B: Backend> Llm<B> {
    /// Packs the weights of `llm.pt` (or the same names elsewhere).
    ///
    /// # Errors
    /// When the backend cannot allocate. What is wrong with the tensors is noted in the scope's file.
    pub fn load(backend: &B, scope: &Scope<'_>, config: &LlmConfig) -> Result<Self> {
        let (d, v) = (config.hidden_size, config.speech_vocab_size);
        let qwen = scope.at("llm.model.model");
        scope.ignore("llm.model.lm_head.weight");
        let table = |scope: &Scope<'_>, name: &str, rows: usize| {
            backend.pack_embedding(&scope.weight(name, &[rows, d]))
        };
        let layers = qwen.at("layers");
        if config.num_layers == 0 {
            layers.complain("num_layers", "at least 1", 0);
        }
        let blocks = (0..config.num_layers)
            .map(|i| Block::load(backend, &layers.at(i), config))
            .collect::<Result<_>>()?;
        let bias = scope.weight("llm_decoder.bias", &[v]);
        Ok(Self {
            text: table(&qwen, "embed_tokens.weight", config.text_vocab_size)?,
            speech: table(scope, "speech_embedding.weight", v)?,
            marks: table(scope, "llm_embedding.weight", 2)?,
            blocks,
            norm: norm_weight(backend, &qwen.weight("norm.weight", &[d]))?,
            head: backend.pack_linear(&scope.weight("llm_decoder.weight", &[v, d]), Some(&bias))?,
            config: config.clone(),
        })
    }

    /// The dims that it was loaded with.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Sizes of the vocabularies, for [`Generation`](super::Generation).
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary {
            text: self.config.text_vocab_size,
            speech: self.config.speech_token_size,
        }
    }

    /// Geometry of a cache of so many pages.
    pub fn kv_shape(&self, pages: usize, page_size: usize) -> KvShape {
        KvShape {
            layers: self.config.num_layers,
            pages,
            page_size,
            kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// Runs the new rows of every sequence; their keys and values enter the cache, the wanted logits are in the workspace afterwards.
    /// Prefill may be cut into chunks at will: the values do not depend on how, nor on the other sequences. `drawn` holds the tokens of
    /// [`InputToken::Drawn`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(
        &self,
        backend: &B,
        page_size: usize,
        sequences: &[StepSequence<'_>],
        drawn: Option<&Ids<B>>,
        kv: &mut B::KvCache,
        ws: &mut LlmWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let layout: Vec<_> = sequences
            .iter()
            .map(|s| PlanSequence {
                context: s.context,
                new: s.inputs.len(),
                pages: s.pages,
            })
            .collect();
        ws.plan.update(backend, page_size, &layout)?;
        let (which, ids): (Vec<_>, Vec<_>) = sequences
            .iter()
            .flat_map(|s| s.inputs.iter().map(|t| t.lookup()))
            .unzip();
        backend.upload_ids(&which, &mut ws.which)?;
        backend.upload_ids(&ids, &mut ws.ids)?;
        let last = |b: usize| ws.plan.segments.range(b).end as i32 - 1;
        let rows: Vec<i32> = (0..sequences.len())
            .filter(|&b| sequences[b].logits)
            .map(last)
            .collect();
        backend.upload_ids(&rows, &mut ws.rows)?;
        backend.recorded(|| self.forward(backend, drawn, kv, ws, trace))
    }

    /// The same for rows, plan and wanted rows that are in the workspace.
    fn forward(
        &self,
        backend: &B,
        drawn: Option<&Ids<B>>,
        kv: &mut B::KvCache,
        ws: &mut LlmWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let config = &self.config;
        let LlmWorkspace {
            plan, h, scratch, ..
        } = ws;
        let (n, d) = (ws.ids.len(), config.hidden_size);
        if n == 0 {
            return backend.resize(&mut ws.logits, 0, config.speech_vocab_size);
        }
        backend.resize(h, n, d)?;
        let tables = [&self.text, &self.speech, &self.marks];
        backend.embed(&tables, &ws.which, &ws.ids, drawn, h)?;
        trace.record(backend, "llm.lm_input", h)?;
        let (last, wanted) = (self.blocks.len() - 1, ws.rows.len());
        // Past the last layer's keys and values only the wanted rows matter.
        let some = wanted < n;
        for (layer, block) in self.blocks.iter().enumerate() {
            block.project(backend, h, plan, layer, kv, scratch)?;
            if layer == last && wanted == 0 {
                return backend.resize(&mut ws.logits, 0, config.speech_vocab_size);
            }
            block.attend(backend, plan, layer, kv, scratch)?;
            let (h, attended) = if layer == last && some {
                backend.resize(&mut ws.last_h, wanted, d)?;
                backend.resize(&mut ws.last_attended, wanted, scratch.attended.cols())?;
                backend.gather_rows(h, &ws.rows, &mut ws.last_h)?;
                backend.gather_rows(&scratch.attended, &ws.rows, &mut ws.last_attended)?;
                (&mut ws.last_h, Some(&ws.last_attended))
            } else {
                (&mut *h, None)
            };
            block.finish(backend, attended, h, scratch)?;
            if trace.is_on() {
                trace.record(backend, &format!("llm.layers.{layer}"), h)?;
            }
        }
        self.logits(backend, ws, some, trace)
    }

    /// Final norm and head over `last_h` (`some`) or over all of `h`.
    fn logits(
        &self,
        backend: &B,
        ws: &mut LlmWorkspace<B>,
        some: bool,
        trace: &Trace,
    ) -> Result<()> {
        let h = if some { &ws.last_h } else { &ws.h };
        backend.resize(&mut ws.normed, h.rows(), h.cols())?;
        backend.resize(&mut ws.logits, h.rows(), self.config.speech_vocab_size)?;
        backend.rms_norm(
            h,
            None,
            &self.norm,
            self.config.rms_norm_eps,
            &mut ws.normed,
        )?;
        trace.record(backend, "llm.norm", &ws.normed)?;
        backend.linear(&ws.normed, &self.head, Epilogue::None, &mut ws.logits)?;
        trace.record(backend, "llm.logits", &ws.logits)
    }
}
