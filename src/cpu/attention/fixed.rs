//! Attention of one head inside a sequence in 16-bit integers, where AVX-512 multiplies these faster than f32 and does not multiply bf16.
//!
//! A query is rounded with one scale of its own, and so are a key and a value. The softmax is of f32; of a stretch of keys that a query sees, the largest
//! scale of their values is that of the query's weights, each of which is rounded with its own value's part of it. Sums are exact inside a stretch. What
//! keys are that a query does not see does not matter to its result.

use super::super::Isa;
use super::super::buffer::Reused;
use super::super::gemm::{self, Between, Input, RoundedRow, STRETCH, TO_INTEGER, WIDTH};
use super::super::isa::per_isa;
use super::super::math::{exp_of_negative, fma};
use super::block::{LANES, fold, largest_seen};

/// Scores of a block of queries: they stay in the second-level cache with keys and values.
const BLOCK_SCORES: usize = 64 * 1024;
/// Queries of a block but the last are a multiple of this: whole tiles of every kernel.
const TILE_QUERIES: usize = 24;

/// Keys and values of one head, rounded, and what a block of queries needs; the buffers grow once.
#[derive(Default)]
pub(super) struct Fixed {
    rows: usize,
    dh: usize,
    /// `[rows / 16][dh / 2][16][2]`
    keys: Reused<i16>,
    /// Of each key, with the scale of all scores.
    key_scales: Vec<f32>,
    /// `[dh / 16][rows / 2][16][2]`, zeros past the last row up to a whole panel of keys.
    values: Reused<i16>,
    value_scales: Vec<f32>,
    weighing: Weighing,
    product: Between,
    /// `[queries, rows]`, rows padded to whole panels.
    scores: Reused<f32>,
    /// One over the sum of each query's weights.
    inverse: Vec<f32>,
}

/// What weights of a query that sees the first `seen` keys are multiplied by before they are rounded, none for the others, and the scale of each stretch.
#[derive(Default)]
struct Weighing {
    /// None where these are of other keys.
    seen: Option<usize>,
    factors: Vec<f32>,
    scales: Vec<f32>,
}

impl Weighing {
    /// For the first `seen` of these values.
    fn see(&mut self, scales: &[f32], seen: usize) {
        if self.seen == Some(seen) {
            return;
        }
        self.seen = Some(seen);
        self.factors.clear();
        self.scales.clear();
        for scales in scales[..seen].chunks(STRETCH) {
            // NaN where a value is not finite, so that the result is NaN too.
            let larger = |a: f32, &b: &f32| if b > a || b.is_nan() { b } else { a };
            let largest = scales.iter().fold(0.0, larger);
            self.scales.push(largest / gemm::LARGEST);
            let parts = scales.iter().map(|s| s / largest * gemm::LARGEST);
            self.factors.extend(parts);
        }
        self.factors
            .resize(scales.len().next_multiple_of(WIDTH), 0.0);
        self.scales.resize(scales.len().div_ceil(STRETCH), 0.0);
    }
}

impl Fixed {
    /// Rounds and packs `rows` keys and values of `dh` values, which begin at those two places in `x` and lie `stride` values apart.
    pub(super) fn pack(
        &mut self,
        isa: Isa,
        (rows, dh): (usize, usize),
        (x, stride): (&[f32], usize),
        [key, value]: [usize; 2],
    ) {
        (self.rows, self.dh) = (rows, dh);
        self.weighing.seen = None;
        let depth = dh.next_multiple_of(2);
        let places = rows.next_multiple_of(WIDTH);
        self.key_scales.clear();
        self.key_scales.resize(places, 0.0);
        self.keys.grow(places * depth);
        let most = gemm::largest_of_column(dh);
        let scale = 1.0 / (dh as f32).sqrt();
        for first in (0..rows).step_by(WIDTH) {
            let count = WIDTH.min(rows - first);
            let panel = &mut self.keys[first * depth..][..WIDTH * depth];
            if count < WIDTH {
                panel.fill(0);
            }
            let scales = &mut self.key_scales[first..first + count];
            let to = (bytemuck::cast_slice_mut(panel), WIDTH);
            gemm::round_rows(
                isa,
                (&x[first * stride + key..], stride),
                dh,
                most,
                scales,
                to,
            );
            scales.iter_mut().for_each(|s| *s *= scale);
        }
        self.value_scales.clear();
        self.value_scales.resize(rows, 0.0);
        let (panels, length) = (dh.div_ceil(WIDTH), places * WIDTH);
        self.values.grow(panels * length);
        let most = gemm::largest_of_column(STRETCH);
        let row = |j: usize| &x[j * stride + value..][..dh];
        for (pair, scales) in self.value_scales.chunks_mut(2).enumerate() {
            let (first, last) = (2 * pair, 2 * pair + scales.len() - 1);
            let to = (&mut self.values[first * WIDTH..], length);
            gemm::round_pair(isa, [row(first), row(last)], most, scales, to);
        }
        for panel in self.values[..panels * length].chunks_exact_mut(length.max(1)) {
            panel[rows.next_multiple_of(2) * WIDTH..].fill(0);
        }
    }

    /// Queries of a block, of `queries` that are wanted: as many in each as whole tiles allow.
    pub(super) fn block_queries(&self, queries: usize) -> usize {
        let fit = (BLOCK_SCORES / self.rows.max(1)).clamp(TILE_QUERIES, gemm::MOST_ROWS);
        let most = fit / TILE_QUERIES * TILE_QUERIES;
        let even = queries.div_ceil(queries.div_ceil(most).max(1));
        even.next_multiple_of(TILE_QUERIES).max(TILE_QUERIES)
    }

    /// Results of `count` queries, the first of which begins at `first` in `x` and the others `stride` values later each. Of query `i` the first `seen(i)`
    /// keys are seen; `place(i, column, width)` is where `width` of its results go.
    pub(super) fn attend<'o>(
        &mut self,
        isa: Isa,
        (x, stride): (&[f32], usize),
        (first, count): (usize, usize),
        seen: impl Fn(usize) -> usize,
        place: impl Fn(usize, usize, usize) -> &'o mut [f32],
    ) {
        let dh = self.dh;
        let keys = (0..count).map(&seen).max().unwrap_or(0);
        let padded = keys.next_multiple_of(WIDTH);
        self.scores.grow(count * padded);
        let queries = Input {
            values: x,
            row_stride: stride,
            taps: 1,
            tap_stride: 0,
            depth: dh,
        };
        self.product.load(isa, &queries, first, count);
        let shape = (padded / WIDTH, dh.next_multiple_of(2) * WIDTH);
        let (scores, scales) = (&mut self.scores, &self.key_scales);
        self.product
            .multiply(isa, &self.keys, shape, |panel, sums| {
                let column = panel * WIDTH;
                scale_columns(isa, sums, &scales[column..], &mut scores[column..], padded);
            });
        self.inverse.clear();
        // The values past the last key are zeros.
        self.product.fill(isa, (count, padded), |i, row| {
            let scores = &mut self.scores[i * padded..][..padded];
            self.weighing.see(&self.value_scales, seen(i));
            let scales = row.scales.iter_mut().step_by(row.step);
            scales
                .zip(&self.weighing.scales)
                .for_each(|(to, s)| *to = *s);
            let inverse = softmax(isa, scores, seen(i), &self.weighing.factors, row);
            self.inverse.push(inverse);
        });
        let shape = (
            dh.div_ceil(WIDTH),
            self.rows.next_multiple_of(WIDTH) * WIDTH,
        );
        let inverse = &self.inverse;
        self.product
            .multiply(isa, &self.values, shape, |panel, sums| {
                let column = panel * WIDTH;
                for (i, (sums, inverse)) in sums.iter().zip(inverse).enumerate() {
                    let to = place(i, column, WIDTH.min(dh - column));
                    multiply(isa, sums, *inverse, to);
                }
            });
    }
}

per_isa! {
    /// `out[i] = sums[i] · scales`, rows of `out` that are `stride` apart.
    fn scale_columns<FMA>(sums: &[[f32; WIDTH]], scales: &[f32], out: &mut [f32], stride: usize) {
        let scales: &[f32; WIDTH] = scales.first_chunk().expect("scales of a panel");
        for (sums, out) in sums.iter().zip(out.chunks_mut(stride)) {
            let out: &mut [f32; WIDTH] = out.first_chunk_mut().expect("scores of a panel");
            for j in 0..WIDTH {
                out[j] = sums[j] * scales[j];
            }
        }
    }
}

per_isa! {
    /// `row = exp(scores − max) · factors`, rounded, of the first `count` scores; returns one over the sum of the exponentials. The factors of the others are
    /// zeros. Scores are of whole blocks of [`LANES`].
    fn softmax<FMA>(scores: &mut [f32], count: usize, factors: &[f32], row: RoundedRow<'_>) -> f32 {
        let max = largest_seen(scores, count);
        let mut sums = [0.0f32; LANES];
        let stretches = scores.chunks(STRETCH).zip(factors.chunks(STRETCH));
        for ((scores, factors), out) in stretches.zip(row.values.chunks_mut(row.apart)) {
            let blocks = scores.as_chunks::<LANES>().0.iter().zip(factors.as_chunks::<LANES>().0);
            for ((scores, factors), out) in blocks.zip(out.as_chunks_mut::<LANES>().0) {
                for j in 0..LANES {
                    let e = exp_of_negative::<FMA>(scores[j] - max);
                    sums[j] += e;
                    out[j] = fma::<FMA>(e, factors[j], TO_INTEGER).to_bits() as i16;
                }
            }
        }
        1.0 / fold(sums, |a, b| a + b)
    }
}

per_isa! {
    /// `out = a · x`
    fn multiply<FMA>(x: &[f32; WIDTH], a: f32, out: &mut [f32]) {
        match <&mut [f32; WIDTH]>::try_from(&mut *out) {
            Ok(out) => {
                for j in 0..WIDTH {
                    out[j] = a * x[j];
                }
            }
            Err(_) => out.iter_mut().zip(x).for_each(|(out, x)| *out = a * x),
        }
    }
}
