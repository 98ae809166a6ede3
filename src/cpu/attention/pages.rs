//! Where a block of queries finds its keys and values: pages of the cache, or one sequence packed for the purpose.

use super::super::gemm::WIDTH;
use super::KvCache;

/// Packed keys and values of one head, in pages of `size` positions: keys `[size / 16][Dh][16]`, values `[Dh / 16][size][16]`.
pub(super) struct Pages<'a> {
    pub(super) size: usize,
    source: Source<'a>,
}

enum Source<'a> {
    /// One page that holds everything.
    Single { keys: &'a [f32], values: &'a [f32] },
    Cache {
        kv: &'a KvCache,
        layer: usize,
        head: usize,
        table: &'a [i32],
    },
}

impl<'a> Pages<'a> {
    /// The pages of a sequence in the cache.
    pub(super) fn cached(kv: &'a KvCache, layer: usize, head: usize, table: &'a [i32]) -> Self {
        let source = Source::Cache {
            kv,
            layer,
            head,
            table,
        };
        Self {
            size: kv.shape.page_size,
            source,
        }
    }

    /// Keys of page `page`.
    pub(super) fn keys(&self, page: usize) -> &'a [f32] {
        match self.source {
            Source::Single { keys, .. } => keys,
            Source::Cache {
                kv,
                layer,
                head,
                table,
            } => kv.keys(layer, table[page] as usize, head),
        }
    }

    /// Values of page `page`.
    pub(super) fn values(&self, page: usize) -> &'a [f32] {
        match self.source {
            Source::Single { values, .. } => values,
            Source::Cache {
                kv,
                layer,
                head,
                table,
            } => kv.values(layer, table[page] as usize, head),
        }
    }
}

/// One sequence's keys, values and relative positions of one head; the vectors grow once.
#[derive(Default)]
pub(super) struct Packed {
    keys: Vec<f32>,
    values: Vec<f32>,
    positions: Vec<f32>,
    rows: usize,
}

impl Packed {
    /// Packs `rows` keys and values of `dh` values.
    pub(super) fn pack<'a>(
        &mut self,
        (rows, dh): (usize, usize),
        key: impl Fn(usize) -> &'a [f32],
        value: impl Fn(usize) -> &'a [f32],
    ) {
        self.rows = rows;
        transpose(rows, dh, key, &mut self.keys);
        let panels = dh.div_ceil(WIDTH);
        self.values.clear();
        self.values.resize(panels * rows * WIDTH, 0.0);
        for j in 0..rows {
            for (panel, part) in value(j).chunks(WIDTH).enumerate() {
                self.values[(panel * rows + j) * WIDTH..][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// Packs `rows` relative positions.
    pub(super) fn pack_positions<'a>(
        &mut self,
        rows: usize,
        dh: usize,
        position: impl Fn(usize) -> &'a [f32],
    ) {
        transpose(rows, dh, position, &mut self.positions);
    }

    /// `[rows / 16][Dh][16]`
    pub(super) fn positions(&self) -> &[f32] {
        &self.positions
    }

    /// The sequence as a single page.
    pub(super) fn pages(&self) -> Pages<'_> {
        Pages {
            size: self.rows.max(1),
            source: Source::Single {
                keys: &self.keys,
                values: &self.values,
            },
        }
    }
}

/// `out [rows / 16][dh][16]`, zeros past the last row.
fn transpose<'a>(rows: usize, dh: usize, row: impl Fn(usize) -> &'a [f32], out: &mut Vec<f32>) {
    out.clear();
    out.resize(rows.div_ceil(WIDTH) * dh * WIDTH, 0.0);
    for (panel, out) in out.chunks_exact_mut(dh * WIDTH).enumerate() {
        for column in 0..WIDTH.min(rows - panel * WIDTH) {
            let row = row(panel * WIDTH + column);
            for (out, &v) in out[column..].iter_mut().step_by(WIDTH).zip(row) {
                *out = v;
            }
        }
    }
}
