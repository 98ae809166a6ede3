//! The int8 kernel for AVX2: up to 6 rows by 16 columns of integer sums in registers.

use std::arch::x86_64::*;

use super::int8::{Rows, SEGMENT, Stretch};
use super::{Isa, WIDTH, rows_per_call};

/// Bytes that the weights are fetched ahead. Panels are read one after the other, so this holds across their ends.
const PREFETCH_BYTES: usize = 2048;

/// `acc += x · weights` over one segment: `weights [pairs][16][2]`.
pub(super) fn run(_proof: Isa, x: &Rows, segment: usize, weights: &[i8], acc: &mut [[f32; WIDTH]]) {
    let per_call = rows_per_call(acc.len());
    for (i, acc) in acc.chunks_mut(per_call).enumerate() {
        let x = x.stretch(segment, i * per_call, acc.len());
        // SAFETY: the level says that AVX2 is there.
        unsafe {
            match acc.len() {
                1 => tile::<1>(x, weights, acc),
                2 => tile::<2>(x, weights, acc),
                3 => tile::<3>(x, weights, acc),
                4 => tile::<4>(x, weights, acc),
                5 => tile::<5>(x, weights, acc),
                _ => tile::<6>(x, weights, acc),
            }
        }
    }
}

/// `R` rows: two multiply-adds of 16-bit pairs for eight columns each.
#[target_feature(enable = "avx2,fma")]
fn tile<const R: usize>(x: Stretch<'_>, weights: &[i8], acc: &mut [[f32; WIDTH]]) {
    let pairs = weights.len() / (2 * WIDTH);
    assert!(acc.len() == R && x.scales.len() == R);
    assert!(x.values.len() == R * SEGMENT && 2 * pairs <= SEGMENT);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    let (values, weights) = (x.values.as_ptr(), weights.as_ptr());
    for pair in 0..pairs {
        // SAFETY: `pairs` rows of 32 weights and `R` rows of at least `2 · pairs` values are there. The prefetch never faults.
        unsafe {
            let w = weights.add(pair * 2 * WIDTH);
            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(PREFETCH_BYTES));
            let w = [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(w.cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(WIDTH).cast())),
            ];
            for r in 0..R {
                let x = values.add(r * SEGMENT + 2 * pair);
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                for half in 0..2 {
                    let products = _mm256_madd_epi16(w[half], x);
                    sums[r][half] = _mm256_add_epi32(sums[r][half], products);
                }
            }
        }
    }
    for r in 0..R {
        let scale = _mm256_set1_ps(x.scales[r]);
        for (sums, acc) in sums[r].iter().zip(acc[r].as_chunks_mut::<8>().0) {
            let scaled = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(*sums));
            // SAFETY: eight values lie at `acc`.
            unsafe {
                let old = _mm256_loadu_ps(acc.as_ptr());
                _mm256_storeu_ps(acc.as_mut_ptr(), _mm256_add_ps(old, scaled));
            }
        }
    }
}
