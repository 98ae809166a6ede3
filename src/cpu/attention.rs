//! Attention over the paged cache and inside sequences.

use super::reference::attention as reference;
use super::reference::dense::dot;
use super::{Buffer, Cpu, check_shape};
use crate::backend::{Attention, AttnPlan, KvShape, Masks, RelPos, Result};
use crate::tensor::{Segments, Tensor};

/// Keys and values of all layers: `[layers, pages, Hk, page_size, Dh]` each.
pub struct KvCache {
    keys: Buffer,
    values: Buffer,
    shape: KvShape,
}

impl KvCache {
    /// First value of `slot` of `head` in `layer`.
    fn offset(&self, layer: usize, head: usize, slot: usize) -> usize {
        let s = &self.shape;
        let (page, position) = (slot / s.page_size, slot % s.page_size);
        (((layer * s.pages + page) * s.kv_heads + head) * s.page_size + position) * s.head_dim
    }
}

impl Attention for Cpu {
    type KvCache = KvCache;

    fn alloc_kv(&self, shape: KvShape) -> Result<KvCache> {
        let values = shape.values_per_page() / 2 * shape.pages;
        Ok(KvCache {
            keys: Buffer::zeroed(values)?,
            values: Buffer::zeroed(values)?,
            shape,
        })
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
        let (dh, kv_heads) = (kv.shape.head_dim, kv.shape.kv_heads);
        let q_cols = q.cols();
        check_shape!(
            "rope_store_kv",
            qkv.shape(),
            (plan.positions.len(), q_cols + 2 * kv_heads * dh)
        );
        check_shape!("rope_store_kv", q.rows(), qkv.rows());
        for row in 0..qkv.rows() {
            let position = plan.positions.data()[row] as usize;
            let slot = plan.slots.data()[row] as usize;
            let (cos, sin) = reference::rotary(position, theta, dh);
            let (queries, rest) = qkv.row(row).split_at(q_cols);
            let (keys, values) = rest.split_at(kv_heads * dh);
            let out = &mut q.data_mut()[row * q_cols..(row + 1) * q_cols];
            out.copy_from_slice(queries);
            for head in out.chunks_exact_mut(dh) {
                reference::rotate(head, &cos, &sin);
            }
            for h in 0..kv_heads {
                let at = kv.offset(layer, h, slot);
                let key = &mut kv.keys.as_mut_slice()[at..at + dh];
                key.copy_from_slice(&keys[h * dh..(h + 1) * dh]);
                reference::rotate(key, &cos, &sin);
                let value = &mut kv.values.as_mut_slice()[at..at + dh];
                value.copy_from_slice(&values[h * dh..(h + 1) * dh]);
            }
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
        let shape = kv.shape;
        let dh = shape.head_dim;
        let cols = q.cols();
        check_shape!("paged_attention", out.shape(), q.shape());
        check_shape!("paged_attention", q.rows(), plan.positions.len());
        let group = cols / dh / shape.kv_heads;
        for b in 0..plan.segments.count() {
            let table = &plan.block_table.data()[b * plan.max_pages..(b + 1) * plan.max_pages];
            for row in plan.segments.range(b) {
                let count = plan.positions.data()[row] as usize + 1;
                let out = &mut out.data_mut()[row * cols..(row + 1) * cols];
                for (h, out) in out.chunks_exact_mut(dh).enumerate() {
                    let at = |j: usize| {
                        let slot = table[j / shape.page_size] as usize * shape.page_size
                            + j % shape.page_size;
                        let at = kv.offset(layer, h / group, slot);
                        at..at + dh
                    };
                    reference::attend(
                        &q.row(row)[h * dh..(h + 1) * dh],
                        count,
                        |j| &kv.keys.as_slice()[at(j)],
                        |j| &kv.values.as_slice()[at(j)],
                        |_| 0.0,
                        out,
                    );
                }
            }
        }
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
        let d = out.cols();
        check_shape!("attention", qkv.shape(), (segments.total(), 3 * d));
        check_shape!("attention", out.rows(), queries.total());
        check_shape!("attention", queries.count(), segments.count());
        check_shape!("attention", d % heads, 0);
        check_shape!("attention", masks.count(), segments.count());
        if let Some(rel) = &rel {
            check_shape!("attention", rel.p.shape(), (2 * rel.center + 1, d));
            assert!(
                segments.longest() <= rel.center + 1,
                "attention: {} rows with positions for {}",
                segments.longest(),
                rel.center + 1
            );
        }
        let dh = d / heads;
        for b in 0..segments.count() {
            let (range, wanted) = (segments.range(b), queries.range(b));
            let Some(past) = range.len().checked_sub(wanted.len()) else {
                panic!("attention: {} of {} rows", wanted.len(), range.len());
            };
            for i in past..range.len() {
                let row = range.start + i;
                let out_row = wanted.start + i - past;
                for h in 0..heads {
                    let head = h * dh..(h + 1) * dh;
                    let mut q = qkv.row(row)[head.clone()].to_vec();
                    let mut q_position = q.clone();
                    if let Some(rel) = &rel {
                        for e in 0..dh {
                            q[e] += rel.u.data()[h * dh + e];
                            q_position[e] += rel.v.data()[h * dh + e];
                        }
                    }
                    let at = h * dh;
                    reference::attend(
                        &q,
                        masks.get(b).end(i, range.len()),
                        |j| &qkv.row(range.start + j)[d + at..d + at + dh],
                        |j| &qkv.row(range.start + j)[2 * d + at..2 * d + at + dh],
                        |j| {
                            rel.as_ref().map_or(0.0, |rel| {
                                let p = rel.p.row(rel.center + j - i);
                                dot(&q_position, &p[head.clone()])
                            })
                        },
                        &mut out.data_mut()[out_row * d..(out_row + 1) * d][head.clone()],
                    );
                }
            }
        }
        Ok(())
    }
}
