//! Attention of the language model (rotary, grouped, paged) and of the flow (full or chunked, optionally relative).

use super::{Dense, Epilogue, Memory, Result};
use crate::tensor::{Ids, Segments, Tensor};

/// Which keys a query sees, within its own sequence. Masks are geometry, never tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Keys `j ≤ i`.
    Causal,
    /// All keys of the query's own chunk of `n` rows and of all earlier chunks.
    Chunk(usize),
}

impl Mask {
    /// One past the last key that row `i` of a sequence of `rows` rows sees.
    pub fn end(self, i: usize, rows: usize) -> usize {
        match self {
            Mask::Full => rows,
            Mask::Causal => i + 1,
            Mask::Chunk(n) => ((i / n + 1) * n).min(rows),
        }
    }

    /// The same geometry as a chunk length: 1 when causal, `i32::MAX` when full.
    fn chunk(self) -> i32 {
        match self {
            Mask::Full => i32::MAX,
            Mask::Causal => 1,
            Mask::Chunk(n) => i32::try_from(n).unwrap_or(i32::MAX),
        }
    }
}

/// The mask of each sequence of a packed batch: on the host for planning, in the backend's memory for kernels.
pub struct Masks<B: Memory> {
    masks: Vec<Mask>,
    device: Ids<B>,
}

impl<B: Memory> Masks<B> {
    /// One mask per sequence, in order.
    ///
    /// # Errors
    /// When the backend cannot hold the `B` chunk lengths.
    pub fn new(backend: &B, masks: &[Mask]) -> Result<Self> {
        let mut all = Self {
            masks: Vec::new(),
            device: backend.ids(&[])?,
        };
        all.update(backend, masks)?;
        Ok(all)
    }

    /// Becomes other masks, in the memory that is there where it suffices.
    ///
    /// # Errors
    /// As [`Masks::new`].
    pub fn update(&mut self, backend: &B, masks: &[Mask]) -> Result<()> {
        let chunks: Vec<i32> = masks.iter().map(|m| m.chunk()).collect();
        self.masks.clear();
        self.masks.extend_from_slice(masks);
        backend.upload_ids(&chunks, &mut self.device)
    }

    /// The same mask for all of `count` sequences.
    ///
    /// # Errors
    /// As [`Masks::new`].
    pub fn uniform(backend: &B, mask: Mask, count: usize) -> Result<Self> {
        Self::new(backend, &vec![mask; count])
    }

    /// Mask of sequence `b`.
    pub fn get(&self, b: usize) -> Mask {
        self.masks[b]
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.masks.len()
    }

    /// Chunk length of each sequence, `[B]`: row `i` sees keys before `min((i / n + 1) · n, T)`, with `n` 1 when
    /// causal and `i32::MAX` when full.
    pub fn device(&self) -> &Ids<B> {
        &self.device
    }
}

/// Relative positions after Transformer-XL as ESPnet writes them: the score of query `i` and key `j` is
/// `(q_i + u) · k_j + (q_i + v) · p[center − i + j]`, all times the scale.
pub struct RelPos<'a, B: Memory> {
    /// Projected positions `[2 · center + 1, H·Dh]`: row `center + d` is distance `j − i = d`.
    pub p: &'a Tensor<B>,
    /// Content bias `[1, H·Dh]`.
    pub u: &'a Tensor<B>,
    /// Position bias `[1, H·Dh]`.
    pub v: &'a Tensor<B>,
    /// At least the longest sequence minus one.
    pub center: usize,
}

/// Geometry of a paged KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub layers: usize,
    pub pages: usize,
    /// Positions of a page.
    pub page_size: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Values of keys and values together in one page, over all layers.
    pub fn values_per_page(&self) -> usize {
        2 * self.layers * self.page_size * self.kv_heads * self.head_dim
    }
}

/// One sequence's part of a language model step.
#[derive(Clone, Debug)]
pub struct PlanSequence<'a> {
    /// Positions already in the cache.
    pub context: usize,
    /// New positions in this step (1 when decoding).
    pub new: usize,
    /// Pages of the sequence in order, enough for `context + new` positions.
    pub pages: &'a [u32],
}

/// What attention has to know of one step, built once on the host and read by every layer.
pub struct AttnPlan<B: Memory> {
    /// New rows of each sequence, packed.
    pub segments: Segments<B>,
    /// Absolute position of each new row, `[N]`.
    pub positions: Ids<B>,
    /// Cache slot (`page · page_size + offset`) of each new row, `[N]`.
    pub slots: Ids<B>,
    /// Positions of each sequence after the step, `[B]`.
    pub context_len: Ids<B>,
    /// Pages of each sequence, `[B, max_pages]`, unused entries 0; `max_pages` is a power of two.
    pub block_table: Ids<B>,
    pub max_pages: usize,
    /// Most positions of any sequence after the step.
    pub max_context: usize,
}

impl<B: Memory> AttnPlan<B> {
    /// Lays out one step.
    ///
    /// # Errors
    /// When the backend cannot hold the tables.
    pub fn new(backend: &B, page_size: usize, sequences: &[PlanSequence<'_>]) -> Result<Self> {
        let mut plan = Self {
            segments: Segments::new(backend, &[])?,
            positions: backend.ids(&[])?,
            slots: backend.ids(&[])?,
            context_len: backend.ids(&[])?,
            block_table: backend.ids(&[])?,
            max_pages: 0,
            max_context: 0,
        };
        plan.update(backend, page_size, sequences)?;
        Ok(plan)
    }

    /// Lays out another step in the memory that is there, where it suffices.
    ///
    /// # Errors
    /// As [`AttnPlan::new`].
    pub fn update(
        &mut self,
        backend: &B,
        page_size: usize,
        sequences: &[PlanSequence<'_>],
    ) -> Result<()> {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.new).collect();
        // A power of two, so that the table's shape seldom changes as sequences grow.
        let most = sequences.iter().map(|s| s.pages.len()).max().unwrap_or(0);
        let max_pages = if most == 0 {
            0
        } else {
            most.next_power_of_two()
        };
        let rows = lengths.iter().sum();
        let (mut positions, mut slots) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let mut context_len = Vec::with_capacity(sequences.len());
        let mut block_table = vec![0; sequences.len() * max_pages];
        for (b, s) in sequences.iter().enumerate() {
            let end = s.context + s.new;
            assert!(
                end <= s.pages.len() * page_size,
                "plan: {end} positions in {} pages of {page_size}",
                s.pages.len()
            );
            for position in s.context..end {
                positions.push(position as i32);
                let page = s.pages[position / page_size] as usize;
                slots.push((page * page_size + position % page_size) as i32);
            }
            context_len.push(end as i32);
            for (entry, &page) in block_table[b * max_pages..].iter_mut().zip(s.pages) {
                *entry = page as i32;
            }
        }
        self.max_pages = max_pages;
        self.max_context = context_len.iter().copied().max().unwrap_or(0) as usize;
        self.segments.update(backend, &lengths)?;
        backend.upload_ids(&positions, &mut self.positions)?;
        backend.upload_ids(&slots, &mut self.slots)?;
        backend.upload_ids(&context_len, &mut self.context_len)?;
        backend.upload_ids(&block_table, &mut self.block_table)
    }
}

/// Attention ops.
pub trait Attention: Dense {
    /// Keys and values of all layers in pages.
    type KvCache: Send + Sync;

    /// A zeroed cache.
    fn alloc_kv(&self, shape: KvShape) -> Result<Self::KvCache>;

    /// Rotates queries and keys of `qkv [N, (Hq + 2 Hk) · Dh]` (rotary embedding, halves layout as Qwen2, base `theta`), stores keys and
    /// values at the plan's slots of `layer`, and writes the rotated queries to `q [N, Hq · Dh]`.
    fn rope_store_kv(
        &self,
        qkv: &Tensor<Self>,
        plan: &AttnPlan<Self>,
        theta: f32,
        kv: &mut Self::KvCache,
        layer: usize,
        q: &mut Tensor<Self>,
    ) -> Result<()>;

    /// Causal grouped-query attention over the cache, prefill and decode alike: `q, out [N, Hq · Dh]`, scale `1/√Dh`.
    fn paged_attention(
        &self,
        q: &Tensor<Self>,
        kv: &Self::KvCache,
        layer: usize,
        plan: &AttnPlan<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// Multi-head self-attention inside each sequence, each under its own mask, scale `1/√Dh`: `qkv [N, 3 · H·Dh]`.
    ///
    /// `queries` says how many of each sequence's last rows are wanted: `out [Nq, H·Dh]`, packed. The rows before them are
    /// keys and values only; `segments` itself wants all. What a row sees alone decides its value, so rows of a chunk do
    /// not change as a sequence grows.
    fn attention(
        &self,
        qkv: &Tensor<Self>,
        heads: usize,
        segments: &Segments<Self>,
        queries: &Segments<Self>,
        rel: Option<RelPos<'_, Self>>,
        masks: &Masks<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// The same of `qkv = x Wᵀ + b`: `x [N, K]`. `qkv [N, 3 · H·Dh]` is for that product, and afterwards holds anything.
    fn self_attention(
        &self,
        (x, w): (&Tensor<Self>, &Self::Linear),
        qkv: &mut Tensor<Self>,
        heads: usize,
        segments: &Segments<Self>,
        queries: &Segments<Self>,
        rel: Option<RelPos<'_, Self>>,
        masks: &Masks<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        self.linear(x, w, Epilogue::None, qkv)?;
        self.attention(qkv, heads, segments, queries, rel, masks, out)
    }
}
