//! What AVX-512 multiplies: f32, pairs of bf16, widened or not, fours of bytes or pairs of 16-bit integers.

use std::arch::x86_64::*;

use super::WIDTH;
use super::avx512::Corner;

/// What a product multiplies. One step takes [`Kind::STEP`] values of the depth.
pub(crate) trait Kind: Sized {
    /// A value of the input.
    type X: Copy;
    /// A stored weight.
    type W: Copy;
    /// Sixteen columns of one step.
    type Columns: Copy;
    const STEP: usize;
    /// Values of the input in a word of 32 bits, which is what a product takes at once.
    const WORD: usize = 4 / size_of::<Self::X>();
    /// Words of a step.
    const WORDS: usize = Self::STEP / Self::WORD;
    /// Whether sums are integers, which begin with an offset and which a scale makes floats.
    const SCALED: bool = false;
    /// Steps that share a cache line of a panel.
    const STEPS_PER_LINE: usize = 64 / (Self::STEP * WIDTH * size_of::<Self::W>());

    /// # Safety
    /// AVX-512 must be there, and `16 · STEP` weights readable at `p`.
    unsafe fn load(p: *const Self::W) -> Self::Columns;

    /// `sums + x · w` for one of the words of a step. Integer sums travel as the bits of floats.
    ///
    /// # Safety
    /// AVX-512 must be there, with what the kind multiplies by, and a word readable at `x`.
    unsafe fn add(sums: __m512, x: *const Self::X, w: Self::Columns, word: usize) -> __m512;

    /// The same by the word that lies `OFFSET` bytes behind `x`.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn add_behind<const OFFSET: usize>(
        sums: __m512,
        x: *const Self::X,
        w: Self::Columns,
        word: usize,
    ) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { Self::add(sums, x.byte_add(OFFSET), w, word) }
    }

    /// [`Corner::tile`], compiled for what the kind multiplies by.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tile<const R: usize, const P: usize, const TOGETHER: bool>(corner: &Corner<Self>) {
        // SAFETY: by the caller's promise.
        unsafe { corner.tile::<R, P, TOGETHER>() }
    }
}

/// f32 by f32, one multiply-add for each value of the depth.
pub(crate) struct Single;

impl Kind for Single {
    type X = f32;
    type W = f32;
    type Columns = __m512;
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn add(sums: __m512, x: *const f32, w: __m512, _: usize) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(*x), w, sums) }
    }
}

/// Pairs of bf16, whose bits are in `u16`.
pub(crate) struct Bf16;

impl Kind for Bf16 {
    type X = u16;
    type W = u16;
    type Columns = __m512bh;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> __m512bh {
        // SAFETY: by the caller's promise; both are 64 bytes in which every pattern is a value.
        unsafe { std::mem::transmute(_mm512_loadu_si512(p.cast())) }
    }

    #[inline(always)]
    unsafe fn add(sums: __m512, x: *const u16, w: __m512bh, _: usize) -> __m512 {
        // SAFETY: by the caller's promise; the cast is as above.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(x), w)
        }
    }

    /// In assembly: the compiler loads every word by itself, which takes Zen 4 half as long again where weights come from memory (16 rows in a loop by
    /// itself, medians of nine: 19 GB/s so, 26 like this).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add_behind<const OFFSET: usize>(
        mut sums: __m512,
        x: *const u16,
        w: __m512bh,
        _: usize,
    ) -> __m512 {
        // SAFETY: by the caller's promise; the cast is as above.
        unsafe {
            std::arch::asm!(
                "vdpbf16ps {sums}, {w}, dword ptr [{x} + {offset}]{{1to16}}",
                sums = inout(zmm_reg) sums,
                w = in(zmm_reg) std::mem::transmute::<__m512bh, __m512i>(w),
                x = in(reg) x,
                offset = const OFFSET,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        sums
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn tile<const R: usize, const P: usize, const TOGETHER: bool>(corner: &Corner<Self>) {
        // SAFETY: by the caller's promise.
        unsafe { corner.tile::<R, P, TOGETHER>() }
    }
}

/// f32 by pairs of bf16 that are widened, two multiply-adds for each.
pub(crate) struct Widened;

impl Kind for Widened {
    type X = f32;
    type W = u16;
    type Columns = [__m512; 2];
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> [__m512; 2] {
        // SAFETY: by the caller's promise.
        unsafe {
            let words = _mm512_loadu_si512(p.cast());
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
                _mm512_castsi512_ps(high),
            ]
        }
    }

    #[inline(always)]
    unsafe fn add(sums: __m512, x: *const f32, w: [__m512; 2], word: usize) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(*x), w[word], sums) }
    }
}

/// A kind of integers: `$step` values of the depth at once, multiplied and added by one instruction, which is `$product` and in assembly `$name`.
macro_rules! integers {
    ($(#[$doc:meta])* $kind:ident, $x:ty, $w:ty, $step:literal, $product:ident, $name:literal) => {
        $(#[$doc])*
        pub(crate) struct $kind;

        impl Kind for $kind {
            type X = $x;
            type W = $w;
            type Columns = __m512i;
            const STEP: usize = $step;
            const SCALED: bool = true;

            #[inline(always)]
            unsafe fn load(p: *const $w) -> __m512i {
                // SAFETY: by the caller's promise.
                unsafe { _mm512_loadu_si512(p.cast()) }
            }

            #[inline(always)]
            unsafe fn add(sums: __m512, x: *const $x, w: __m512i, _: usize) -> __m512 {
                // SAFETY: by the caller's promise.
                unsafe {
                    let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                    _mm512_castsi512_ps($product(_mm512_castps_si512(sums), w, x))
                }
            }

            /// In assembly, as pairs of bf16 are.
            #[inline]
            #[target_feature(enable = "avx512f,avx512vnni")]
            unsafe fn add_behind<const OFFSET: usize>(
                mut sums: __m512,
                x: *const $x,
                w: __m512i,
                _: usize,
            ) -> __m512 {
                // SAFETY: by the caller's promise.
                unsafe {
                    std::arch::asm!(
                        concat!($name, " {sums}, {w}, dword ptr [{x} + {offset}]{{1to16}}"),
                        sums = inout(zmm_reg) sums,
                        w = in(zmm_reg) w,
                        x = in(reg) x,
                        offset = const OFFSET,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                sums
            }
        }
    };
}

integers!(
    /// Fours of int8 with sign by fours of bytes without.
    Bytes, i8, u8, 4, _mm512_dpbusd_epi32, "vpdpbusd"
);
integers!(
    /// Pairs of 16-bit integers.
    Words, i16, i16, 2, _mm512_dpwssd_epi32, "vpdpwssd"
);
