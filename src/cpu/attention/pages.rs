//! Where a block of queries finds its keys and values: pages of the cache, or one sequence packed for the purpose.

use super::super::Isa;
use super::super::buffer::Reused;
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

/// One sequence's keys, values and relative positions of one head; the buffers grow once.
#[derive(Default)]
pub(super) struct Packed<T> {
    keys: Reused<T>,
    values: Reused<T>,
    positions: Reused<T>,
    rows: usize,
    /// Some rows, rounded.
    rounded: Reused<T>,
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
        transpose::<O, _>(isa, (rows, dh), key, &mut self.keys, &mut self.rounded);
        let (width, depth) = (dh.next_multiple_of(WIDTH), rows.next_multiple_of(O::WHOLE));
        self.values.grow(width * depth);
        self.rounded.grow(O::STEP * width);
        for first in (0..depth).step_by(O::STEP) {
            for (j, row) in (first..).zip(self.rounded.chunks_exact_mut(width).take(O::STEP)) {
                match j < rows {
                    true => T::round(isa, value(j), row),
                    false => row.fill(T::default()),
                }
            }
            for column in (0..width).step_by(WIDTH) {
                let line = &mut self.values[column * depth + first * WIDTH..][..O::STEP * WIDTH];
                O::lay_rows(&self.rounded[column..O::STEP * width], width, line);
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
        let shape = (rows, dh);
        transpose::<O, _>(isa, shape, position, &mut self.positions, &mut self.rounded);
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

/// `out [rows / 16][dh][16]`, zeros past the last row and up to a whole depth. `buffer` is for 16 rows.
fn transpose<'a, O: Operands<Left = T, Right = T>, T: Rounded>(
    isa: Isa,
    (rows, dh): (usize, usize),
    row: impl Fn(usize) -> &'a [f32],
    out: &mut Reused<T>,
    buffer: &mut Reused<T>,
) {
    let depth = dh.next_multiple_of(O::WHOLE);
    let size = depth * WIDTH;
    out.grow(rows.div_ceil(WIDTH) * size);
    buffer.grow(size);
    for first in (0..rows).step_by(WIDTH) {
        for (j, to) in (first..).zip(buffer.chunks_exact_mut(depth).take(WIDTH)) {
            match j < rows {
                true => T::round(isa, row(j), to),
                false => to.fill(T::default()),
            }
        }
        O::lay_columns(isa, &buffer[..size], &mut out[first * depth..][..size]);
    }
}
