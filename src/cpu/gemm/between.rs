//! Products of activations with each other in 16-bit integers, as attention makes them. Only for AVX-512.
//!
//! In: rows and panels of integers, `[depth / 2][16][2]`, `stride` apart. Out: the sums of each panel, row by row, without the scales of its columns.

use super::integers::{Rows, SEGMENT, Whole};
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
    rows: Rows<i16>,
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
        self.rows.take_fours(isa.loads_one_operand());
        self.rows.load(isa, (0, self.loaded), x, first, count);
    }

    /// Takes `count` rows of `depth` integers, each of which `fill` writes.
    pub(crate) fn fill(
        &mut self,
        isa: Isa,
        (count, depth): (usize, usize),
        mut fill: impl FnMut(usize, RoundedRow<'_>),
    ) {
        assert!(count <= MOST_ROWS, "gemm: rows of a block");
        let rows = &mut self.rows;
        rows.take_fours(isa.loads_one_operand());
        rows.begin(isa, count, depth);
        for i in 0..count {
            let row = RoundedRow {
                values: &mut rows.values[i * STRETCH..],
                apart: rows.places * STRETCH,
                scales: &mut rows.scales[i..],
                step: count,
            };
            fill(i, row);
        }
        rows.lay_together(isa);
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
            self.rows.multiply_wide(isa, b, (count, stride), acc);
            for (panel, sums) in acc[..count].iter().enumerate() {
                each(first + panel, &sums[..self.rows.count]);
            }
        }
    }
}

/// Largest integer of a column of so many values: products with rows must not overflow.
pub(crate) fn largest_of_column(depth: usize) -> f32 {
    let most = i32::MAX / i32::from(i16::LARGEST) / depth.clamp(1, STRETCH) as i32;
    most.min(i16::MAX.into()) as f32
}
