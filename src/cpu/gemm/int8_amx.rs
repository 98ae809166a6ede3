//! Products with int8 weights in tile registers.
//!
//! In: a block of rows rounded to 16 bits, and panels `[K / 4][16][4]`, their depth rounded up to whole steps. Out: the same bytes as the other kernels':
//! a 16-bit integer is `256 · high + low`, so its product is that of a signed and of an unsigned byte, both exact over a stretch.

use super::amx::{Ahead, LINE};
use super::int8::SEGMENT;
use super::tiles::{LANES, ROWS, Shape, Tiles};
use super::{Accumulators, Isa, MAX_PANELS, WIDTH};
use crate::cpu::buffer::Reused;
use crate::cpu::isa::per_isa;

/// Values of the depth that one step takes.
pub(super) const STEP: usize = 4 * LANES;
const _: () = assert!(SEGMENT.is_multiple_of(STEP));

/// Rows of a block as bytes, `[K / SEGMENT][rows][SEGMENT]`.
#[derive(Default)]
pub(super) struct Halves {
    high: Reused<i8>,
    low: Reused<u8>,
    rows: usize,
    /// Rows of a register, and of all of them: those past the block's last hold anything.
    per_tile: usize,
    padded: usize,
}

impl Halves {
    /// Takes `rows` rows apart, `[K / SEGMENT][rows][SEGMENT]`, `depth` values each and zeros up to a whole step.
    pub(super) fn load(&mut self, isa: Isa, values: &[i16], rows: usize) {
        self.rows = rows;
        self.per_tile = rows.clamp(1, ROWS);
        self.padded = rows.next_multiple_of(self.per_tile);
        let segment = rows * SEGMENT;
        let segments = values.len().checked_div(segment).unwrap_or(0);
        self.high.grow(segments * self.padded * SEGMENT);
        self.low.grow(segments * self.padded * SEGMENT);
        for i in 0..segments {
            let from = &values[i * segment..][..segment];
            let to = i * self.padded * SEGMENT;
            let (high, low) = (&mut self.high[to..], &mut self.low[to..]);
            split(isa, from, &mut high[..segment], &mut low[..segment]);
        }
    }

    /// `acc [panel][part] = part · panel` for panels of `size` weights: so many rows from `first` on, a whole register's; `scales` is `[K / SEGMENT][rows]`.
    pub(super) fn multiply(
        &self,
        (tiles, ahead, isa): (&mut impl Tiles, &mut Ahead, Isa),
        (scales, (first_row, count_rows)): (&[f32], (usize, usize)),
        (b, size): (&[i8], usize),
        acc: &mut Accumulators,
    ) {
        assert!(size.is_multiple_of(STEP * WIDTH) && b.len().is_multiple_of(size));
        let (depth, count) = (size / WIDTH, b.len() / size);
        let part = first_row..first_row + count_rows;
        assert!(
            count <= MAX_PANELS && part.end <= self.rows && first_row.is_multiple_of(self.per_tile)
        );
        let needed = depth.div_ceil(SEGMENT) * self.padded * SEGMENT;
        assert!(self.high.len() >= needed && self.low.len() >= needed);
        tiles.configure(Shape {
            rows: [self.per_tile; 2],
            words: LANES,
        });
        let mut sums = Sums([[[0; WIDTH]; ROWS]; 4]);
        for panel in (0..count).step_by(2) {
            let two = panel + 1 < count;
            for (segment, first) in (0..depth).step_by(SEGMENT).enumerate() {
                for row in part.clone().step_by(self.per_tile) {
                    let at = (segment * self.padded + row) * SEGMENT;
                    let b = b[panel * size + first * WIDTH..].as_ptr().cast::<u8>();
                    let corner = Corner {
                        high: self.high[at..].as_ptr().cast(),
                        low: self.low[at..].as_ptr(),
                        b: [b, b.wrapping_add(if two { size } else { 0 })],
                        steps: SEGMENT.min(depth - first) / STEP,
                    };
                    // SAFETY: the assertions above cover every row and both panels of the segment; a register fits into its sums.
                    unsafe { corner.run((tiles, ahead), two, &mut sums) }
                    let rows = row..(row + self.per_tile).min(part.end);
                    let scales = &scales[segment * self.rows..][rows.clone()];
                    let acc = acc[panel..(panel + 2).min(count)].iter_mut();
                    for (acc, [high, low]) in acc.zip(sums.0.as_chunks::<2>().0) {
                        let acc = &mut acc[row - first_row..][..rows.len()];
                        add(isa, (high, low), scales, segment == 0, acc);
                    }
                }
            }
        }
    }
}

/// Sums of the high and of the low bytes by one panel, and by the next.
#[repr(align(64))]
struct Sums([[[i32; WIDTH]; ROWS]; 4]);

/// One register of rows in one segment, and its weights.
struct Corner {
    high: *const u8,
    low: *const u8,
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
            tiles.zero::<2>();
            tiles.zero::<3>();
            let (mut high, mut low, [mut left, mut right]) = (self.high, self.low, self.b);
            for _ in 0..self.steps {
                ahead.step([left, right], two);
                tiles.load::<6>(left, LINE);
                tiles.load::<4>(high, SEGMENT);
                tiles.dot_signed::<0, 4, 6>();
                tiles.load::<5>(low, SEGMENT);
                tiles.dot_unsigned::<1, 5, 6>();
                if two {
                    tiles.load::<7>(right, LINE);
                    tiles.dot_signed::<2, 4, 7>();
                    tiles.dot_unsigned::<3, 5, 7>();
                }
                (high, low) = (high.wrapping_add(STEP), low.wrapping_add(STEP));
                left = left.wrapping_add(STEP * WIDTH);
                right = right.wrapping_add(STEP * WIDTH);
            }
            let [first, second, third, fourth] = sums.0.each_mut();
            tiles.store::<0>(first.as_mut_ptr().cast(), LINE);
            tiles.store::<1>(second.as_mut_ptr().cast(), LINE);
            if two {
                tiles.store::<2>(third.as_mut_ptr().cast(), LINE);
                tiles.store::<3>(fourth.as_mut_ptr().cast(), LINE);
            }
        }
    }
}

per_isa! {
    /// `x = 256 · high + low`
    fn split<FMA>(x: &[i16], high: &mut [i8], low: &mut [u8]) {
        for ((x, high), low) in x.iter().zip(high).zip(low) {
            (*high, *low) = ((x >> 8) as i8, *x as u8);
        }
    }
}

per_isa! {
    /// `acc += scale · (256 · high + low)` for every row, in two roundings, as in the other kernels; the first segment's is `0 + …`.
    fn add<FMA>(sums: (&[[i32; WIDTH]; ROWS], &[[i32; WIDTH]; ROWS]), scales: &[f32], first: bool, acc: &mut [[f32; WIDTH]]) {
        let rows = sums.0.iter().zip(sums.1).zip(scales);
        for (((high, low), scale), acc) in rows.zip(acc) {
            for j in 0..WIDTH {
                let old = if first { 0.0 } else { acc[j] };
                acc[j] = old + scale * ((high[j] << 8) + low[j]) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiles::Model;
    use super::super::{BLOCK_ROWS, Isa};
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
            let x: Vec<i16> = (0..segments * rows * SEGMENT)
                .map(|i| (i * 7919) as u16 as i16)
                .collect();
            let b: Vec<i8> = (0..count * depth * WIDTH)
                .map(|i| (i * 89 % 255) as u8 as i8)
                .collect();
            let scales: Vec<f32> = (0..segments * rows).map(|i| 1.0 + i as f32).collect();
            let mut halves = Halves::default();
            halves.load(isa, &x, rows);
            let mut acc = Box::new([[[f32::NAN; WIDTH]; BLOCK_ROWS]; MAX_PANELS]);
            let panels = (&b[..], depth * WIDTH);
            let all = (&scales[..], (0, rows));
            let kernel = (&mut Model::new(), &mut Ahead::Nothing, isa);
            halves.multiply(kernel, all, panels, &mut acc);
            for (panel, b) in b.chunks(depth * WIDTH).enumerate() {
                for (row, column) in (0..rows).flat_map(|r| (0..WIDTH).map(move |c| (r, c))) {
                    let mut expected = 0.0;
                    for segment in 0..segments {
                        let first = segment * SEGMENT;
                        let sum: i32 = (first..depth.min(first + SEGMENT))
                            .map(|k| {
                                let x = x[(segment * rows + row) * SEGMENT + k - first];
                                let w = b[4 * (k / 4 * WIDTH + column) + k % 4];
                                i32::from(x) * i32::from(w)
                            })
                            .sum();
                        expected += scales[segment * rows + row] * sum as f32;
                    }
                    assert_eq!(acc[panel][row][column], expected, "{rows} x {depth}");
                }
            }
        }
    }
}
