//! Products of activations with each other in 16-bit integers, as attention makes them. Only for AVX-512.
//!
//! In: rows and panels of integers, `[depth / 2][16][2]`, `stride` apart. Out: the sums of each panel, row by row, without the scales of its columns.

use super::integers::{SEGMENT, Whole};
use super::words::Words;
use super::{Aligned, BLOCK_ROWS, Input, Isa, MAX_PANELS, WIDTH};

/// Most rows of a product.
pub(crate) const MOST_ROWS: usize = BLOCK_ROWS;
/// Values of a row that share a scale.
pub(crate) const STRETCH: usize = SEGMENT;
/// What the largest of them is rounded to.
pub(crate) const LARGEST: f32 = i16::LARGEST as f32;

/// Rows that are multiplied by one set of panels after the other.
#[derive(Default)]
pub(crate) struct Between {
    words: Words<i16>,
    rows: usize,
    /// Some rows as they are written, `[stretches][16][STRETCH]`.
    written: Vec<i16>,
    acc: Box<Aligned>,
    loaded: usize,
}

/// Where a row of integers goes: its stretches, `apart` values apart, and their scales, `step` apart.
pub(crate) struct RoundedRow<'a> {
    pub(crate) values: &'a mut [i16],
    pub(crate) apart: usize,
    pub(crate) scales: &'a mut [f32],
    pub(crate) step: usize,
}

impl Between {
    /// Rounds `count` rows from `x.values[first]` on.
    pub(crate) fn load(&mut self, isa: Isa, x: &Input<'_>, first: usize, count: usize) {
        assert!(count <= MOST_ROWS, "gemm: rows of a block");
        self.loaded += 1;
        self.rows = count;
        self.words.load(isa, (0, self.loaded), x, (first, count));
    }

    /// Takes `count` rows of `depth` integers, each of which `fill` writes.
    pub(crate) fn fill(
        &mut self,
        isa: Isa,
        (count, depth): (usize, usize),
        mut fill: impl FnMut(usize, RoundedRow<'_>),
    ) {
        assert!(count <= MOST_ROWS, "gemm: rows of a block");
        self.rows = count;
        self.words.begin_layer(count, depth);
        let stretches = depth.div_ceil(STRETCH);
        self.written.resize(stretches * WIDTH * STRETCH, 0);
        for first in (0..count).step_by(WIDTH) {
            let rows = WIDTH.min(count - first);
            for i in 0..rows {
                let (scales, step) = self.words.scales_of(first + i);
                let row = RoundedRow {
                    values: &mut self.written[i * STRETCH..],
                    apart: WIDTH * STRETCH,
                    scales,
                    step,
                };
                fill(first + i, row);
            }
            for (i, stretch) in self.written.chunks_exact(WIDTH * STRETCH).enumerate() {
                self.words.lay(isa, i, (first, rows), stretch);
            }
        }
    }

    /// Calls `each(panel, sums)` for all panels in turn, with the sums of all rows.
    pub(crate) fn multiply(
        &mut self,
        isa: Isa,
        b: &[i16],
        (panels, stride): (usize, usize),
        mut each: impl FnMut(usize, &[[f32; WIDTH]]),
    ) {
        let acc = &mut self.acc.0;
        for first in (0..panels).step_by(MAX_PANELS) {
            let (count, b) = (MAX_PANELS.min(panels - first), &b[first * stride..]);
            self.words.multiply(isa, self.rows, (b, stride, count), acc);
            for (panel, sums) in acc[..count].iter().enumerate() {
                each(first + panel, &sums[..self.rows]);
            }
        }
    }
}

/// Largest integer of a column of so many values: products with rows must not overflow.
pub(crate) fn largest_of_column(depth: usize) -> f32 {
    let most = i32::MAX / i32::from(i16::LARGEST) / depth.clamp(1, STRETCH) as i32;
    most.min(i16::MAX.into()) as f32
}
