//! Rows of the input rounded to bf16, for products of pairs.
//!
//! In: rows of f32 activations. Out: the same to the nearest bf16, where a product finds each row's values, by twos, side by side; and, where they are
//! to be split, what that leaves of them, to the nearest bf16 too.

use super::{Call, Input, Isa, Span, avx512, interleaved};
use crate::cpu::buffer::Reused;

/// The rows of a block.
#[derive(Default)]
pub(super) struct Rows {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    values: Reused<u16>,
    /// What `values` leave, of rows that are split.
    low: Reused<u16>,
    /// A row whose taps are apart, put together.
    gathered: Vec<f32>,
    /// Which block lies in `together`, and the block, pair by pair.
    together_name: Option<(u64, usize)>,
    together: Vec<[u16; 2]>,
}

/// Rounded rows as products read them.
#[derive(Clone, Copy)]
pub(super) struct Rounded<'a> {
    pub(super) values: &'a [u16],
    /// The low parts of split rows.
    pub(super) low: &'a [u16],
    pub(super) row_stride: usize,
    pub(super) taps: usize,
    pub(super) tap_stride: usize,
    pub(super) depth: usize,
}

/// Depth of a block: 512 KiB of four panels, so that the weights of a call stay in the second-level cache.
const BLOCK_K: usize = 4096;

impl<'a> Rounded<'a> {
    /// The products of `rows` rows from `first` on with so many panels, `stride` weights apart: one for each block of each tap, with the depth at
    /// which it begins.
    pub(super) fn calls(
        self,
        (first, rows): (usize, usize),
        (panels, stride): (usize, usize),
    ) -> impl Iterator<Item = (Call<'a, u16>, usize)> {
        let blocks = (0..self.taps).flat_map(move |tap| {
            let blocks = (0..self.depth).step_by(BLOCK_K);
            blocks.map(move |done| (tap, done))
        });
        blocks.map(move |(tap, done)| {
            let at = tap * self.depth + done;
            let call = Call {
                a: &self.values[first * self.row_stride + tap * self.tap_stride + done..],
                row_stride: self.row_stride,
                rows,
                depth: BLOCK_K.min(self.depth - done),
                panel_stride: stride,
                panels,
                fresh: at == 0,
            };
            (call, at)
        })
    }
}

impl Rows {
    /// Rounds the rows of a block, unless the block called `name` is what is here already.
    ///
    /// Where taps end inside a pair, every row is put together by itself, followed by a zero where its depth is odd; else rows stay as they
    /// lie, one over the other.
    pub(super) fn load(
        &mut self,
        isa: Isa,
        name: (u64, usize),
        x: &Input<'_>,
        span: Span,
        split: bool,
    ) -> Rounded<'_> {
        let round = |x: &[f32], high: &mut Reused<u16>, low: &mut Reused<u16>, first: usize| {
            let end = first + x.len();
            high.grow(end);
            match split {
                true => {
                    low.grow(end);
                    avx512::split_to_bf16(isa, x, &mut high[first..end], &mut low[first..end]);
                }
                false => avx512::round_to_bf16(isa, x, &mut high[first..end]),
            }
        };
        let loaded = self.name == Some(name);
        self.name = Some(name);
        if x.depth.is_multiple_of(2) {
            let length = (span.rows - 1) * x.row_stride + (x.taps - 1) * x.tap_stride + x.depth;
            if !loaded {
                let x = &x.values[span.input..][..length];
                round(x, &mut self.values, &mut self.low, 0);
            }
            return Rounded {
                values: &self.values,
                low: &self.low,
                row_stride: x.row_stride,
                taps: x.taps,
                tap_stride: x.tap_stride,
                depth: x.depth,
            };
        }
        let depth = x.taps * x.depth;
        let stride = depth.next_multiple_of(2);
        if !loaded {
            for row in 0..span.rows {
                let start = span.input + row * x.row_stride;
                self.gathered.clear();
                for tap in 0..x.taps {
                    let values = &x.values[start + tap * x.tap_stride..][..x.depth];
                    self.gathered.extend_from_slice(values);
                }
                self.gathered.resize(stride, 0.0);
                let first = row * stride;
                round(&self.gathered, &mut self.values, &mut self.low, first);
            }
        }
        Rounded {
            values: &self.values,
            low: &self.low,
            row_stride: stride,
            taps: 1,
            tap_stride: 0,
            depth: stride,
        }
    }
    /// The same of rows with one tap, laid together.
    pub(super) fn load_together(
        &mut self,
        isa: Isa,
        name: (u64, usize),
        x: &Input<'_>,
        span: Span,
    ) -> interleaved::Interleaved<'_, u16> {
        let depth = x.depth.next_multiple_of(2);
        if self.together_name != Some(name) {
            self.together_name = None;
            self.together.resize(span.rows * depth / 2, [0; 2]);
            let mut together = std::mem::take(&mut self.together);
            let rows = self.load(isa, name, x, span, false);
            let (pairs, stride) = (rows.values.as_chunks().0, rows.row_stride / 2);
            let shape = (span.rows, depth / 2);
            interleaved::lay(isa, (pairs, stride), shape, &mut together);
            self.together = together;
            self.together_name = Some(name);
        }
        let per_tile = interleaved::rows_per_tile(isa, span.rows);
        interleaved::Interleaved {
            values: self.together.as_flattened(),
            rows: span.rows,
            per_tile,
            at_once: interleaved::panels_per_tile(isa, per_tile),
            row_length: depth,
            first: 0,
            depth,
        }
    }
}
