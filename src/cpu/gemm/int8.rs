//! Products with int8 weights, in integers.
//!
//! In: rows of f32 activations and panels of int8, `[K / 2][16][2]`, or `[K / 4][16][4]` with 128 added. Out: the 16 sums of each row and panel, without the
//! weights' scales.
//!
//! Each row is rounded to int8 too, with one scale per [`SEGMENT`] of its depth. A segment's sums are exact whatever their
//! order; scaled, they are added in f32, segment by segment. Segments depend on the depth alone and scales on the row alone, so every
//! kernel computes the same bytes. The rounding adds errors of at most 2⁻⁸ of a segment's largest value, as the weights' is of a
//! channel's: a value that is far above the others blurs those of its segment alone.

use super::panels::ADDED;
#[cfg(target_arch = "x86_64")]
use super::panels::FOURS_DEPTH;
use super::{Accumulators, Input, Isa, Level, WIDTH};
#[cfg(target_arch = "x86_64")]
use super::{Call, Hardware, Target, amx, avx512, int8_amx, interleaved, kinds};
use crate::cpu::buffer::Reused;
use crate::cpu::isa::per_isa;

/// Depth that shares one scale. Longer ones make more values share a large one's steps; shorter ones spend more on scaling: a step in sixteen at this length
/// where AVX-512 multiplies.
pub(super) const SEGMENT: usize = 128;
/// Largest size of a rounded activation.
const LARGEST: i8 = i8::MAX;
/// Added to a f32 below 2²² in size, leaves the nearest integer (of two, the even one) in the low bits of the sum.
const TO_INTEGER: f32 = 12_582_912.0;
/// Depth of a block where several tiles take turns at it: it stays in the first-level cache with its weights.
#[cfg(target_arch = "x86_64")]
const BLOCK_K: usize = 4 * SEGMENT;

const _: () = assert!(
    2 * SEGMENT as i64 * LARGEST as i64 * 255 <= i32::MAX as i64,
    "the sums of a segment fit"
);

/// A block of rows of the input, rounded.
#[derive(Default)]
pub(super) struct Rows {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    count: usize,
    depth: usize,
    /// Rows that a segment has room for: in tile registers, which hold anything past the last row, whole registers of them.
    places: usize,
    /// `[K / SEGMENT][places][SEGMENT]`; past the depth come zeros.
    values: Reused<i8>,
    /// `[K / SEGMENT][rows]`
    scales: Vec<f32>,
    /// What the sums with weights that have 128 added begin with, `[K / SEGMENT][rows]`.
    offsets: Vec<i32>,
    /// A row whose taps are apart, put together.
    gathered: Vec<f32>,
    /// `values` as AVX2 multiplies them.
    #[cfg(target_arch = "x86_64")]
    wide: Vec<i16>,
    /// `values` laid together, `[tiles][K / 4][rows of a tile][4]`, of a block that AVX-512 takes so.
    #[cfg(target_arch = "x86_64")]
    together: Vec<[i8; 4]>,
}

/// Rows of one segment, [`SEGMENT`] values apart, and their scales.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a, T> {
    pub(super) values: &'a [T],
    pub(super) scales: &'a [f32],
}

impl Rows {
    /// Bytes of a row of `depth` values.
    pub(super) fn row_bytes(depth: usize) -> usize {
        depth.next_multiple_of(SEGMENT)
    }

    /// Rounds `count` rows from `x.values[first]` on, unless the block called `name` is what is here already.
    pub(super) fn load(
        &mut self,
        isa: Isa,
        name: (u64, usize),
        x: &Input<'_>,
        first: usize,
        count: usize,
    ) {
        if self.name == Some(name) {
            return;
        }
        self.name = None;
        self.count = count;
        self.places = count;
        #[cfg(target_arch = "x86_64")]
        if isa.has_tiles() {
            self.places = count.next_multiple_of(int8_amx::rows_per_tile(count));
        }
        self.depth = x.taps * x.depth;
        let segments = self.depth.div_ceil(SEGMENT);
        self.values.grow(segments * self.places * SEGMENT);
        self.scales.resize(segments * count, 0.0);
        self.offsets.resize(segments * count, 0);
        for row in 0..count {
            let start = first + row * x.row_stride;
            if x.taps == 1 {
                self.round(isa, row, &x.values[start..start + x.depth]);
                continue;
            }
            let mut gathered = std::mem::take(&mut self.gathered);
            gathered.clear();
            for tap in 0..x.taps {
                gathered.extend_from_slice(&x.values[start + tap * x.tap_stride..][..x.depth]);
            }
            self.round(isa, row, &gathered);
            self.gathered = gathered;
        }
        match isa.level() {
            Level::Portable => {}
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                self.wide.resize(segments * count * SEGMENT, 0);
                widen(isa, &self.values, &mut self.wide);
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self.lies_together(isa) => self.lay_together(isa),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {}
        }
        self.name = Some(name);
    }

    /// Whether products take the rows laid together.
    #[cfg(target_arch = "x86_64")]
    fn lies_together(&self, isa: Isa) -> bool {
        isa.level() == Level::Avx512
            && !isa.has_tiles()
            && self.count > interleaved::strided_rows(isa)
    }

    /// A row by itself lies as it does anyway.
    #[cfg(target_arch = "x86_64")]
    fn lay_together(&mut self, isa: Isa) {
        if self.count == 1 {
            return;
        }
        const WORDS: usize = SEGMENT / 4;
        let segments = self.depth.div_ceil(SEGMENT);
        let length = segments * WORDS;
        self.together.resize(self.count * length, [0; 4]);
        let per_tile = interleaved::rows_per_tile(isa, self.count);
        let words = self.values.as_chunks::<4>().0;
        for first in (0..self.count).step_by(per_tile.max(1)) {
            let rows = per_tile.min(self.count - first);
            let tile = &mut self.together[first * length..][..rows * length];
            for (segment, out) in tile.chunks_exact_mut(rows * WORDS).enumerate() {
                let x = &words[(segment * self.places + first) * WORDS..];
                avx512::interleave(isa, x, WORDS, rows, out);
            }
        }
    }

    fn round(&mut self, isa: Isa, row: usize, x: &[f32]) {
        for (segment, x) in x.chunks(SEGMENT).enumerate() {
            let place = segment * self.places + row;
            let out = &mut self.values[place * SEGMENT..(place + 1) * SEGMENT];
            let (scale, sum) = round(isa, x, &mut out[..x.len()]);
            out[x.len()..].fill(0);
            let at = segment * self.count + row;
            self.scales[at] = scale;
            self.offsets[at] = -i32::from(ADDED) * sum;
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// `count` rows from `row` on of a segment, as AVX2 multiplies them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stretch(&self, segment: usize, row: usize, count: usize) -> Stretch<'_, i16> {
        let first = segment * self.count + row;
        Stretch {
            values: &self.wide[first * SEGMENT..(first + count) * SEGMENT],
            scales: &self.scales[first..first + count],
        }
    }

    /// `acc [panel][rows] = rows · panel` for `count` panels of `size` weights in pairs.
    pub(super) fn multiply(
        &self,
        isa: Isa,
        b: &[i8],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        assert_eq!(
            size,
            self.depth.next_multiple_of(2) * WIDTH,
            "gemm: a panel's depth"
        );
        if size == 0 {
            acc[..count].as_flattened_mut().fill([0.0; WIDTH]);
            return;
        }
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::int8_avx2::run(isa, self, b, (count, size), acc),
            _ => self.multiply_portable(b, (count, size), acc),
        }
    }

    /// The same of weights in fours, by AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn multiply_fours(
        &self,
        isa: Isa,
        b: &[u8],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        self.check_fours(size);
        if size == 0 {
            acc[..count].as_flattened_mut().fill([0.0; WIDTH]);
        } else if self.lies_together(isa) {
            self.multiply_together(isa, b, (count, size), acc);
        } else {
            self.multiply_strided(isa, b, (count, size), acc);
        }
    }

    /// The same in tile registers, and of `part` the rows from a first one on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn multiply_in_tiles(
        &self,
        kernel: (&mut Hardware, &mut amx::Ahead, Isa),
        part: (usize, usize),
        (b, size): (&[u8], usize),
        acc: &mut Accumulators,
    ) {
        self.check_fours(size);
        if size > 0 {
            self.rounded().multiply(kernel, part, (b, size), acc);
        }
    }

    /// The rows as tile registers take them.
    #[cfg(target_arch = "x86_64")]
    fn rounded(&self) -> int8_amx::Rounded<'_> {
        int8_amx::Rounded {
            values: &self.values,
            scales: &self.scales,
            offsets: &self.offsets,
            rows: self.count,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn check_fours(&self, size: usize) {
        let depth = self.depth.next_multiple_of(FOURS_DEPTH);
        assert_eq!(size, depth * WIDTH, "gemm: a panel's depth");
    }

    fn multiply_portable(&self, b: &[i8], (count, size): (usize, usize), acc: &mut Accumulators) {
        for (panel, acc) in b.chunks_exact(size).zip(&mut acc[..count]) {
            let acc = &mut acc[..self.count];
            acc.fill([0.0; WIDTH]);
            for (segment, weights) in panel.chunks(SEGMENT * WIDTH).enumerate() {
                let rows = Stretch {
                    values: &self.values[segment * self.places * SEGMENT..],
                    scales: &self.scales[segment * self.count..][..self.count],
                };
                portable(rows, weights, acc);
            }
        }
    }

    /// All panels and the whole depth at once.
    #[cfg(target_arch = "x86_64")]
    fn multiply_strided(
        &self,
        isa: Isa,
        b: &[u8],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        let call = Call {
            a: &self.values[..],
            row_stride: SEGMENT,
            rows: self.count,
            depth: size / WIDTH,
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
        avx512::run::<kinds::Integer>(isa, &call, Some(stretches), b, out);
    }

    /// The same of rows that lie together.
    #[cfg(target_arch = "x86_64")]
    fn multiply_together(
        &self,
        isa: Isa,
        b: &[u8],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        let per_tile = interleaved::rows_per_tile(isa, self.count);
        let depth = size / WIDTH;
        let (block, step) = interleaved::blocks::<u8>(isa, self.count, depth, BLOCK_K);
        assert!(
            block == depth || block.is_multiple_of(SEGMENT),
            "gemm: a block ends inside a segment"
        );
        for panel in (0..count).step_by(step) {
            let panels = step.min(count - panel);
            for first in (0..depth).step_by(block) {
                let done = first / SEGMENT * self.count;
                let depth = block.min(depth - first);
                let x = interleaved::Interleaved {
                    values: match self.count {
                        1 => &self.values,
                        _ => self.together.as_flattened(),
                    },
                    rows: self.count,
                    per_tile,
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
                let next = match first * WIDTH + depth * WIDTH < size {
                    true => depth * WIDTH,
                    false => panels * size - first * WIDTH,
                };
                let b = &b[panel * size + first * WIDTH..];
                let b = avx512::Side::strided(b, panels, size, next);
                let out = Target::accumulators(&mut acc[panel..]);
                let (b, out) = ((b, panels), (out, first == 0));
                avx512::run_interleaved::<kinds::Integer>(isa, x, Some(stretches), b, out);
            }
        }
    }
}

per_isa! {
    /// `q = x / scale`, rounded; returns the scale and the sum of `q`. The scale is NaN where a value is not finite, so that the row's results are NaN too.
    fn round<FMA>(x: &[f32], q: &mut [i8]) -> (f32, i32) {
        // Bits of floats without sign have the order of their sizes, and what is not finite comes last.
        let largest = x.iter().fold(0, |m, v| v.abs().to_bits().max(m));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            q.fill(0);
            return (f32::NAN, 0);
        }
        // The bound is for zeros and for values so small that the quotient is infinite.
        let inverse = (f32::from(LARGEST) / largest).min(f32::MAX);
        let mut sum = 0;
        for (q, v) in q.iter_mut().zip(x) {
            let integer = (v * inverse + TO_INTEGER).to_bits() as i8;
            *q = integer;
            sum += i32::from(integer);
        }
        (1.0 / inverse, sum)
    }
}

#[cfg(target_arch = "x86_64")]
per_isa! {
    /// `out = x`
    fn widen<FMA>(x: &[i8], out: &mut [i16]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = i16::from(*x);
        }
    }
}

/// The kernel without vector instructions: the definition of what the others compute.
fn portable(x: Stretch<'_, i8>, weights: &[i8], acc: &mut [[f32; WIDTH]]) {
    let rows = x.values.chunks_exact(SEGMENT).zip(x.scales);
    for ((x, scale), acc) in rows.zip(acc) {
        let mut sums = [0i32; WIDTH];
        let pairs = weights.as_chunks::<{ 2 * WIDTH }>().0;
        for ([x0, x1], w) in x.as_chunks::<2>().0.iter().zip(pairs) {
            for j in 0..WIDTH {
                let even = i32::from(*x0) * i32::from(w[2 * j]);
                sums[j] += even + i32::from(*x1) * i32::from(w[2 * j + 1]);
            }
        }
        for (acc, sum) in acc.iter_mut().zip(sums) {
            // One rounding, as where that is one instruction.
            *acc = scale.mul_add(sum as f32, *acc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK_PANELS, BLOCK_ROWS, MAX_PANELS};
    use super::*;

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * f).sin()).collect()
    }

    fn panel(depth: usize) -> Vec<i8> {
        let rows = depth.next_multiple_of(2) * WIDTH;
        (0..rows).map(|i| (i * 89 % 255) as i8).collect()
    }

    fn loaded(isa: Isa, x: &Input<'_>, count: usize) -> Rows {
        let mut rows = Rows::default();
        rows.load(isa, (0, 0), x, 0, count);
        rows
    }

    fn plain(values: &[f32], depth: usize) -> Input<'_> {
        Input {
            values,
            row_stride: depth,
            taps: 1,
            tap_stride: 0,
            depth,
        }
    }

    /// A panel of pairs as one of fours.
    #[cfg(target_arch = "x86_64")]
    fn fours(pairs: &[i8], depth: usize) -> Vec<u8> {
        let mut fours = vec![ADDED; depth.next_multiple_of(FOURS_DEPTH) * WIDTH];
        for (k, column) in (0..depth).flat_map(|k| (0..WIDTH).map(move |c| (k, c))) {
            let from = 2 * (k / 2 * WIDTH + column) + k % 2;
            let w = pairs[from] as u8;
            fours[4 * (k / 4 * WIDTH + column) + k % 4] = w.wrapping_add(ADDED);
        }
        fours
    }

    /// Sums of all rows with each of some panels.
    fn multiplied(isa: Isa, rows: &Rows, panels: &[&[i8]]) -> Vec<Vec<[f32; WIDTH]>> {
        let mut acc = Box::new([[[f32::NAN; WIDTH]; BLOCK_ROWS]; BLOCK_PANELS]);
        let count = panels.len();
        #[cfg(target_arch = "x86_64")]
        if isa.level() == Level::Avx512 {
            let panels: Vec<_> = panels.iter().map(|p| fours(p, rows.depth)).collect();
            let (panels, size) = (panels.concat(), panels[0].len());
            match isa.tiles() {
                None => rows.multiply_fours(isa, &panels, (count, size), &mut acc),
                Some(mut tiles) => in_parts(rows, &mut tiles, isa, (&panels, size), &mut acc),
            }
            return sums_of(&acc, count, rows.count);
        }
        let shape = (count, panels[0].len());
        rows.multiply(isa, &panels.concat(), shape, &mut acc);
        sums_of(&acc, count, rows.count)
    }

    fn sums_of(acc: &Accumulators, panels: usize, rows: usize) -> Vec<Vec<[f32; WIDTH]>> {
        let sums = acc[..panels].iter();
        sums.map(|acc| acc[..rows].to_vec()).collect()
    }

    /// The same in tile registers, as many rows at once as they take.
    #[cfg(target_arch = "x86_64")]
    fn in_parts(
        rows: &Rows,
        tiles: &mut Hardware,
        isa: Isa,
        (panels, size): (&[u8], usize),
        acc: &mut Accumulators,
    ) {
        if size == 0 {
            acc.as_flattened_mut().as_flattened_mut().fill(0.0);
        }
        for first in (0..rows.count).step_by(32) {
            let part = (first, 32.min(rows.count - first));
            let mut sums = Box::new([[[0.0; WIDTH]; BLOCK_ROWS]; BLOCK_PANELS]);
            let kernel = (&mut *tiles, &mut amx::Ahead::Nothing, isa);
            rows.multiply_in_tiles(kernel, part, (panels, size), &mut sums);
            for (acc, sums) in acc.iter_mut().zip(&*sums) {
                acc[first..first + part.1].copy_from_slice(&sums[..part.1]);
            }
        }
    }

    #[test]
    fn kernels_agree_to_the_bit() {
        for depth in [0, 1, 2, 7, 127, 128, 129, 255, 1000] {
            for count in [1, 2, 3, 4, 5, 6, 7, 11, 16, 31, 96] {
                let (x, panel) = (wave(count * depth, 0.37), panel(depth));
                let other: Vec<i8> = panel.iter().rev().copied().collect();
                for panels in 1..=MAX_PANELS {
                    let panels = &[&panel[..], &other, &other, &panel][..panels];
                    let sums = |isa| {
                        let rows = loaded(isa, &plain(&x, depth), count);
                        let sums = multiplied(isa, &rows, panels);
                        let values = sums.concat();
                        let values = values.as_flattened().iter();
                        values.map(|v| v.to_bits()).collect::<Vec<_>>()
                    };
                    let expected = sums(Isa::PORTABLE);
                    for isa in Isa::available() {
                        let name = isa.name();
                        assert!(sums(isa) == expected, "{name}: {count} rows of {depth}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        let x = vec![1.0; SEGMENT];
        for w in [-128, 127] {
            let panel = vec![w; SEGMENT * WIDTH];
            let expected = f32::from(w) * SEGMENT as f32;
            for isa in Isa::available() {
                let rows = loaded(isa, &plain(&x, SEGMENT), 1);
                for sum in multiplied(isa, &rows, &[&panel])[0][0] {
                    assert!((sum / expected - 1.0).abs() < 1e-6, "{sum} {expected}");
                }
            }
        }
    }

    #[test]
    fn taps_are_put_together() {
        let (taps, depth, tap_stride, row_stride, count) = (3, 171, 400, 7, 5);
        let values = wave(count * row_stride + taps * tap_stride, 0.61);
        let apart = Input {
            values: &values,
            row_stride,
            taps,
            tap_stride,
            depth,
        };
        let together: Vec<f32> = (0..count * taps)
            .flat_map(|i| &values[i / taps * row_stride + i % taps * tap_stride..][..depth])
            .copied()
            .collect();
        let isa = Isa::detect();
        let apart = loaded(isa, &apart, count);
        let together = loaded(isa, &plain(&together, taps * depth), count);
        assert_eq!(apart.values[..], together.values[..]);
        assert_eq!(apart.scales, together.scales);
    }

    #[test]
    fn rounding_is_to_the_nearest_at_every_magnitude() {
        for magnitude in [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3e38] {
            let x: Vec<f32> = wave(SEGMENT, 0.7).iter().map(|v| v * magnitude).collect();
            let mut q = [0; SEGMENT];
            let (scale, sum) = round(Isa::detect(), &x, &mut q);
            assert_eq!(sum, q.iter().map(|&q| i32::from(q)).sum::<i32>());
            for (q, &x) in q.iter().zip(&x) {
                let error = (f64::from(*q) * f64::from(scale) - f64::from(x)).abs();
                // Half a step, and what the scale itself is rounded by.
                let bound = f64::from(scale) * 0.5 + f64::from(x).abs() * 1e-6;
                assert!(error <= bound, "{x:e}: {q} · {scale:e}");
            }
        }
        let mut q = [7; 3];
        assert!(
            round(Isa::detect(), &[0.0, -0.0, 0.0], &mut q)
                .0
                .is_finite()
        );
        assert_eq!(q, [0; 3]);
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for isa in Isa::available() {
                let mut x = wave(3 * 300, 0.3);
                x[300 + 41] = bad;
                let rows = loaded(isa, &plain(&x, 300), 3);
                let acc = &multiplied(isa, &rows, &[&panel(300)])[0];
                assert!(acc[1].iter().all(|v| v.is_nan()), "{bad}");
                assert!(
                    [acc[0], acc[2]]
                        .as_flattened()
                        .iter()
                        .all(|v| v.is_finite())
                );
            }
        }
    }
}
