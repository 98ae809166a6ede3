//! Products in integers: with weights of int8, and with those of bf16 as 16-bit integers.
//!
//! In: rows of f32 activations and panels of integers, `[K / 2][16][2]`, or of int8 `[K / 4][16][4]` with 128 added. Out: the 16 sums of each row and panel,
//! without the weights' scales.
//!
//! Each row is rounded to integers too, with one scale per [`SEGMENT`] of its depth. A segment's sums are exact whatever their
//! order; scaled, they are added in f32, segment by segment. Segments depend on the depth alone and scales on the row alone, so every
//! kernel computes the same bytes. The rounding adds errors of at most half a step, of which a segment's largest value has [`Whole::LARGEST`]: a value that is
//! far above the others blurs those of its segment alone.

#[cfg(not(target_arch = "x86_64"))]
use bytemuck::Pod as Load;

#[cfg(target_arch = "x86_64")]
use super::integers_avx2::Load;
use super::{Accumulators, Input, Isa, Level, WIDTH};
#[cfg(target_arch = "x86_64")]
use super::{Hardware, amx, avx512, int8_amx, kinds};
use crate::cpu::buffer::Reused;

/// Depth that shares one scale. Longer ones make more values share a large one's steps; shorter ones spend more on scaling: of int8 a step in sixteen at this
/// length where AVX-512 multiplies.
pub(super) const SEGMENT: usize = 128;
/// Added to a f32 below 2²² in size, leaves the nearest integer (of two, the even one) in the low bits of the sum.
pub(crate) const TO_INTEGER: f32 = 12_582_912.0;
/// An integer that activations are rounded to; weights are of the same, but for what AVX-512 and tile registers multiply.
pub(super) trait Whole: Load + Default {
    /// Largest size of a rounded activation.
    const LARGEST: i16;
    /// What the weights that AVX-512 multiplies have added.
    const ADDED: u8;

    /// Those of the low bits, which are all that a value within range has.
    fn low(bits: u32) -> Self;

    /// The same number.
    fn wide(self) -> i32;

    /// [`round`], compiled for the instructions.
    fn round(isa: Isa, x: &[f32], q: &mut [Self]) -> (f32, i32);

    /// 16-bit rows for AVX2, which [`Whole::pairs`] finds: of others than those that are rounded to them anyway.
    #[cfg(target_arch = "x86_64")]
    fn widen(isa: Isa, values: &[Self], out: &mut Vec<i16>);

    #[cfg(target_arch = "x86_64")]
    fn pairs<'a>(values: &'a [Self], wide: &'a [i16]) -> &'a [i16];

    /// Rounds the first `length` values of at most 16 rows, as many as there are scales, which begin `stride` values apart in `x`: one word of each row, then
    /// the next, `width` words apart, and of each row its scale and what its sums begin with.
    #[cfg(target_arch = "x86_64")]
    fn round_rows(
        isa: Isa,
        x: (&[f32], usize),
        length: usize,
        scales: (&mut [f32], &mut [i32]),
        out: (&mut [Self::Word], usize),
    );

    /// What AVX-512 multiplies.
    #[cfg(target_arch = "x86_64")]
    type Kind: kinds::Kind<X = Self>;
    /// Values that it takes at once, 32 bits.
    #[cfg(target_arch = "x86_64")]
    type Word: avx512::Word + Default;
    /// The depth of its panels is a multiple of this.
    #[cfg(target_arch = "x86_64")]
    const DEPTH: usize;
}

/// A block of rows of the input, rounded.
#[derive(Default)]
pub(super) struct Rows<V: Whole> {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    pub(super) count: usize,
    pub(super) depth: usize,
    /// Rows that a segment has room for: in tile registers, which hold anything past the last row, whole registers of them.
    pub(super) places: usize,
    /// `[K / SEGMENT][places][SEGMENT]`; past the depth come zeros.
    pub(super) values: Reused<V>,
    /// `[K / SEGMENT][rows]`
    pub(super) scales: Vec<f32>,
    /// What the sums with weights that have something added begin with, `[K / SEGMENT][rows]`.
    pub(super) offsets: Vec<i32>,
    /// A row whose taps are apart, put together.
    gathered: Vec<f32>,
    /// `values` as AVX2 multiplies them, unless they are that.
    #[cfg(target_arch = "x86_64")]
    wide: Vec<i16>,
    /// `values` laid together, `[tiles][words][rows of a tile]`, of a block that AVX-512 takes so.
    #[cfg(target_arch = "x86_64")]
    pub(super) together: Vec<V::Word>,
}

/// Rows of one segment, [`SEGMENT`] values apart, and their scales.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a, T> {
    pub(super) values: &'a [T],
    pub(super) scales: &'a [f32],
}

impl<V: Whole> Rows<V> {
    /// Bytes of a row of `depth` values.
    pub(super) fn row_bytes(depth: usize) -> usize {
        depth.next_multiple_of(SEGMENT) * size_of::<V>()
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
        self.begin(isa, count, x.taps * x.depth);
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => self.fill_wide(isa, x, first),
            _ => self.fill(isa, x, first),
        }
        #[cfg(target_arch = "x86_64")]
        if isa.level() == Level::Avx2 {
            let values = self.depth.div_ceil(SEGMENT) * count * SEGMENT;
            V::widen(isa, &self.values[..values], &mut self.wide);
        }
        self.name = Some(name);
    }

    /// Makes room for `count` rows of `depth` values.
    fn begin(&mut self, isa: Isa, count: usize, depth: usize) {
        let _ = isa;
        self.name = None;
        self.count = count;
        self.places = count;
        #[cfg(target_arch = "x86_64")]
        if isa.has_tiles() {
            self.places = count.next_multiple_of(int8_amx::rows_per_tile(count));
        }
        self.depth = depth;
        let segments = depth.div_ceil(SEGMENT);
        self.values.grow(segments * self.places * SEGMENT);
        self.scales.resize(segments * count, 0.0);
        self.offsets.resize(segments * count, 0);
    }

    /// Rounds all rows, one after the other.
    pub(super) fn fill(&mut self, isa: Isa, x: &Input<'_>, first: usize) {
        for row in 0..self.count {
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
    }

    fn round(&mut self, isa: Isa, row: usize, x: &[f32]) {
        for (segment, x) in x.chunks(SEGMENT).enumerate() {
            let place = segment * self.places + row;
            let out = &mut self.values[place * SEGMENT..(place + 1) * SEGMENT];
            let (scale, sum) = V::round(isa, x, &mut out[..x.len()]);
            out[x.len()..].fill(V::default());
            let at = segment * self.count + row;
            self.scales[at] = scale;
            self.offsets[at] = -i32::from(V::ADDED) * sum;
        }
    }

    /// `count` rows from `row` on of a segment, as AVX2 multiplies them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stretch(&self, segment: usize, row: usize, count: usize) -> Stretch<'_, i16> {
        let first = segment * self.count + row;
        let pairs = V::pairs(&self.values, &self.wide);
        Stretch {
            values: &pairs[first * SEGMENT..(first + count) * SEGMENT],
            scales: &self.scales[first..first + count],
        }
    }

    /// `acc [panel][rows] = rows · panel` for `count` panels of `size` weights in pairs, without AVX-512.
    pub(super) fn multiply(
        &self,
        isa: Isa,
        b: &[V],
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
            Level::Avx2 => super::integers_avx2::run(isa, self, b, (count, size), acc),
            _ => self.multiply_portable(b, (count, size), acc),
        }
    }

    fn multiply_portable(&self, b: &[V], (count, size): (usize, usize), acc: &mut Accumulators) {
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
}

/// With tile registers.
#[cfg(target_arch = "x86_64")]
impl Rows<i8> {
    /// As [`Rows::multiply_wide`], of `part` the rows from a first one on.
    pub(super) fn multiply_in_tiles(
        &self,
        kernel: (&mut Hardware, &mut amx::Ahead, Isa),
        part: (usize, usize),
        (b, size): (&[u8], usize),
        acc: &mut Accumulators,
    ) {
        self.check_depth(size);
        if size > 0 {
            self.rounded().multiply(kernel, part, (b, size), acc);
        }
    }

    /// The rows as tile registers take them.
    fn rounded(&self) -> int8_amx::Rounded<'_> {
        int8_amx::Rounded {
            values: &self.values,
            scales: &self.scales,
            offsets: &self.offsets,
            rows: self.count,
        }
    }
}

/// `q = x / scale`, rounded; returns the scale and, where weights have something added, the sum of `q`. The scale is NaN where a value is not finite, so that
/// the row's results are NaN too.
#[inline(always)]
pub(super) fn round<V: Whole>(x: &[f32], q: &mut [V]) -> (f32, i32) {
    // Bits of floats without sign have the order of their sizes, and what is not finite comes last.
    let largest = x.iter().fold(0, |m, v| v.abs().to_bits().max(m));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        q.fill(V::default());
        return (f32::NAN, 0);
    }
    // The bound is for zeros and for values so small that the quotient is infinite.
    let inverse = (f32::from(V::LARGEST) / largest).min(f32::MAX);
    let mut sum = 0;
    for (q, v) in q.iter_mut().zip(x) {
        let integer = V::low((v * inverse + TO_INTEGER).to_bits());
        *q = integer;
        if V::ADDED > 0 {
            sum += integer.wide();
        }
    }
    (1.0 / inverse, sum)
}

/// The kernel without vector instructions: the definition of what the others compute.
fn portable<V: Whole>(x: Stretch<'_, V>, weights: &[V], acc: &mut [[f32; WIDTH]]) {
    let rows = x.values.chunks_exact(SEGMENT).zip(x.scales);
    for ((x, scale), acc) in rows.zip(acc) {
        let mut sums = [0i32; WIDTH];
        let pairs = weights.as_chunks::<{ 2 * WIDTH }>().0;
        for ([x0, x1], w) in x.as_chunks::<2>().0.iter().zip(pairs) {
            for j in 0..WIDTH {
                let even = x0.wide() * w[2 * j].wide();
                sums[j] += even + x1.wide() * w[2 * j + 1].wide();
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
    use super::super::fixed;
    #[cfg(target_arch = "x86_64")]
    use super::super::panels::{ADDED, FOURS_DEPTH};
    use super::super::{BLOCK_PANELS, BLOCK_ROWS, MAX_PANELS};
    use super::*;

    /// Sums by every kernel, with weights that AVX-512 wants otherwise laid out accordingly.
    trait Tested: Whole {
        /// A weight of any size that is in use.
        fn weight(i: usize) -> Self;

        /// As `Rows::multiply`, for `panels` of pairs.
        fn multiply(isa: Isa, rows: &Rows<Self>, panels: &[&[Self]], acc: &mut Accumulators);
    }

    impl Tested for i8 {
        fn weight(i: usize) -> i8 {
            (i * 89 % 255) as i8
        }

        fn multiply(isa: Isa, rows: &Rows<i8>, panels: &[&[i8]], acc: &mut Accumulators) {
            #[cfg(target_arch = "x86_64")]
            if isa.level() == Level::Avx512 {
                let panels: Vec<_> = panels.iter().map(|p| fours(p, rows.depth)).collect();
                let (all, shape) = (panels.concat(), (panels.len(), panels[0].len()));
                return match isa.tiles() {
                    None => rows.multiply_wide(isa, &all, shape, acc),
                    Some(mut tiles) => in_parts(rows, &mut tiles, isa, (&all, shape.1), acc),
                };
            }
            let shape = (panels.len(), panels[0].len());
            rows.multiply(isa, &panels.concat(), shape, acc);
        }
    }

    impl Tested for i16 {
        /// Of the sizes of a channel that is as unlike others as may be: one weight is as large as sixteen bits hold.
        fn weight(i: usize) -> i16 {
            match i / (2 * WIDTH) % 64 {
                0 => [i16::MAX, -i16::MAX][i % 2],
                _ => (i * 8009 % 3001) as i16 - 1500,
            }
        }

        fn multiply(isa: Isa, rows: &Rows<i16>, panels: &[&[i16]], acc: &mut Accumulators) {
            let (all, shape) = (panels.concat(), (panels.len(), panels[0].len()));
            #[cfg(target_arch = "x86_64")]
            if isa.level() == Level::Avx512 {
                // No weights are packed so for tile registers.
                if !isa.has_tiles() {
                    rows.multiply_wide(isa, &all, shape, acc);
                } else {
                    rows.multiply_portable(&all, shape, acc);
                }
                return;
            }
            rows.multiply(isa, &all, shape, acc);
        }
    }

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * f).sin()).collect()
    }

    fn panel<V: Tested>(depth: usize) -> Vec<V> {
        let values = depth.next_multiple_of(2) * WIDTH;
        (0..values).map(V::weight).collect()
    }

    fn loaded<V: Whole>(isa: Isa, x: &Input<'_>, count: usize) -> Rows<V> {
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
    fn multiplied<V: Tested>(isa: Isa, rows: &Rows<V>, panels: &[&[V]]) -> Vec<Vec<[f32; WIDTH]>> {
        let mut acc = Box::new([[[f32::NAN; WIDTH]; BLOCK_ROWS]; BLOCK_PANELS]);
        V::multiply(isa, rows, panels, &mut acc);
        let sums = acc[..panels.len()].iter();
        sums.map(|acc| acc[..rows.count].to_vec()).collect()
    }

    /// The same in tile registers, as many rows at once as they take.
    #[cfg(target_arch = "x86_64")]
    fn in_parts(
        rows: &Rows<i8>,
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

    fn kernels_agree<V: Tested>() {
        for depth in [0, 1, 2, 7, 127, 128, 129, 255, 1000] {
            for count in [1, 2, 3, 4, 5, 6, 7, 11, 16, 31, 96] {
                let (x, panel) = (wave(count * depth, 0.37), panel::<V>(depth));
                let other: Vec<V> = panel.iter().rev().copied().collect();
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
    fn kernels_of_int8_agree_to_the_bit() {
        kernels_agree::<i8>();
    }

    #[test]
    fn kernels_of_int16_agree_to_the_bit() {
        kernels_agree::<i16>();
    }

    /// Sums of a segment of ones by one weight.
    fn largest_sums_fit<V: Tested>(weight: V) {
        let x = vec![1.0; SEGMENT];
        let panel = vec![weight; SEGMENT * WIDTH];
        let expected = weight.wide() as f32 * SEGMENT as f32;
        for isa in Isa::available() {
            let rows = loaded::<V>(isa, &plain(&x, SEGMENT), 1);
            for sum in multiplied(isa, &rows, &[&panel])[0][0] {
                assert!((sum / expected - 1.0).abs() < 1e-6, "{sum} {expected}");
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        largest_sums_fit(-128i8);
        largest_sums_fit(127i8);
        for sign in [1.0, -1.0] {
            // What a channel of equal weights is rounded to.
            let mut row = vec![sign * 0.7; SEGMENT];
            let scale = fixed::round_channel(&mut row, SEGMENT);
            assert!((row[0] * scale / (sign * 0.7) - 1.0).abs() < 1e-3);
            largest_sums_fit(row[0] as i16);
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
        let apart = loaded::<i8>(isa, &apart, count);
        let together = loaded::<i8>(isa, &plain(&together, taps * depth), count);
        assert_eq!(apart.values[..], together.values[..]);
        assert_eq!(apart.scales, together.scales);
    }

    fn rounding_is_to_the_nearest<V: Whole>() {
        for magnitude in [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3e38] {
            let x: Vec<f32> = wave(SEGMENT, 0.7).iter().map(|v| v * magnitude).collect();
            let mut q = [V::default(); SEGMENT];
            let (scale, sum) = V::round(Isa::detect(), &x, &mut q);
            if V::ADDED > 0 {
                assert_eq!(sum, q.iter().map(|&q| q.wide()).sum::<i32>());
            }
            for (q, &x) in q.iter().zip(&x) {
                let error = (f64::from(q.wide()) * f64::from(scale) - f64::from(x)).abs();
                // Half a step, and what the scale itself is rounded by.
                let bound = f64::from(scale) * 0.5 + f64::from(x).abs() * 1e-6;
                assert!(error <= bound, "{x:e}: {} · {scale:e}", q.wide());
            }
        }
        let mut q = [V::low(7); 3];
        let (scale, _) = V::round(Isa::detect(), &[0.0, -0.0, 0.0], &mut q);
        assert!(scale.is_finite() && q.iter().all(|q| q.wide() == 0));
    }

    #[test]
    fn rounding_is_to_the_nearest_at_every_magnitude() {
        rounding_is_to_the_nearest::<i8>();
        rounding_is_to_the_nearest::<i16>();
    }

    fn not_finite_stays_visible<V: Tested>() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for isa in Isa::available() {
                let mut x = wave(3 * 300, 0.3);
                x[300 + 41] = bad;
                let rows = loaded::<V>(isa, &plain(&x, 300), 3);
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

    #[test]
    fn what_is_not_finite_stays_visible() {
        not_finite_stays_visible::<i8>();
        not_finite_stays_visible::<i16>();
    }
}
