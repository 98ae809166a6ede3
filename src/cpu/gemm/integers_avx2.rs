//! The kernel of integers for AVX2: up to 6 rows by 16 columns of integer sums in registers, or fewer rows by more panels.

use std::arch::x86_64::*;

use super::integers::{Rows, SEGMENT, Stretch, Whole};
use super::{Accumulators, Isa, WIDTH, rows_per_call};

/// Bytes that the weights are fetched ahead. Panels are read one after the other, so this holds across their ends. Panels that are read side
/// by side are as many streams, which the CPU fetches ahead sooner by itself.
const PREFETCH_BYTES: usize = 2048;

/// A stored weight that becomes 16 bits in registers.
pub(super) trait Load: bytemuck::Pod {
    /// Columns 0..8 and 8..16 of the pair of panel rows at `p`.
    ///
    /// # Safety
    /// AVX2 must be there, and 32 values readable at `p`.
    unsafe fn load(p: *const Self) -> [__m256i; 2];
}

impl Load for i8 {
    #[inline(always)]
    unsafe fn load(p: *const i8) -> [__m256i; 2] {
        // SAFETY: by the caller's promise.
        unsafe { [0, 16].map(|first| _mm256_cvtepi8_epi16(_mm_loadu_si128(p.add(first).cast()))) }
    }
}

impl Load for i16 {
    #[inline(always)]
    unsafe fn load(p: *const i16) -> [__m256i; 2] {
        // SAFETY: by the caller's promise.
        unsafe { [0, 16].map(|first| _mm256_loadu_si256(p.add(first).cast())) }
    }
}

/// `acc [panel][rows] = rows · panel` for `count` panels of `size` weights, `[pairs][16][2]`.
pub(super) fn run<V: Whole>(
    _proof: Isa,
    x: &Rows<V>,
    b: &[V],
    (count, size): (usize, usize),
    acc: &mut Accumulators,
) {
    let per_call = rows_per_call(x.count);
    let wide = match per_call {
        1 => 4,
        2 => 2,
        _ => 1,
    };
    let mut panel = 0;
    while panel < count {
        let panels = if count - panel >= wide { wide } else { 1 };
        let (b, acc) = (
            &b[panel * size..][..panels * size],
            &mut acc[panel..][..panels],
        );
        for acc in &mut *acc {
            acc[..x.count].fill([0.0; WIDTH]);
        }
        for first in (0..size).step_by(SEGMENT * WIDTH) {
            let pairs = (size - first).min(SEGMENT * WIDTH) / (2 * WIDTH);
            let weights = Weights {
                b,
                first,
                size,
                pairs,
            };
            for row in (0..x.count).step_by(per_call) {
                let rows = per_call.min(x.count - row);
                let x = x.stretch(first / (SEGMENT * WIDTH), row, rows);
                // SAFETY: the level says that AVX2 is there.
                unsafe {
                    match (rows, panels) {
                        (1, 4) => tile::<V, 1, 4>(x, weights, acc, row),
                        (1, _) => tile::<V, 1, 1>(x, weights, acc, row),
                        (2, 2) => tile::<V, 2, 2>(x, weights, acc, row),
                        (2, _) => tile::<V, 2, 1>(x, weights, acc, row),
                        (3, _) => tile::<V, 3, 1>(x, weights, acc, row),
                        (4, _) => tile::<V, 4, 1>(x, weights, acc, row),
                        (5, _) => tile::<V, 5, 1>(x, weights, acc, row),
                        _ => tile::<V, 6, 1>(x, weights, acc, row),
                    }
                }
            }
        }
        panel += panels;
    }
}

/// A segment of some panels: `pairs` times 32 weights from `first` on, in each panel of `size` weights.
#[derive(Clone, Copy)]
struct Weights<'a, W> {
    b: &'a [W],
    first: usize,
    size: usize,
    pairs: usize,
}

/// `acc [panel][row..] += x · weights` for `R` rows and `P` panels: two multiply-adds of 16-bit pairs for eight columns each.
#[target_feature(enable = "avx2,fma")]
fn tile<W: Load, const R: usize, const P: usize>(
    x: Stretch<'_, i16>,
    weights: Weights<'_, W>,
    acc: &mut [[[f32; WIDTH]; super::BLOCK_ROWS]],
    row: usize,
) {
    const { assert!(R * P * 2 <= 12) };
    let Weights {
        b,
        first,
        size,
        pairs,
    } = weights;
    assert!(x.scales.len() == R && x.values.len() == R * SEGMENT && 2 * pairs <= SEGMENT);
    assert!(acc.len() == P && first + pairs * 2 * WIDTH <= size && b.len() == P * size);
    let mut sums = [[[_mm256_setzero_si256(); 2]; R]; P];
    let (values, b) = (x.values.as_ptr(), b[first..].as_ptr());
    for pair in 0..pairs {
        // SAFETY: `pairs` rows of 32 weights of each panel and `R` rows of at least `2 · pairs` values are there. The prefetch never faults.
        unsafe {
            for p in 0..P {
                let w = b.add(p * size + pair * 2 * WIDTH);
                if P == 1 {
                    _mm_prefetch::<_MM_HINT_T0>(w.cast::<i8>().wrapping_add(PREFETCH_BYTES));
                }
                let w = W::load(w);
                for r in 0..R {
                    let x = values.add(r * SEGMENT + 2 * pair);
                    let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                    for half in 0..2 {
                        let products = _mm256_madd_epi16(w[half], x);
                        sums[p][r][half] = _mm256_add_epi32(sums[p][r][half], products);
                    }
                }
            }
        }
    }
    for (sums, acc) in sums.iter().zip(acc) {
        for (r, (sums, acc)) in sums.iter().zip(&mut acc[row..]).enumerate() {
            let scale = _mm256_set1_ps(x.scales[r]);
            for (sums, acc) in sums.iter().zip(acc.as_chunks_mut::<8>().0) {
                let exact = _mm256_cvtepi32_ps(*sums);
                // SAFETY: eight values lie at `acc`.
                unsafe {
                    let old = _mm256_loadu_ps(acc.as_ptr());
                    _mm256_storeu_ps(acc.as_mut_ptr(), _mm256_fmadd_ps(scale, exact, old));
                }
            }
        }
    }
}
