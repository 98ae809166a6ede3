//! Rows of the input laid together, word by word, as AVX-512 multiplies more than [`strided_rows`] of them.
//!
//! In: rows of f32, of pairs of bf16 or of fours of int8. Out: tiles of up to 16 rows, each `[words][rows]`, so that a tile reads its input from front to
//! back. A tile of many rows makes more of every weight that it loads and widens; up to 16 rows read each weight once.

#[cfg(test)]
use super::Level;
use super::{Input, Isa, WIDTH, avx512};

/// Rows that a tile of four panels takes as they lie, one after the other.
pub(super) const STRIDED_ROWS: usize = 6;
/// Rows of a tile of two panels.
pub(super) const SQUARE_ROWS: usize = 12;
/// Rows of a tile of one panel.
pub(super) const MOST_ROWS: usize = WIDTH;

/// Rows of a block's tiles: as even as possible; all of them where one tile takes them.
pub(super) fn rows_per_tile(rows: usize) -> usize {
    match rows {
        0..=MOST_ROWS => rows,
        _ => rows.div_ceil(rows.div_ceil(SQUARE_ROWS)),
    }
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
    let per_tile = rows_per_tile(rows);
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
        Interleaved {
            values: &self.values,
            rows,
            per_tile: rows_per_tile(rows),
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
        let Some(isa) = Isa::available()
            .into_iter()
            .find(|isa| isa.level() == Level::Avx512)
        else {
            return eprintln!("SKIPPED: no AVX-512 on this machine");
        };
        for rows in [1, 2, 7, 12, 13, 16, 17, 31, 96] {
            for length in [0, 1, 2, 15, 16, 17, 100] {
                let stride = length + 3;
                let x: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
                let mut out = vec![f32::NAN; rows * length];
                lay(isa, (&x, stride), (rows, length), &mut out);
                let per_tile = rows_per_tile(rows);
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
