//! The kernel of rows that lie word by word: up to 6 rows by 64 columns of integer sums in registers.

use std::arch::x86_64::*;

use super::integers::Whole;
use super::kinds::Kind;
use super::words::Weight;
use super::{Accumulators, BLOCK_ROWS, Isa, MAX_PANELS, WIDTH, rows_per_call};

/// Bytes of a cache line, which is a step of a panel.
const LINE: usize = 64;

/// Where the rows begin that a stretch of the panels' depth is multiplied by, and its steps.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub(super) word: usize,
    pub(super) scale: usize,
    pub(super) steps: usize,
}

/// Rows, word by word, and what is multiplied of them.
#[derive(Clone, Copy)]
pub(super) struct Kernel<'a, V: Whole> {
    pub(super) words: &'a [V::Word],
    pub(super) scales: &'a [f32],
    pub(super) offsets: &'a [i32],
    /// Words from a row's word to its next.
    pub(super) pitch: usize,
    pub(super) starts: &'a [Start],
    /// Whether the sums start at zero.
    pub(super) fresh: bool,
}

/// What a tile fetches into the second-level cache with its first step, and how many bytes further on with each.
#[derive(Clone, Copy)]
struct Ahead {
    line: *const i8,
    pace: usize,
}

impl<V: Whole> Kernel<'_, V> {
    /// Rows of a tile.
    pub(super) const ROWS: usize = 6;
    /// Weights of a step.
    const STEP: usize = V::Kind::STEP * WIDTH;

    /// What tile `i` of `tiles` fetches: each panel is shared out among as many of them, so that memory has work while they multiply.
    fn ahead(
        &self,
        (i, tiles): (usize, usize),
        (next, size, panels): (*const Weight<V>, usize, usize),
    ) -> Ahead {
        let per_panel = (tiles / panels).max(1);
        let (panel, part) = (i / per_panel, i % per_panel);
        // What is left over fetches what is fetched already.
        let (panel, pace) = match panel < panels {
            true => (panel, LINE.div_ceil(per_panel)),
            false => (0, 0),
        };
        let bytes = self.weights() * size_of::<Weight<V>>();
        let line = next.wrapping_add(panel * size).cast::<i8>();
        Ahead {
            line: line.wrapping_add(part * bytes / per_panel),
            pace,
        }
    }

    /// Weights that it reads of each panel.
    pub(super) fn weights(&self) -> usize {
        self.starts.iter().map(|s| s.steps * Self::STEP).sum()
    }

    /// `acc [panel][rows] (+)= Σ scales · (words · panel)` for `panels` panels, `size` weights apart, of which `b` begins with the first. What is multiplied
    /// next begins `next` weights later.
    pub(super) fn run(
        &self,
        _proof: Isa,
        rows: usize,
        (b, size, panels): (&[Weight<V>], usize, usize),
        next: usize,
        acc: &mut Accumulators,
    ) {
        const { assert!(size_of::<V::Word>() == 4 && V::Kind::WORDS == 1) };
        assert!((1..=BLOCK_ROWS).contains(&rows) && (1..=MAX_PANELS).contains(&panels));
        for start in self.starts {
            let last = start.steps.saturating_sub(1) * self.pitch;
            assert!(start.word + last + rows <= self.words.len());
            let scales = self.scales.len().min(self.offsets.len());
            assert!(start.scale + rows <= scales);
        }
        assert!((panels - 1) * size + self.weights() <= b.len());
        let per_tile = rows_per_call(rows);
        let tiles = rows.div_ceil(per_tile);
        let next = b.as_ptr().wrapping_add(next);
        for i in 0..tiles {
            let row = i * per_tile;
            let count = per_tile.min(rows - row);
            let ahead = self.ahead((i, tiles), (next, size, panels));
            // SAFETY: this is called for the level that has these instructions; the assertions above cover all rows, scales and panels, and the sums of all
            // rows of a block lie in `acc`.
            unsafe { self.tiles(row, (count, panels), (b.as_ptr(), size), ahead, acc) }
        }
    }

    /// # Safety
    /// As [`Kernel::tile`].
    unsafe fn tiles(
        &self,
        row: usize,
        shape: (usize, usize),
        b: (*const Weight<V>, usize),
        ahead: Ahead,
        acc: &mut Accumulators,
    ) {
        macro_rules! tiles {
            ($([$r:literal: $($p:literal)*])*) => {
                match shape {
                    $($(($r, $p) => self.tile::<$r, $p>(row, b, ahead, acc),)*)*
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
        (b, size): (*const Weight<V>, usize),
        mut ahead: Ahead,
        acc: &mut Accumulators,
    ) {
        let mut b: [*const Weight<V>; P] = std::array::from_fn(|p| b.wrapping_add(p * size));
        let mut fresh = self.fresh;
        for start in self.starts {
            let mut x = self.words.as_ptr().wrapping_add(start.word + row);
            let mut sums = [[_mm512_setzero_ps(); P]; R];
            let first = start.scale + row;
            if V::ADDED > 0 {
                for r in 0..R {
                    // SAFETY: by the caller's promise.
                    let offset = unsafe { *self.offsets.get_unchecked(first + r) };
                    sums[r] = [_mm512_castsi512_ps(_mm512_set1_epi32(offset)); P];
                }
            }
            for _ in 0..start.steps {
                // SAFETY: by the caller's promise.
                unsafe {
                    let w: [_; P] = std::array::from_fn(|p| V::Kind::load(b[p]));
                    for r in 0..R {
                        for p in 0..P {
                            sums[r][p] = V::Kind::add(sums[r][p], x.add(r).cast(), w[p], 0);
                        }
                    }
                }
                // A prefetch changes nothing and never faults, wherever it points.
                _mm_prefetch::<_MM_HINT_T1>(ahead.line);
                ahead.line = ahead.line.wrapping_add(ahead.pace);
                x = x.wrapping_add(self.pitch);
                b = b.map(|b| b.wrapping_add(Self::STEP));
            }
            for r in 0..R {
                // SAFETY: by the caller's promise.
                let scale = unsafe { _mm512_set1_ps(*self.scales.get_unchecked(first + r)) };
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
                        // One rounding, as in the other kernels.
                        let exact = _mm512_cvtepi32_ps(_mm512_castps_si512(sums[r][p]));
                        _mm512_storeu_ps(out, _mm512_fmadd_ps(scale, exact, old));
                    }
                }
            }
            fresh = false;
        }
    }
}
