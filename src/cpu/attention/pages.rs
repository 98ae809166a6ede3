//! Where a block of queries finds its keys and values: pages of the cache, or one sequence packed for the purpose.

use super::super::Isa;
use super::super::gemm::WIDTH;
use super::KvCache;
use super::operand::{Operands, Rounded};

/// Packed keys and values of one head, in pages of `size` positions: keys `[size / 16][Dh][16]`, values `[Dh / 16][size][16]`, where steps of
/// more than one value are kept together.
pub(super) struct Pages<'a, T> {
    pub(super) size: usize,
    source: Source<'a, T>,
}

enum Source<'a, T> {
    /// One page that holds everything.
    Single {
        keys: &'a [T],
        values: &'a [T],
    },
    Cache(Cached<'a, T>),
}

/// The pages of a sequence in the cache.
struct Cached<'a, T> {
    kv: &'a KvCache,
    layer: usize,
    head: usize,
    table: &'a [i32],
    block: fn(&'a KvCache, Part, usize, usize, usize) -> &'a [T],
}

/// One of the two things that a cache holds.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Keys,
    Values,
}

impl<'a, W: bytemuck::Pod> Pages<'a, W> {
    /// The pages of a sequence in the cache.
    pub(super) fn cached(kv: &'a KvCache, layer: usize, head: usize, table: &'a [i32]) -> Self {
        let source = Source::Cache(Cached {
            kv,
            layer,
            head,
            table,
            block: KvCache::part::<W>,
        });
        Self {
            size: kv.shape.page_size,
            source,
        }
    }
}

impl<'a, T> Pages<'a, T> {
    fn part(&self, part: Part, page: usize) -> &'a [T] {
        match &self.source {
            Source::Single { keys, values } => match part {
                Part::Keys => keys,
                Part::Values => values,
            },
            Source::Cache(c) => (c.block)(c.kv, part, c.layer, c.table[page] as usize, c.head),
        }
    }

    /// Keys of page `page`.
    pub(super) fn keys(&self, page: usize) -> &'a [T] {
        self.part(Part::Keys, page)
    }

    /// Values of page `page`.
    pub(super) fn values(&self, page: usize) -> &'a [T] {
        self.part(Part::Values, page)
    }
}

/// One sequence's keys, values and relative positions of one head; the vectors grow once.
#[derive(Default)]
pub(super) struct Packed<T> {
    keys: Vec<T>,
    values: Vec<T>,
    positions: Vec<T>,
    rows: usize,
    /// One row, rounded.
    row: Vec<T>,
}

impl<T: Rounded> Packed<T> {
    /// Packs `rows` keys and values of `dh` values.
    pub(super) fn pack<'a, O: Operands<Left = T, Right = T>>(
        &mut self,
        isa: Isa,
        (rows, dh): (usize, usize),
        key: impl Fn(usize) -> &'a [f32],
        value: impl Fn(usize) -> &'a [f32],
    ) {
        self.rows = rows;
        transpose::<O, _>(isa, (rows, dh), key, &mut self.keys, &mut self.row);
        let stride = rows.next_multiple_of(O::STEP) * WIDTH;
        self.values.clear();
        self.values
            .resize(dh.div_ceil(WIDTH) * stride, T::default());
        self.row.resize(dh, T::default());
        for j in 0..rows {
            T::round(isa, value(j), &mut self.row);
            for (panel, part) in self.row.chunks(WIDTH).enumerate() {
                let to = &mut self.values[panel * stride + O::place(j, 0)..];
                for (to, &v) in to.iter_mut().step_by(O::STEP).zip(part) {
                    *to = v;
                }
            }
        }
    }

    /// Packs `rows` relative positions.
    pub(super) fn pack_positions<'a, O: Operands<Left = T, Right = T>>(
        &mut self,
        isa: Isa,
        rows: usize,
        dh: usize,
        position: impl Fn(usize) -> &'a [f32],
    ) {
        transpose::<O, _>(
            isa,
            (rows, dh),
            position,
            &mut self.positions,
            &mut self.row,
        );
    }

    /// `[rows / 16][Dh][16]`
    pub(super) fn positions(&self) -> &[T] {
        &self.positions
    }

    /// The sequence as a single page.
    pub(super) fn pages(&self) -> Pages<'_, T> {
        Pages {
            size: self.rows.max(1),
            source: Source::Single {
                keys: &self.keys,
                values: &self.values,
            },
        }
    }
}

/// `out [rows / 16][dh][16]`, zeros past the last row and past an odd depth. `buffer` is for one row.
fn transpose<'a, O: Operands<Left = T, Right = T>, T: Rounded>(
    isa: Isa,
    (rows, dh): (usize, usize),
    row: impl Fn(usize) -> &'a [f32],
    out: &mut Vec<T>,
    buffer: &mut Vec<T>,
) {
    let depth = dh.next_multiple_of(O::STEP);
    out.clear();
    out.resize(rows.div_ceil(WIDTH) * depth * WIDTH, T::default());
    buffer.resize(depth, T::default());
    for (panel, out) in out.chunks_exact_mut(depth * WIDTH).enumerate() {
        for column in 0..WIDTH.min(rows - panel * WIDTH) {
            T::round(isa, row(panel * WIDTH + column), buffer);
            let steps = out[column * O::STEP..].chunks_mut(WIDTH * O::STEP);
            for (out, step) in steps.zip(buffer.chunks_exact(O::STEP)) {
                out[..O::STEP].copy_from_slice(step);
            }
        }
    }
}
