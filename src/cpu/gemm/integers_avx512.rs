//! Products in integers with AVX-512: how rows lie, one after the other or together, and which stretch of which panels its kernel takes at once.

use std::ops::Range;

use super::integers::{Rows, SEGMENT, Whole};
use super::{Accumulators, Call, Input, Isa, Level, Target, WIDTH, avx512, interleaved, kinds};

/// Bytes of a panel's block where several tiles take turns at it: it stays in the first-level cache with its input.
const BLOCK_BYTES: usize = 8192;

/// What AVX-512 multiplies integers by.
type Weights<V> = <<V as Whole>::Kind as kinds::Kind>::W;

impl<V: Whole> Rows<V> {
    /// Values of a word.
    const WORD: usize = 4 / size_of::<V>();

    /// Whether products take the rows laid together.
    pub(super) fn lies_together(&self, isa: Isa) -> bool {
        isa.level() == Level::Avx512
            && !isa.has_tiles()
            && self.count > interleaved::strided_rows(isa)
    }

    /// Rows and panels of a tile of rows that lie together.
    fn tile(&self, isa: Isa) -> (usize, usize) {
        let rows = interleaved::rows_per_tile(isa, self.count);
        (rows, interleaved::panels_per_tile(isa, rows))
    }

    /// Calls `lay(self, first, rows, segment, out)` for the tiles of rows and the stretches of each, with room for their words.
    fn each_tile(
        &mut self,
        isa: Isa,
        mut lay: impl FnMut(&mut Self, Range<usize>, usize, &mut [V::Word]),
    ) {
        let words = SEGMENT / Self::WORD;
        let length = self.depth.div_ceil(SEGMENT) * words;
        let mut together = std::mem::take(&mut self.together);
        together.resize(self.count * length, bytemuck::Zeroable::zeroed());
        let (per_tile, _) = self.tile(isa);
        for first in (0..self.count).step_by(per_tile.max(1)) {
            let rows = per_tile.min(self.count - first);
            let tile = &mut together[first * length..][..rows * length];
            for (segment, out) in tile.chunks_exact_mut(rows * words).enumerate() {
                lay(self, first..first + rows, segment, out);
            }
        }
        self.together = together;
    }

    /// `acc [panel][rows] = rows · panel` for `count` panels of `size` weights.
    pub(super) fn multiply_wide(
        &self,
        isa: Isa,
        b: &[Weights<V>],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        self.check_depth(size);
        if self.depth == 0 {
            acc[..count].as_flattened_mut().fill([0.0; WIDTH]);
        } else if self.lies_together(isa) {
            self.multiply_together(isa, b, (count, size), acc);
        } else {
            self.multiply_strided(isa, b, (count, size), acc);
        }
    }

    /// Panels that are `size` weights apart have those of the depth and, where they are parts of longer ones, more.
    pub(super) fn check_depth(&self, size: usize) {
        let depth = self.depth.next_multiple_of(V::DEPTH);
        assert!(size >= depth * WIDTH, "gemm: a panel's depth");
    }

    /// All panels and the whole depth at once.
    fn multiply_strided(
        &self,
        isa: Isa,
        b: &[Weights<V>],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        let call = Call {
            a: &self.values[..],
            row_stride: SEGMENT,
            rows: self.count,
            depth: self.depth.next_multiple_of(V::DEPTH),
            panel_stride: size,
            panels: count,
            fresh: true,
        };
        let stretches = avx512::Stretches {
            scales: &self.scales,
            offsets: &self.offsets,
            depth: SEGMENT,
            apart: self.places * SEGMENT,
        };
        let b = avx512::Side::strided(b, count, size, count * size);
        let out = Target::accumulators(acc);
        avx512::run::<V::Kind>(isa, &call, Some(stretches), b, out);
    }

    /// The same of rows that lie together.
    fn multiply_together(
        &self,
        isa: Isa,
        b: &[Weights<V>],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        let (per_tile, at_once) = self.tile(isa);
        let depth = self.depth.next_multiple_of(V::DEPTH);
        let deep = BLOCK_BYTES / (WIDTH * size_of::<Weights<V>>());
        let (block, step) = interleaved::blocks::<Weights<V>>(isa, self.count, depth, deep);
        assert!(
            block == depth || block.is_multiple_of(SEGMENT),
            "gemm: a block ends inside a segment"
        );
        for panel in (0..count).step_by(step) {
            let panels = step.min(count - panel);
            for first in (0..depth).step_by(block) {
                let done = first / SEGMENT * self.count;
                let (last, depth) = (first + block >= depth, block.min(depth - first));
                let x = interleaved::Interleaved {
                    values: match self.count {
                        1 => &self.values,
                        _ => bytemuck::cast_slice(&self.together),
                    },
                    rows: self.count,
                    per_tile,
                    at_once,
                    row_length: self.depth.next_multiple_of(SEGMENT),
                    first,
                    depth,
                };
                let stretches = avx512::Stretches {
                    scales: &self.scales[done..],
                    offsets: &self.offsets[done..],
                    depth: SEGMENT,
                    apart: 0,
                };
                let next = match last {
                    false => depth * WIDTH,
                    true => panels * size - first * WIDTH,
                };
                let b = &b[panel * size + first * WIDTH..];
                let b = avx512::Side::strided(b, panels, size, next);
                let out = Target::accumulators(&mut acc[panel..]);
                let (b, out) = ((b, panels), (out, first == 0));
                avx512::run_interleaved::<V::Kind>(isa, x, Some(stretches), b, out);
            }
        }
    }

    /// Rounds all rows, which are those of `x` from `x.values[first]` on: at once laid together where that is how they are multiplied.
    pub(super) fn fill_wide(&mut self, isa: Isa, x: &Input<'_>, first: usize) {
        if x.taps != 1 || self.count == 1 || !self.lies_together(isa) {
            self.fill(isa, x, first);
            return self.lay_together(isa);
        }
        self.each_tile(isa, |this, tile, segment, out| {
            let done = segment * SEGMENT;
            let values = &x.values[first + tile.start * x.row_stride + done..];
            let (length, rows) = (SEGMENT.min(this.depth - done), tile.len());
            let place = segment * this.count + tile.start;
            let scales = &mut this.scales[place..place + rows];
            let offsets = &mut this.offsets[place..place + rows];
            let from = (values, x.row_stride);
            V::round_rows(isa, from, length, (scales, offsets), (out, rows));
        });
    }

    /// Lays rows together that are rounded, where that is how they are multiplied. A row by itself lies as it does anyway.
    fn lay_together(&mut self, isa: Isa) {
        if self.count == 1 || !self.lies_together(isa) {
            return;
        }
        let words = SEGMENT / Self::WORD;
        self.each_tile(isa, |this, tile, segment, out| {
            let values: &[V::Word] = bytemuck::cast_slice(&this.values);
            let x = &values[(segment * this.places + tile.start) * words..];
            avx512::interleave(isa, x, words, tile.len(), out);
        });
    }
}
