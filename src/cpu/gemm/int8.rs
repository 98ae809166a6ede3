//! Activations in int8, for weights that are: of a segment's largest value 127 steps.

use super::Isa;
use super::integers::{SEGMENT, Whole, round};
use super::panels::ADDED;
#[cfg(target_arch = "x86_64")]
use super::panels::FOURS_DEPTH;
#[cfg(target_arch = "x86_64")]
use super::{kinds, rounding_avx512};
use crate::cpu::isa::per_isa;

const _: () = assert!(
    2 * SEGMENT as i64 * i8::LARGEST as i64 * 255 <= i32::MAX as i64,
    "the sums of a segment fit"
);

impl Whole for i8 {
    const LARGEST: i16 = 127;
    const ADDED: u8 = ADDED;

    fn low(bits: u32) -> i8 {
        bits as i8
    }

    fn wide(self) -> i32 {
        self.into()
    }

    fn round(isa: Isa, x: &[f32], q: &mut [i8]) -> (f32, i32) {
        round_int8(isa, x, q)
    }

    #[cfg(target_arch = "x86_64")]
    fn widen(isa: Isa, values: &[i8], out: &mut Vec<i16>) {
        out.resize(values.len(), 0);
        widen(isa, values, out);
    }

    #[cfg(target_arch = "x86_64")]
    fn pairs<'a>(_values: &'a [i8], wide: &'a [i16]) -> &'a [i16] {
        wide
    }

    #[cfg(target_arch = "x86_64")]
    fn round_rows(
        isa: Isa,
        x: (&[f32], usize),
        length: usize,
        scales: (&mut [f32], &mut [i32]),
        out: (&mut [[i8; 4]], usize),
    ) {
        rounding_avx512::round_bytes(isa, x, length, (scales, ADDED), out);
    }

    #[cfg(target_arch = "x86_64")]
    type Kind = kinds::Bytes;
    #[cfg(target_arch = "x86_64")]
    type Word = [i8; 4];
    #[cfg(target_arch = "x86_64")]
    const DEPTH: usize = FOURS_DEPTH;
}

per_isa! {
    /// [`round`]
    fn round_int8<FMA>(x: &[f32], q: &mut [i8]) -> (f32, i32) {
        round(x, q)
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
