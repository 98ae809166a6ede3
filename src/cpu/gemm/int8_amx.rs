//! Products with int8 weights in tile registers.
//!
//! In: a block of rows rounded to int8, and panels `[K / 4][16][4]` with 128 added, their depth rounded up to whole steps. Out: the same bytes as the other
//! kernels'.

use super::amx::{Ahead, LINE};
use super::integers::SEGMENT;
use super::panels::FOURS_DEPTH;
use super::tiles::{LANES, ROWS, Shape, Tiles};
use super::{Accumulators, Isa, MAX_PANELS, WIDTH};
use crate::cpu::isa::per_isa;

/// Values of the depth that one step takes.
const STEP: usize = 4 * LANES;
const _: () = assert!(SEGMENT.is_multiple_of(STEP) && FOURS_DEPTH == STEP);

/// Rows of a register, of a block of so many.
pub(super) fn rows_per_tile(rows: usize) -> usize {
    rows.clamp(1, ROWS)
}

/// Rounded rows of a block.
#[derive(Clone, Copy)]
pub(super) struct Rounded<'a> {
    /// `[K / SEGMENT][rows][SEGMENT]`, rows up to whole registers, depth filled up with zeros. Fastest where it begins on a cache line.
    pub(super) values: &'a [i8],
    /// `[K / SEGMENT][rows]`
    pub(super) scales: &'a [f32],
    /// What sums begin with, `[K / SEGMENT][rows]`.
    pub(super) offsets: &'a [i32],
    pub(super) rows: usize,
}

impl Rounded<'_> {
    /// `acc [panel][part] = part · panel` for panels of `size` weights: so many rows from `first` on, a whole register's.
    pub(super) fn multiply(
        self,
        (tiles, ahead, isa): (&mut impl Tiles, &mut Ahead, Isa),
        (first_row, count_rows): (usize, usize),
        (b, size): (&[u8], usize),
        acc: &mut Accumulators,
    ) {
        assert!(size.is_multiple_of(STEP * WIDTH) && b.len().is_multiple_of(size));
        let (depth, count) = (size / WIDTH, b.len() / size);
        let part = first_row..first_row + count_rows;
        let per_tile = rows_per_tile(self.rows);
        let padded = self.rows.next_multiple_of(per_tile);
        assert!(count <= MAX_PANELS && part.end <= self.rows);
        assert!(first_row.is_multiple_of(per_tile));
        assert!(self.values.len() >= depth.div_ceil(SEGMENT) * padded * SEGMENT);
        tiles.configure(Shape {
            rows: [per_tile; 2],
            words: LANES,
        });
        let mut sums = Sums([[[0; WIDTH]; ROWS]; 2]);
        for panel in (0..count).step_by(2) {
            let two = panel + 1 < count;
            for (segment, first) in (0..depth).step_by(SEGMENT).enumerate() {
                for row in part.clone().step_by(per_tile) {
                    let at = (segment * padded + row) * SEGMENT;
                    let b = b[panel * size + first * WIDTH..].as_ptr();
                    let corner = Corner {
                        x: self.values[at..].as_ptr().cast(),
                        b: [b, b.wrapping_add(if two { size } else { 0 })],
                        steps: SEGMENT.min(depth - first) / STEP,
                    };
                    // SAFETY: the assertions above cover every row and both panels of the segment; a register fits into its sums.
                    unsafe { corner.run((tiles, ahead), two, &mut sums) }
                    let rows = row..(row + per_tile).min(part.end);
                    let of_segment = segment * self.rows;
                    let rows_of_segment = of_segment + rows.start..of_segment + rows.end;
                    let scales = &self.scales[rows_of_segment.clone()];
                    let offsets = &self.offsets[rows_of_segment];
                    let acc = acc[panel..(panel + 2).min(count)].iter_mut();
                    for (acc, sums) in acc.zip(&sums.0) {
                        let acc = &mut acc[row - first_row..][..rows.len()];
                        add(isa, sums, (scales, offsets), segment == 0, acc);
                    }
                }
            }
        }
    }
}

/// Sums by one panel, and by the next.
#[repr(align(64))]
struct Sums([[[i32; WIDTH]; ROWS]; 2]);

/// One register of rows in one segment, and its weights.
struct Corner {
    x: *const u8,
    b: [*const u8; 2],
    steps: usize,
}

impl Corner {
    /// One or two panels.
    ///
    /// # Safety
    /// All of the input and the weights must be there, in the shape that is set.
    unsafe fn run(
        &self,
        (tiles, ahead): (&mut impl Tiles, &mut Ahead),
        two: bool,
        sums: &mut Sums,
    ) {
        // SAFETY: by the caller's promise; a register is no larger than its sums.
        unsafe {
            tiles.zero::<0>();
            tiles.zero::<1>();
            let (mut x, [mut left, mut right]) = (self.x, self.b);
            for _ in 0..self.steps {
                ahead.step([left, right], two);
                tiles.load::<4>(x, SEGMENT);
                tiles.load::<6>(left, LINE);
                tiles.dot_bytes::<0, 4, 6>();
                if two {
                    tiles.load::<7>(right, LINE);
                    tiles.dot_bytes::<1, 4, 7>();
                }
                x = x.wrapping_add(STEP);
                left = left.wrapping_add(STEP * WIDTH);
                right = right.wrapping_add(STEP * WIDTH);
            }
            let [first, second] = sums.0.each_mut();
            tiles.store::<0>(first.as_mut_ptr().cast(), LINE);
            if two {
                tiles.store::<1>(second.as_mut_ptr().cast(), LINE);
            }
        }
    }
}

per_isa! {
    /// `acc += scale · (offset + sum)` for every row, in one rounding, as in the other kernels; the first segment's is `0 + …`.
    fn add<FMA>(sums: &[[i32; WIDTH]; ROWS], of_rows: (&[f32], &[i32]), first: bool, acc: &mut [[f32; WIDTH]]) {
        let rows = sums.iter().zip(of_rows.0).zip(of_rows.1);
        for (((sums, scale), offset), acc) in rows.zip(acc) {
            for j in 0..WIDTH {
                let old = if first { 0.0 } else { acc[j] };
                acc[j] = scale.mul_add((offset + sums[j]) as f32, old);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::panels::ADDED;
    use super::super::tiles::Model;
    use super::super::{BLOCK_PANELS, BLOCK_ROWS, Isa};
    use super::*;

    /// The model of the instructions and plain integers say the same.
    #[test]
    fn products_by_the_model_of_the_instructions() {
        let isa = Isa::PORTABLE;
        for (rows, depth, count) in [
            (1usize, 64usize, 1),
            (5, 256, 2),
            (16, 320, 3),
            (19, 576, 4),
        ] {
            let segments = depth.div_ceil(SEGMENT);
            let padded = rows.next_multiple_of(rows_per_tile(rows));
            let values: Vec<i8> = (0..segments * padded * SEGMENT)
                .map(|i| (i * 7919 % 255) as u8 as i8)
                .collect();
            let b: Vec<u8> = (0..count * depth * WIDTH)
                .map(|i| (i * 89 % 255) as u8)
                .collect();
            let x = |row: usize, k: usize| {
                i32::from(values[(k / SEGMENT * padded + row) * SEGMENT + k % SEGMENT])
            };
            let of_rows = || (0..segments).flat_map(|s| (0..rows).map(move |row| (s, row)));
            let scales: Vec<f32> = (0..segments * rows).map(|i| 1.0 + i as f32).collect();
            let offsets: Vec<i32> = of_rows()
                .map(|(s, row)| {
                    let ks = s * SEGMENT..depth.min((s + 1) * SEGMENT);
                    -i32::from(ADDED) * ks.map(|k| x(row, k)).sum::<i32>()
                })
                .collect();
            let rounded = Rounded {
                values: &values,
                scales: &scales,
                offsets: &offsets,
                rows,
            };
            let mut acc = Box::new([[[f32::NAN; WIDTH]; BLOCK_ROWS]; BLOCK_PANELS]);
            let kernel = (&mut Model::new(), &mut Ahead::Nothing, isa);
            rounded.multiply(kernel, (0, rows), (&b[..], depth * WIDTH), &mut acc);
            for (panel, b) in b.chunks(depth * WIDTH).enumerate() {
                for (row, column) in (0..rows).flat_map(|r| (0..WIDTH).map(move |c| (r, c))) {
                    let mut expected = 0.0f32;
                    for segment in 0..segments {
                        let first = segment * SEGMENT;
                        let sum: i32 = (first..depth.min(first + SEGMENT))
                            .map(|k| {
                                let w = b[4 * (k / 4 * WIDTH + column) + k % 4];
                                x(row, k) * (i32::from(w) - i32::from(ADDED))
                            })
                            .sum();
                        expected = scales[segment * rows + row].mul_add(sum as f32, expected);
                    }
                    assert_eq!(acc[panel][row][column], expected, "{rows} x {depth}");
                }
            }
        }
    }
}
