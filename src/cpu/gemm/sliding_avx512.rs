//! The kernel of convolutions in 16-bit integers: up to 6 rows by 64 columns of integer sums in registers.

use std::arch::x86_64::*;

use super::{Accumulators, BLOCK_ROWS, Isa, MAX_PANELS, WIDTH, rows_per_call};

/// Where the rows that a stretch of a tap reads begin.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub(super) word: usize,
    pub(super) scale: usize,
}

/// Rows, word by word, and what is multiplied of them.
#[derive(Clone, Copy)]
pub(super) struct Kernel<'a> {
    pub(super) words: &'a [[i16; 2]],
    pub(super) scales: &'a [f32],
    /// Words from a row's word to its next.
    pub(super) pitch: usize,
    /// Words of a stretch.
    pub(super) steps: usize,
    pub(super) starts: &'a [Start],
    /// Whether the sums start at zero.
    pub(super) fresh: bool,
}

impl Kernel<'_> {
    /// Rows of a tile.
    pub(super) const ROWS: usize = 6;

    /// `acc [panel][rows] (+)= Σ scales · (words · panel)` for `panels` panels, `size` weights apart, of which `b` begins with the first.
    pub(super) fn run(
        &self,
        _proof: Isa,
        rows: usize,
        (b, size, panels): (&[i16], usize, usize),
        acc: &mut Accumulators,
    ) {
        assert!((1..=BLOCK_ROWS).contains(&rows) && (1..=MAX_PANELS).contains(&panels));
        assert!(self.steps > 0, "gemm: an empty stretch");
        assert!(rows <= self.pitch);
        let last = (self.steps - 1) * self.pitch + rows;
        for start in self.starts {
            assert!(start.word + last <= self.words.len());
            assert!(start.scale + rows <= self.scales.len());
        }
        let read = self.starts.len() * self.steps * 2 * WIDTH;
        assert!((panels - 1) * size + read <= b.len());
        let per_tile = rows_per_call(rows);
        for row in (0..rows).step_by(per_tile) {
            let count = per_tile.min(rows - row);
            // SAFETY: this is called for the level that has these instructions; the assertions above cover all rows, scales and panels, and the sums of all
            // rows of a block lie in `acc`.
            unsafe { self.tiles(row, (count, panels), (b.as_ptr(), size), acc) }
        }
    }

    /// # Safety
    /// As [`Kernel::tile`].
    unsafe fn tiles(
        &self,
        row: usize,
        shape: (usize, usize),
        b: (*const i16, usize),
        acc: &mut Accumulators,
    ) {
        macro_rules! tiles {
            ($([$r:literal: $($p:literal)*])*) => {
                match shape {
                    $($(($r, $p) => self.tile::<$r, $p>(row, b, acc),)*)*
                    _ => unreachable!("a tile of {shape:?}. This is a bug."),
                }
            };
        }
        // SAFETY: by the caller's promise.
        unsafe {
            tiles!([1: 1 2 3 4] [2: 1 2 3 4] [3: 1 2 3 4] [4: 1 2 3 4] [5: 1 2 3 4] [6: 1 2 3 4])
        }
    }

    /// `R` rows from `row` on by `P` panels.
    ///
    /// # Safety
    /// AVX-512 must be there with VNNI; all rows of all stretches, their scales and weights must be readable, and `row + R` at most [`BLOCK_ROWS`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tile<const R: usize, const P: usize>(
        &self,
        row: usize,
        (b, size): (*const i16, usize),
        acc: &mut Accumulators,
    ) {
        let mut b: [*const i16; P] = std::array::from_fn(|p| b.wrapping_add(p * size));
        let mut fresh = self.fresh;
        for start in self.starts {
            let mut x = self.words.as_ptr().wrapping_add(start.word + row);
            let mut sums = [[_mm512_setzero_si512(); P]; R];
            for _ in 0..self.steps {
                // SAFETY: by the caller's promise.
                unsafe {
                    let w: [__m512i; P] = std::array::from_fn(|p| _mm512_loadu_si512(b[p].cast()));
                    for r in 0..R {
                        let x = _mm512_set1_epi32(x.add(r).cast::<i32>().read_unaligned());
                        for p in 0..P {
                            sums[r][p] = _mm512_dpwssd_epi32(sums[r][p], w[p], x);
                        }
                    }
                }
                x = x.wrapping_add(self.pitch);
                b = b.map(|b| b.wrapping_add(2 * WIDTH));
            }
            for r in 0..R {
                // SAFETY: by the caller's promise.
                let scale =
                    unsafe { _mm512_set1_ps(*self.scales.as_ptr().add(start.scale + row + r)) };
                for p in 0..P {
                    // SAFETY: sixteen sums lie there, of a row of the block.
                    unsafe {
                        let out = acc
                            .get_unchecked_mut(p)
                            .get_unchecked_mut(row + r)
                            .as_mut_ptr();
                        let old = match fresh {
                            true => _mm512_setzero_ps(),
                            false => _mm512_loadu_ps(out),
                        };
                        let exact = _mm512_cvtepi32_ps(sums[r][p]);
                        _mm512_storeu_ps(out, _mm512_fmadd_ps(scale, exact, old));
                    }
                }
            }
            fresh = false;
        }
    }
}
