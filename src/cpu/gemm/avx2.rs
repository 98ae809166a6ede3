//! The kernel for AVX2 and FMA: up to 6 rows by 16 columns in registers, or fewer rows by more panels.

use std::arch::x86_64::*;

use super::{Call, Isa, Target, WIDTH, rows_per_call};

/// Bytes that a stream of weights is fetched ahead.
const PREFETCH_BYTES: usize = 1024;

/// A stored weight that becomes f32 in registers.
pub(crate) trait Load: Copy {
    /// Columns 0..8 and 8..16 of the panel row at `p`.
    ///
    /// # Safety
    /// AVX2 must be there, and 16 values readable at `p`.
    unsafe fn load(p: *const Self) -> [__m256; 2];
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [__m256; 2] {
        // SAFETY: by the caller's promise.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
}

impl Load for u16 {
    #[inline(always)]
    unsafe fn load(p: *const u16) -> [__m256; 2] {
        // SAFETY: by the caller's promise.
        unsafe {
            let words = _mm256_loadu_si256(p.cast());
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)),
                _mm256_castsi256_ps(high),
            ]
        }
    }
}

/// `out (+)= a b`
pub(super) fn run<W: Load>(_proof: Isa, call: &Call<'_>, b: &[W], out: Target<'_>) {
    assert!(call.rows > 0 && call.panels > 0);
    assert!(call.a.len() >= (call.rows - 1) * call.row_stride + call.depth);
    assert!(b.len() >= (call.panels - 1) * call.panel_stride + call.depth * WIDTH);
    assert!(out.values.len() >= out.end(call.rows, call.panels));
    let per_call = rows_per_call(call.rows);
    // What follows these weights is what the next call multiplies by. While the tiles go over this stretch it is fetched, a share by each
    // and evenly, so that a tile never waits for a burst of loads; a single tile fetches what it reads itself.
    let tiles = call.rows.div_ceil(per_call);
    let next = (call.panels - 1) * call.panel_stride + call.depth * WIDTH;
    let share = call.depth * WIDTH / tiles;
    let pace = (WIDTH * size_of::<W>()).div_ceil(tiles);
    let mut row = 0;
    while row < call.rows {
        let rows = per_call.min(call.rows - row);
        let wide = match rows {
            1 => 4,
            2 => 2,
            _ => 1,
        };
        let mut panel = 0;
        while panel < call.panels {
            let panels = if call.panels - panel >= wide { wide } else { 1 };
            let ahead = match tiles {
                1 => b
                    .as_ptr()
                    .wrapping_add(panel * call.panel_stride)
                    .cast::<i8>()
                    .wrapping_add(PREFETCH_BYTES),
                _ => b
                    .as_ptr()
                    .wrapping_add(next + row / per_call * share)
                    .cast(),
            };
            let corner = Corner {
                a: call.a[row * call.row_stride..].as_ptr(),
                row_stride: call.row_stride,
                b: b[panel * call.panel_stride..].as_ptr(),
                panel_stride: call.panel_stride,
                ahead,
                pace,
                depth: call.depth,
                out: out.values[row * out.row_stride + panel * out.panel_stride..].as_mut_ptr(),
                out_row_stride: out.row_stride,
                out_panel_stride: out.panel_stride,
                fresh: call.fresh,
            };
            // SAFETY: the level says that AVX2 and FMA are there; the assertions above cover every row and panel of the tile.
            unsafe {
                match (rows, panels) {
                    (1, 4) => tile::<W, 1, 4>(corner),
                    (1, _) => tile::<W, 1, 1>(corner),
                    (2, 2) => tile::<W, 2, 2>(corner),
                    (2, _) => tile::<W, 2, 1>(corner),
                    (3, _) => tile::<W, 3, 1>(corner),
                    (4, _) => tile::<W, 4, 1>(corner),
                    (5, _) => tile::<W, 5, 1>(corner),
                    _ => tile::<W, 6, 1>(corner),
                }
            }
            panel += panels;
        }
        row += rows;
    }
}

/// Where a tile begins in the input, the weights and the sums.
#[derive(Clone, Copy)]
struct Corner<W> {
    a: *const f32,
    row_stride: usize,
    b: *const W,
    panel_stride: usize,
    /// What is fetched at the first step of the depth, of the first panel, and how many bytes further at each.
    ahead: *const i8,
    pace: usize,
    depth: usize,
    out: *mut f32,
    out_row_stride: usize,
    out_panel_stride: usize,
    fresh: bool,
}

/// `R` rows by `P` panels.
///
/// # Safety
/// AVX2 and FMA must be there; `a`, `b` and `out` must be valid for the whole tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<W: Load, const R: usize, const P: usize>(t: Corner<W>) {
    const { assert!(R * P * 2 <= 12) };
    let mut c = [[[_mm256_setzero_ps(); 2]; R]; P];
    // SAFETY: all offsets stay inside the tile.
    unsafe {
        let at = |p: usize, r: usize| t.out.add(r * t.out_row_stride + p * t.out_panel_stride);
        if !t.fresh {
            for p in 0..P {
                for r in 0..R {
                    c[p][r] = [_mm256_loadu_ps(at(p, r)), _mm256_loadu_ps(at(p, r).add(8))];
                }
            }
        }
        let (mut b, mut ahead) = (t.b, t.ahead);
        for k in 0..t.depth {
            for p in 0..P {
                let row = b.add(p * t.panel_stride);
                // Of more rows the first-level cache holds the weights under way and the input: the next come only near.
                let line = ahead.wrapping_add(p * t.panel_stride * size_of::<W>());
                if R <= 2 {
                    _mm_prefetch::<_MM_HINT_T0>(line);
                } else {
                    _mm_prefetch::<_MM_HINT_T1>(line);
                }
                let w = W::load(row);
                for r in 0..R {
                    let x = _mm256_broadcast_ss(&*t.a.add(r * t.row_stride + k));
                    c[p][r][0] = _mm256_fmadd_ps(x, w[0], c[p][r][0]);
                    c[p][r][1] = _mm256_fmadd_ps(x, w[1], c[p][r][1]);
                }
            }
            b = b.add(WIDTH);
            ahead = ahead.wrapping_add(t.pace);
        }
        for p in 0..P {
            for r in 0..R {
                _mm256_storeu_ps(at(p, r), c[p][r][0]);
                _mm256_storeu_ps(at(p, r).add(8), c[p][r][1]);
            }
        }
    }
}
