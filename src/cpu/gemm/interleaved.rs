//! Rows of the input laid together, word by word, as AVX-512 multiplies more than [`strided_rows`] of them.
//!
//! In: rows of f32, of pairs of bf16 or of 16-bit integers, or of fours of int8. Out: tiles of up to 16 rows, each `[words][rows]`, so that a tile reads its input from front to
//! back. A tile of many rows makes more of every weight that it loads and widens; up to 16 rows read each weight once.

#[cfg(test)]
use super::Level;
use super::{Input, Isa, MAX_PANELS, WIDTH, avx512};

/// Rows that a tile of four panels takes as they lie, one after the other.
pub(super) const STRIDED_ROWS: usize = 6;
/// Rows of a tile of two panels.
pub(super) const SQUARE_ROWS: usize = 12;
/// Rows of a tile of one panel.
pub(super) const MOST_ROWS: usize = WIDTH;
/// Rows of a tile of three panels.
const WIDE_ROWS: usize = 8;
/// Bytes of a panel's block that these take turns at: three of them stay in the first-level cache.
const WIDE_BLOCK_BYTES: usize = 8192;

/// Rows of a block's tiles: as even as possible; all of them where one tile takes them.
pub(super) fn rows_per_tile(isa: Isa, rows: usize) -> usize {
    let even = |most| rows.div_ceil(rows.div_ceil(most).max(1));
    match (rows, isa.loads_one_operand()) {
        (_, true) => even(WIDE_ROWS),
        (0..=MOST_ROWS, false) => rows,
        _ => even(SQUARE_ROWS),
    }
}

/// Depth of the blocks at which tiles of three panels take turns, where a panel has rows of `W`.
fn block_of_wide<W>() -> usize {
    WIDE_BLOCK_BYTES / (WIDTH * size_of::<W>())
}

/// Depth of the blocks at which the tiles of `rows` rows take turns, and panels that they take of each, where a panel has `depth` rows of `W` and blocks of two
/// panels or one have `deep`. One tile takes the whole depth.
pub(super) fn blocks<W>(isa: Isa, rows: usize, depth: usize, deep: usize) -> (usize, usize) {
    let per_tile = rows_per_tile(isa, rows);
    let panels = panels_per_tile(isa, per_tile);
    match (rows == per_tile, isa.loads_one_operand()) {
        (true, true) => (depth, panels),
        (true, false) => (depth, MAX_PANELS),
        (false, true) => (block_of_wide::<W>(), panels),
        (false, false) => (deep, panels),
    }
}

/// Rows that blocks are made of: whole tiles.
pub(super) fn rows_of_block(isa: Isa, fit: usize) -> usize {
    let tile = match isa.loads_one_operand() {
        true => WIDE_ROWS,
        false => SQUARE_ROWS,
    };
    // Rows that one tile takes are never parted.
    (fit / tile * tile).max(MOST_ROWS)
}

/// Rows that are taken as they lie.
pub(super) fn strided_rows(isa: Isa) -> usize {
    match isa.reads_panels_in_turn() {
        true => 0,
        false => STRIDED_ROWS,
    }
}

/// Panels of a tile of so many rows.
pub(super) fn panels_per_tile(isa: Isa, rows: usize) -> usize {
    match rows {
        0..=STRIDED_ROWS if isa.reads_panels_in_turn() => 1,
        0..=WIDE_ROWS if isa.loads_one_operand() => 3,
        0..=SQUARE_ROWS => 2,
        _ => 1,
    }
}

/// A stretch of the depth of rows that lie together, tile after tile of `[words][rows of the tile]`.
#[derive(Clone, Copy)]
pub(super) struct Interleaved<'a, X> {
    pub(super) values: &'a [X],
    pub(super) rows: usize,
    pub(super) per_tile: usize,
    /// Panels that a tile takes at once.
    pub(super) at_once: usize,
    /// Values of a row.
    pub(super) row_length: usize,
    /// The stretch, in values.
    pub(super) first: usize,
    pub(super) depth: usize,
}

/// Lays `rows` rows of `length` words, `stride` words apart, together: `out [tiles][words][rows of the tile]`.
pub(super) fn lay<T: avx512::Word>(
    isa: Isa,
    (x, stride): (&[T], usize),
    (rows, length): (usize, usize),
    out: &mut [T],
) {
    if length == 0 {
        return;
    }
    let per_tile = rows_per_tile(isa, rows);
    for (tile, out) in out[..rows * length]
        .chunks_mut(per_tile * length)
        .enumerate()
    {
        let first = tile * per_tile;
        avx512::interleave(
            isa,
            &x[first * stride..],
            stride,
            per_tile.min(rows - first),
            out,
        );
    }
}

/// A block of rows of f32.
#[derive(Default)]
pub(super) struct Rows {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    values: Vec<f32>,
}

impl Rows {
    /// Lays `rows` rows of the only tap of `x`, from `x.values[first]` on, together, unless the block called `name` is what is here already.
    pub(super) fn load(
        &mut self,
        isa: Isa,
        name: (u64, usize),
        x: &Input<'_>,
        (first, rows): (usize, usize),
    ) -> Interleaved<'_, f32> {
        if self.name != Some(name) {
            self.name = None;
            self.values.resize(rows * x.depth, 0.0);
            lay(
                isa,
                (&x.values[first..], x.row_stride),
                (rows, x.depth),
                &mut self.values,
            );
            self.name = Some(name);
        }
        let per_tile = rows_per_tile(isa, rows);
        Interleaved {
            values: &self.values,
            rows,
            per_tile,
            at_once: panels_per_tile(isa, per_tile),
            row_length: x.depth,
            first: 0,
            depth: x.depth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_every_word_of_every_row() {
        let mut wide = Isa::available();
        wide.retain(|isa| isa.level() == Level::Avx512);
        if wide.is_empty() {
            eprintln!("SKIPPED: no AVX-512 on this machine");
        }
        let rows = [1, 2, 7, 9, 12, 13, 16, 17, 31, 96];
        for (isa, rows) in wide
            .into_iter()
            .flat_map(|isa| rows.map(|rows| (isa, rows)))
        {
            for length in [0, 1, 2, 15, 16, 17, 100] {
                let stride = length + 3;
                let x: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
                let mut out = vec![f32::NAN; rows * length];
                lay(isa, (&x, stride), (rows, length), &mut out);
                let per_tile = rows_per_tile(isa, rows);
                for row in 0..rows {
                    let first = row / per_tile * per_tile;
                    let count = per_tile.min(rows - first);
                    for word in 0..length {
                        let at = first * length + word * count + row - first;
                        assert_eq!(out[at], x[row * stride + word], "{rows} x {length}");
                    }
                }
            }
        }
    }
}
