//! Weights of bf16 as integers of 16 bits, and activations that they are multiplied by: fixed-point numbers of a channel and of a stretch of a row.
//!
//! For CPUs that do not multiply bf16, or do so slowly: one instruction multiplies and adds twice as many of these as of f32. Both are off by at most half
//! a step. The largest weight of a channel has 32767 steps where few weights are large, and fewer where many are, so that sums fit: 4096 where they are
//! spread evenly, 2048 where all are equal. The largest value of a segment of the input has 8191; rounded to bf16 it is off by up to 1 / 512 of itself.

use super::Isa;
use super::integers::{SEGMENT, Whole, round};
#[cfg(target_arch = "x86_64")]
use super::{kinds, rounding_avx512};
use crate::cpu::isa::per_isa;

/// Most that the sizes of a channel's weights may add up to in a segment: no sum of products overflows.
const MOST: f32 = (i32::MAX / i16::LARGEST as i32) as f32 - SEGMENT as f32;

/// Rounds a channel of values to integers, of which `segment` are multiplied before the sum is scaled, and returns what they are to be multiplied by: NaN where
/// one is not finite.
pub(super) fn round_channel(row: &mut [f32], segment: usize) -> f32 {
    assert!(segment <= SEGMENT, "gemm: a sum of {segment} products");
    if !row.iter().all(|v| v.is_finite()) {
        // As visible as with weights that are floats.
        row.fill(0.0);
        return f32::NAN;
    }
    let size = |values: &[f32]| values.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
    let sum = |values: &[f32]| values.iter().map(|v| v.abs()).sum::<f32>();
    let most = row.chunks(segment).map(sum).fold(0.0, f32::max);
    let scale = (size(row) / f32::from(i16::MAX)).max(most / MOST);
    // Not of zeros, nor of values so small that the quotient would be infinite.
    let scale = scale.max(f32::MIN_POSITIVE);
    row.iter_mut()
        .for_each(|v| *v = (*v / scale).round_ties_even());
    scale
}

impl Whole for i16 {
    const LARGEST: i16 = 8191;
    const ADDED: u8 = 0;

    fn low(bits: u32) -> i16 {
        bits as i16
    }

    fn wide(self) -> i32 {
        self.into()
    }

    fn round(isa: Isa, x: &[f32], q: &mut [i16]) -> (f32, i32) {
        round_int16(isa, x, q)
    }

    #[cfg(target_arch = "x86_64")]
    fn widen(_isa: Isa, _values: &[i16], _out: &mut Vec<i16>) {}

    #[cfg(target_arch = "x86_64")]
    fn pairs<'a>(values: &'a [i16], _wide: &'a [i16]) -> &'a [i16] {
        values
    }

    #[cfg(target_arch = "x86_64")]
    fn round_rows(
        isa: Isa,
        x: (&[f32], usize),
        length: usize,
        (scales, _): (&mut [f32], &mut [i32]),
        out: (&mut [[i16; 2]], usize),
    ) {
        rounding_avx512::round_rows(isa, x, length, Self::LARGEST.into(), scales, out);
    }

    #[cfg(target_arch = "x86_64")]
    type Kind = kinds::Words;
    #[cfg(target_arch = "x86_64")]
    type Word = [i16; 2];
    #[cfg(target_arch = "x86_64")]
    const DEPTH: usize = 2;
}

per_isa! {
    /// [`round`]
    fn round_int16<FMA>(x: &[f32], q: &mut [i16]) -> (f32, i32) {
        round(x, q)
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// A channel like those that are trained: bf16, most of them far smaller than the largest.
    fn channel(n: usize) -> Vec<f32> {
        let value = |i: usize| ((i * i) as f32 * 0.37).sin() * ((i as f32) * 0.11).cos().powi(5);
        (0..n).map(|i| bf16::from_f32(value(i)).to_f32()).collect()
    }

    #[test]
    fn weights_keep_more_than_bf16_has() {
        let (row, mut q) = (channel(896), channel(896));
        let scale = round_channel(&mut q, SEGMENT);
        let energy: f32 = row.iter().map(|v| v * v).sum();
        let error: f32 = row
            .iter()
            .zip(&q)
            .map(|(v, q)| (v - q * scale).powi(2))
            .sum();
        // Rounding f32 to bf16 errs by 2⁻⁹/√3 of each value at most, 2⁻⁹/√12 or so on average: 3e-7.
        assert!(error / energy < 1e-8, "{}", error / energy);
    }

    #[test]
    fn no_segment_of_weights_can_overflow() {
        let spike = |i: usize| if i == 5 { 1.0f32 } else { 1e-3 };
        let rows = [
            vec![1.0; 300],
            (0..300).map(spike).collect(),
            channel(300),
            vec![0.0; 300],
            vec![1e-42; 300],
        ];
        for mut row in rows {
            round_channel(&mut row, SEGMENT);
            assert!(row.iter().all(|v| v.abs() <= f32::from(i16::MAX)));
            for segment in row.chunks(SEGMENT) {
                let sizes: i64 = segment.iter().map(|&v| v.abs() as i64).sum();
                assert!(sizes * i64::from(i16::LARGEST) <= i64::from(i32::MAX));
            }
        }
    }

    #[test]
    fn what_is_not_finite_spoils_its_channel() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = [1.0, bad, 2.0];
            assert!(round_channel(&mut row, SEGMENT).is_nan());
        }
    }
}
