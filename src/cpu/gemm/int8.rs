//! Products with int8 weights, in integers.
//!
//! In: rows of f32 activations and panels `[K / 2][16][2]` of int8. Out: the 16 sums of each row and panel, without the weights' scales.
//!
//! Each row is rounded to 16-bit integers that share one scale per [`SEGMENT`] of its depth. A segment's sums are exact whatever their
//! order; scaled, they are added in f32, segment by segment. Segments depend on the depth alone and scales on the row alone, so every
//! kernel computes the same bytes. The rounding adds errors of at most 2⁻¹⁶ of a segment's largest value, where int8 weights have 2⁻⁸ of a
//! channel's.

use super::{Accumulators, Input, Isa, Level, WIDTH};
#[cfg(target_arch = "x86_64")]
use super::{Call, Hardware, Target, amx, avx512, int8_amx, interleaved, kinds};
use crate::cpu::isa::per_isa;

/// Depth that shares one scale.
pub(super) const SEGMENT: usize = 256;
/// Largest size of a rounded activation.
const LARGEST: i16 = i16::MAX;
/// Added to a f32 below 2²² in size, leaves the nearest integer (of two, the even one) in the low bits of the sum.
const TO_INTEGER: f32 = 12_582_912.0;

const _: () = assert!(
    SEGMENT as i64 * LARGEST as i64 * 128 <= i32::MAX as i64,
    "the sums of a segment fit"
);

/// A block of rows of the input, rounded.
#[derive(Default)]
pub(super) struct Rows {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    count: usize,
    depth: usize,
    /// `[K / SEGMENT][rows][SEGMENT]`; past an odd depth comes one zero.
    values: Vec<i16>,
    /// `[K / SEGMENT][rows]`
    scales: Vec<f32>,
    /// A row whose taps are apart, put together.
    gathered: Vec<f32>,
    /// `values` of each segment laid together, of a block that AVX-512 takes so.
    #[cfg(target_arch = "x86_64")]
    together: Vec<[i16; 2]>,
    /// `values` as bytes, where tile registers take them so.
    #[cfg(target_arch = "x86_64")]
    halves: int8_amx::Halves,
}

/// Rows of one segment, [`SEGMENT`] values apart, and their scales.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a> {
    pub(super) values: &'a [i16],
    pub(super) scales: &'a [f32],
}

impl Rows {
    /// Bytes of a row of `depth` values.
    pub(super) fn row_bytes(depth: usize) -> usize {
        depth.next_multiple_of(SEGMENT) * size_of::<i16>()
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
        self.depth = x.taps * x.depth;
        let segments = self.depth.div_ceil(SEGMENT);
        self.values.resize(segments * count * SEGMENT, 0);
        self.scales.resize(segments * count, 0.0);
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
        #[cfg(target_arch = "x86_64")]
        if isa.has_tiles() {
            self.halves.load(isa, &self.values, count);
        } else if self.lies_together(isa) {
            self.lay_together(isa);
        }
        self.name = Some(name);
    }

    /// Whether products take the rows laid together.
    #[cfg(target_arch = "x86_64")]
    fn lies_together(&self, isa: Isa) -> bool {
        isa.level() == Level::Avx512 && self.count > interleaved::strided_rows(isa)
    }

    #[cfg(target_arch = "x86_64")]
    fn lay_together(&mut self, isa: Isa) {
        const WORDS: usize = SEGMENT / 2;
        let pairs = self.values.as_chunks::<2>().0;
        self.together.resize(pairs.len(), [0; 2]);
        if self.count == 0 {
            return;
        }
        let segments = pairs.chunks_exact(self.count * WORDS);
        for (x, out) in segments.zip(self.together.chunks_exact_mut(self.count * WORDS)) {
            interleaved::lay(isa, (x, WORDS), (self.count, WORDS), out);
        }
    }

    fn round(&mut self, isa: Isa, row: usize, x: &[f32]) {
        for (segment, x) in x.chunks(SEGMENT).enumerate() {
            let at = segment * self.count + row;
            let out = &mut self.values[at * SEGMENT..(at + 1) * SEGMENT];
            self.scales[at] = round(isa, x, &mut out[..x.len()]);
            out[x.len()..x.len().next_multiple_of(2)].fill(0);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// `count` rows from `row` on of a segment.
    pub(super) fn stretch(&self, segment: usize, row: usize, count: usize) -> Stretch<'_> {
        let first = segment * self.count + row;
        Stretch {
            values: &self.values[first * SEGMENT..(first + count) * SEGMENT],
            scales: &self.scales[first..first + count],
        }
    }

    /// `acc [panel][rows] = rows · panel` for `count` panels of `size` weights.
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
            Level::Portable => self.multiply_portable(b, (count, size), acc),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::int8_avx2::run(isa, self, b, (count, size), acc),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self.lies_together(isa) => {
                self.multiply_together(isa, b, (count, size), acc);
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => self.multiply_avx512(isa, b, (count, size), acc),
        }
    }

    /// The same for panels of fours, and of `part` the rows from a first one on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn multiply_in_tiles(
        &self,
        kernel: (&mut Hardware, &mut amx::Ahead, Isa),
        part: (usize, usize),
        (b, size): (&[i8], usize),
        acc: &mut Accumulators,
    ) {
        assert_eq!(
            size,
            self.depth.next_multiple_of(int8_amx::STEP) * WIDTH,
            "gemm: a panel's depth"
        );
        if size > 0 {
            let rows = (&self.scales[..], part);
            self.halves.multiply(kernel, rows, (b, size), acc);
        }
    }

    fn multiply_portable(&self, b: &[i8], (count, size): (usize, usize), acc: &mut Accumulators) {
        for (panel, acc) in b.chunks_exact(size).zip(&mut acc[..count]) {
            let acc = &mut acc[..self.count];
            acc.fill([0.0; WIDTH]);
            for (segment, weights) in panel.chunks(SEGMENT * WIDTH).enumerate() {
                portable(self.stretch(segment, 0, self.count), weights, acc);
            }
        }
    }

    /// The same for all panels and the whole depth at once.
    #[cfg(target_arch = "x86_64")]
    fn multiply_avx512(
        &self,
        isa: Isa,
        b: &[i8],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        let call = Call {
            a: &self.values[..],
            row_stride: SEGMENT,
            rows: self.count,
            depth: self.depth.next_multiple_of(2),
            panel_stride: size,
            panels: count,
            fresh: true,
        };
        let stretches = avx512::Stretches {
            scales: &self.scales,
            depth: SEGMENT,
            apart: self.count * SEGMENT,
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
        b: &[i8],
        (count, size): (usize, usize),
        acc: &mut Accumulators,
    ) {
        let per_tile = interleaved::rows_per_tile(self.count);
        let step = interleaved::panels_per_tile(isa, per_tile);
        let depth = self.depth.next_multiple_of(2);
        // One tile takes the whole depth at once; several take turns at what a stretch has of the panels.
        let block = match self.count {
            0..=interleaved::MOST_ROWS => depth,
            _ => SEGMENT,
        };
        for panel in (0..count).step_by(step) {
            let panels = step.min(count - panel);
            for first in (0..depth).step_by(block) {
                let done = first / SEGMENT * self.count;
                let depth = block.min(depth - first);
                let x = interleaved::Interleaved {
                    values: &self.together.as_flattened()[done * SEGMENT..],
                    rows: self.count,
                    per_tile,
                    row_length: depth.next_multiple_of(SEGMENT),
                    first: 0,
                    depth,
                };
                let stretches = avx512::Stretches {
                    scales: &self.scales[done..],
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
    /// `q = x / scale`, rounded; returns the scale. It is NaN where a value is not finite, so that the row's results are NaN too.
    fn round<FMA>(x: &[f32], q: &mut [i16]) -> f32 {
        // Bits of floats without sign have the order of their sizes, and what is not finite comes last.
        let largest = x.iter().fold(0, |m, v| v.abs().to_bits().max(m));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            q.fill(0);
            return f32::NAN;
        }
        // The bound is for zeros and for values so small that the quotient is infinite.
        let inverse = (f32::from(LARGEST) / largest).min(f32::MAX);
        for (q, v) in q.iter_mut().zip(x) {
            *q = (v * inverse + TO_INTEGER).to_bits() as i16;
        }
        1.0 / inverse
    }
}

/// The kernel without vector instructions: the definition of what the others compute.
fn portable(x: Stretch<'_>, weights: &[i8], acc: &mut [[f32; WIDTH]]) {
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
            *acc += scale * sum as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK_ROWS, MAX_PANELS};
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
    fn fours(pairs: &[i8], depth: usize) -> Vec<i8> {
        let mut fours = vec![0; depth.next_multiple_of(int8_amx::STEP) * WIDTH];
        for (k, column) in (0..depth).flat_map(|k| (0..WIDTH).map(move |c| (k, c))) {
            let from = 2 * (k / 2 * WIDTH + column) + k % 2;
            fours[4 * (k / 4 * WIDTH + column) + k % 4] = pairs[from];
        }
        fours
    }

    /// Sums of all rows with each of some panels.
    fn multiplied(isa: Isa, rows: &Rows, panels: &[&[i8]]) -> Vec<Vec<[f32; WIDTH]>> {
        let mut acc = Box::new([[[f32::NAN; WIDTH]; BLOCK_ROWS]; MAX_PANELS]);
        let shape = (panels.len(), panels[0].len());
        #[cfg(target_arch = "x86_64")]
        if let Some(mut tiles) = isa.tiles() {
            let size = rows.depth.next_multiple_of(int8_amx::STEP) * WIDTH;
            let panels: Vec<_> = panels.iter().map(|p| fours(p, rows.depth)).collect();
            if size == 0 {
                acc.as_flattened_mut().as_flattened_mut().fill(0.0);
            }
            let panels = panels.concat();
            for first in (0..rows.count).step_by(32) {
                let part = (first, 32.min(rows.count - first));
                let mut sums = Box::new([[[0.0; WIDTH]; BLOCK_ROWS]; MAX_PANELS]);
                let kernel = (&mut tiles, &mut amx::Ahead::Nothing, isa);
                rows.multiply_in_tiles(kernel, part, (&panels, size), &mut sums);
                for (acc, sums) in acc.iter_mut().zip(&*sums) {
                    acc[first..first + part.1].copy_from_slice(&sums[..part.1]);
                }
            }
        }
        if !isa.has_tiles() {
            rows.multiply(isa, &panels.concat(), shape, &mut acc);
        }
        let sums = acc[..panels.len()].iter();
        sums.map(|acc| acc[..rows.count].to_vec()).collect()
    }

    #[test]
    fn kernels_agree_to_the_bit() {
        for depth in [0, 1, 2, 7, 255, 256, 257, 1000] {
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
        assert_eq!(apart.values, together.values);
        assert_eq!(apart.scales, together.scales);
    }

    #[test]
    fn rounding_is_to_the_nearest_at_every_magnitude() {
        for magnitude in [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3e38] {
            let x: Vec<f32> = wave(SEGMENT, 0.7).iter().map(|v| v * magnitude).collect();
            let mut q = [0; SEGMENT];
            let scale = round(Isa::detect(), &x, &mut q);
            for (q, &x) in q.iter().zip(&x) {
                let error = (f64::from(*q) * f64::from(scale) - f64::from(x)).abs();
                // Half a step, and what the scale itself is rounded by.
                let bound = f64::from(scale) * 0.5 + f64::from(x).abs() * 1e-6;
                assert!(error <= bound, "{x:e}: {q} · {scale:e}");
            }
        }
        let mut q = [7; 3];
        assert!(round(Isa::detect(), &[0.0, -0.0, 0.0], &mut q).is_finite());
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
