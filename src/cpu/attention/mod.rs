//! Attention over the paged cache and inside sequences.
//!
//! Both pack keys as `[keys / 16][Dh][16]` and values as `[Dh / 16][keys][16]`, so that scores and weighted sums are products of the kernel that
//! linear layers use. The cache keeps keys and values in f32 or, beside weights that are not f32, rounded to bf16 as they are stored. Where weights of
//! linear layers are not f32 and the CPU multiplies bf16, queries, keys, weights and values are rounded to it, over the cache in pairs, inside sequences in pairs or in
//! tile registers; where AVX-512 does not multiply it, attention inside sequences without positions is of 16-bit integers (`fixed.rs`); else products are of f32, to which the
//! cache's bf16 is widened as it is read. Scores of a block of queries are kept whole: the softmax is exact, not an online one, and
//! a row's sums run over its keys from the first to the last, whatever else is in the block.

mod block;
mod cache;
#[cfg(target_arch = "x86_64")]
mod fixed;
mod inside;
mod operand;
mod pages;

pub use cache::KvCache;
pub(super) use cache::Rotary;

use std::cell::RefCell;

use super::dense::CpuLinear;
use super::gemm::{self, WIDTH};
use super::pool::SharedMut;
use super::{Cpu, Isa, check_shape};
use crate::backend::{Attention, AttnPlan, Dense, Epilogue, KvShape, Masks, RelPos, Result};
use crate::tensor::{Segments, Tensor};
use block::Block;
use cache::Kept;
use inside::{Inside, Projected};
use operand::{Exact, Operands, WidenedRows};
#[cfg(target_arch = "x86_64")]
use operand::{Pairs, WidenedPairs};
use pages::Pages;

thread_local! {
    /// A thread's block of queries over the cache.
    static BLOCK: RefCell<Block<f32>> = RefCell::default();
    /// The same where queries are rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    static ROUNDED_BLOCK: RefCell<Block<u16>> = RefCell::default();
}

/// Query rows (positions times heads of a group) of a block over the cache.
const BLOCK_CACHE_QUERIES: usize = 48;

impl Attention for Cpu {
    type KvCache = KvCache;

    fn alloc_kv(&self, shape: KvShape) -> Result<KvCache> {
        KvCache::new(self.isa, self.options.weights, shape)
    }

    fn rope_store_kv(
        &self,
        qkv: &Tensor<Self>,
        plan: &AttnPlan<Self>,
        theta: f32,
        kv: &mut KvCache,
        layer: usize,
        q: &mut Tensor<Self>,
    ) -> Result<()> {
        let (dh, kv_cols) = (kv.shape.head_dim, kv.shape.kv_heads * kv.shape.head_dim);
        let q_cols = q.cols();
        check_shape!(
            "rope_store_kv",
            qkv.shape(),
            (plan.positions.len(), q_cols + 2 * kv_cols)
        );
        check_shape!("rope_store_kv", q.rows(), qkv.rows());
        let mut rotary = self.rotary();
        rotary.reach(theta, dh, plan.max_context);
        for row in 0..qkv.rows() {
            let (cos, sin) = rotary.at(plan.positions.data()[row] as usize);
            let slot = plan.slots.data()[row] as usize;
            let (queries, rest) = qkv.row(row).split_at(q_cols);
            let (keys, values) = rest.split_at(kv_cols);
            let out = &mut q.data_mut()[row * q_cols..(row + 1) * q_cols];
            for (from, to) in queries.chunks_exact(dh).zip(out.chunks_exact_mut(dh)) {
                cache::rotate(self.isa, from, cos, sin, to);
            }
            kv.store(self.isa, (layer, slot), (keys, values), (cos, sin));
        }
        Ok(())
    }

    fn paged_attention(
        &self,
        q: &Tensor<Self>,
        kv: &KvCache,
        layer: usize,
        plan: &AttnPlan<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let (dh, kv_heads) = (kv.shape.head_dim, kv.shape.kv_heads);
        let cols = q.cols();
        check_shape!("paged_attention", out.shape(), q.shape());
        check_shape!("paged_attention", q.rows(), plan.positions.len());
        let group = cols / dh / kv_heads;
        let per_block = (BLOCK_CACHE_QUERIES / group).max(1);
        let tasks: Vec<(usize, std::ops::Range<usize>)> = (0..plan.segments.count())
            .flat_map(|b| {
                let rows = plan.segments.range(b);
                let starts = rows.clone().step_by(per_block);
                starts.map(move |start| (b, start..(start + per_block).min(rows.end)))
            })
            .collect();
        let job = OverCache {
            q,
            kv,
            layer,
            plan,
            group,
            out: SharedMut::new(out.data_mut()),
        };
        self.pool.run(tasks.len() * kv_heads, |task| {
            let ((b, rows), head) = (&tasks[task / kv_heads], task % kv_heads);
            let part = (*b, rows.clone(), head);
            #[cfg(target_arch = "x86_64")]
            if kv.kept == Kept::Bf16Pairs && self.isa.multiplies_bf16() {
                return ROUNDED_BLOCK
                    .with_borrow_mut(|block| job.block::<Pairs>(self.isa, part, block));
            }
            BLOCK.with_borrow_mut(|block| match kv.kept {
                Kept::F32 => job.block::<Exact>(self.isa, part, block),
                Kept::Bf16 => job.block::<WidenedRows>(self.isa, part, block),
                #[cfg(target_arch = "x86_64")]
                Kept::Bf16Pairs => job.block::<WidenedPairs>(self.isa, part, block),
            });
        });
        Ok(())
    }

    fn attention(
        &self,
        qkv: &Tensor<Self>,
        heads: usize,
        segments: &Segments<Self>,
        queries: &Segments<Self>,
        rel: Option<RelPos<'_, Self>>,
        masks: &Masks<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("attention", qkv.shape(), (segments.total(), 3 * out.cols()));
        let projected = Projected::Whole(qkv);
        let job = Inside::new(projected, heads, (segments, queries), rel, masks, out);
        job.run(self);
        Ok(())
    }

    /// Where layers are computed block by block, a head's queries, keys and values are computed where they are attended to: they stay in a core's cache. The
    /// product takes less time than memory would to carry them away and back.
    fn self_attention(
        &self,
        (x, w): (&Tensor<Self>, &CpuLinear),
        qkv: &mut Tensor<Self>,
        heads: usize,
        segments: &Segments<Self>,
        queries: &Segments<Self>,
        rel: Option<RelPos<'_, Self>>,
        masks: &Masks<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let d = out.cols();
        if !self.works_in_blocks() || !(d / heads).is_multiple_of(WIDTH) {
            self.linear(x, w, Epilogue::None, qkv)?;
            return self.attention(qkv, heads, segments, queries, rel, masks, out);
        }
        let weights = w.weights();
        check_shape!(
            "self_attention",
            x.shape(),
            (segments.total(), weights.panels.k)
        );
        check_shape!("self_attention", weights.panels.count * WIDTH, 3 * d);
        let projected = Projected::ByHead {
            number: gemm::number(),
            x,
            weights,
        };
        let job = Inside::new(projected, heads, (segments, queries), rel, masks, out);
        job.run(self);
        Ok(())
    }
}

/// Attention over the cache, as the threads see it.
struct OverCache<'a> {
    q: &'a Tensor<Cpu>,
    kv: &'a KvCache,
    layer: usize,
    plan: &'a AttnPlan<Cpu>,
    /// Heads of queries that share one of keys.
    group: usize,
    out: SharedMut<'a>,
}

impl OverCache<'_> {
    /// Some rows of sequence `b`, the queries of one head of keys.
    fn block<O: Operands>(
        &self,
        isa: Isa,
        (b, rows, head): (usize, std::ops::Range<usize>, usize),
        block: &mut Block<O::Left>,
    ) {
        let (plan, group, dh) = (self.plan, self.group, self.kv.shape.head_dim);
        let (cols, scale) = (self.q.cols(), 1.0 / (dh as f32).sqrt());
        let columns = head * group * dh..(head + 1) * group * dh;
        let table = &plan.block_table.data()[b * plan.max_pages..(b + 1) * plan.max_pages];
        block.start::<O>(dh);
        for row in rows.clone() {
            let count = plan.positions.data()[row] as usize + 1;
            for q in self.q.row(row)[columns.clone()].chunks_exact(dh) {
                block.push::<O>(isa, q, None, scale, count);
            }
        }
        let pages = Pages::cached(self.kv, self.layer, head, table);
        block.attend::<O>(isa, &pages, None);
        for (i, row) in rows.enumerate() {
            // SAFETY: no two tasks share both a row and a head.
            let to = unsafe { self.out.slice(row * cols + columns.start, group * dh) };
            for (g, to) in to.chunks_exact_mut(dh).enumerate() {
                block.result(i * group + g, to);
            }
        }
    }
}
