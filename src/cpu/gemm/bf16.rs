//! Rows of the input rounded to bf16, for products of pairs.
//!
//! In: rows of f32 activations. Out: the same to the nearest bf16, where a product finds each row's values, by twos, side by side.

use super::{Input, Isa, Span, avx512};

/// The rows of a block.
#[derive(Default)]
pub(super) struct Rows {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    values: Vec<u16>,
    /// A row whose taps are apart, put together.
    gathered: Vec<f32>,
}

/// Rounded rows as products read them.
#[derive(Clone, Copy)]
pub(super) struct Rounded<'a> {
    pub(super) values: &'a [u16],
    pub(super) row_stride: usize,
    pub(super) taps: usize,
    pub(super) tap_stride: usize,
    pub(super) depth: usize,
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
    ) -> Rounded<'_> {
        let loaded = self.name == Some(name);
        self.name = Some(name);
        if x.depth.is_multiple_of(2) {
            let length = (span.rows - 1) * x.row_stride + (x.taps - 1) * x.tap_stride + x.depth;
            if !loaded {
                self.values.resize(length, 0);
                avx512::round_to_bf16(isa, &x.values[span.input..][..length], &mut self.values);
            }
            return Rounded {
                values: &self.values,
                row_stride: x.row_stride,
                taps: x.taps,
                tap_stride: x.tap_stride,
                depth: x.depth,
            };
        }
        let depth = x.taps * x.depth;
        let stride = depth.next_multiple_of(2);
        if !loaded {
            self.values.clear();
            self.values.resize(span.rows * stride, 0);
            for (row, out) in self.values.chunks_exact_mut(stride).enumerate() {
                let start = span.input + row * x.row_stride;
                self.gathered.clear();
                for tap in 0..x.taps {
                    let values = &x.values[start + tap * x.tap_stride..][..x.depth];
                    self.gathered.extend_from_slice(values);
                }
                avx512::round_to_bf16(isa, &self.gathered, out);
            }
        }
        Rounded {
            values: &self.values,
            row_stride: stride,
            taps: 1,
            tap_stride: 0,
            depth: stride,
        }
    }
}
