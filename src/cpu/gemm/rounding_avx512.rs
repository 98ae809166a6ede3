//! Rounding to integers of 16 bits and of 8 with AVX-512, and laying out what is rounded, at once.

use std::arch::x86_64::*;

use super::avx512::transpose;
use super::panels::FOURS_DEPTH;
use super::{Isa, WIDTH};

/// Rows of half a vector.
const HALF: usize = WIDTH / 2;
/// Bits of what is no longer finite.
const INFINITE: i32 = 0x7f80_0000;

/// Rounds `length` values of each of at most 16 rows that begin `stride` values apart in `x`, as many as there are `scales`, the largest of each to `most`:
/// `q = x / scale`. Their words come in turn, `out [length / 2]` times one of each row, `width` words apart. A scale is NaN where a value of its row is not finite.
pub(crate) fn round_rows(
    _proof: Isa,
    (x, stride): (&[f32], usize),
    length: usize,
    most: f32,
    scales: &mut [f32],
    (out, width): (&mut [[i16; 2]], usize),
) {
    let rows = scales.len();
    let x = Rows::of((x, stride), rows, length);
    let words = length.div_ceil(2);
    assert!(rows <= width && (words == 0 || (words - 1) * width + rows <= out.len()));
    // SAFETY: this is called for the level that has these instructions; all values and words lie inside the slices.
    unsafe {
        match rows {
            ..=HALF => x.lay_half(most, scales, out.as_mut_ptr().cast(), width),
            _ => x.lay(most, scales, out.as_mut_ptr().cast(), width),
        }
    }
}

/// The same to bytes, the largest to 127, which weights with `added` are multiplied by: sums of a row begin with its offset. Words past the `length` up to a whole
/// step of the deepest kernel are zeros.
pub(super) fn round_bytes(
    _proof: Isa,
    (x, stride): (&[f32], usize),
    length: usize,
    ((scales, offsets), added): ((&mut [f32], &mut [i32]), u8),
    (out, width): (&mut [[i8; 4]], usize),
) {
    let rows = scales.len();
    let x = Rows::of((x, stride), rows, length);
    assert!(rows == offsets.len() && rows <= width);
    let words = length.next_multiple_of(FOURS_DEPTH) / 4;
    assert!(words == 0 || (words - 1) * width + rows <= out.len());
    // SAFETY: as above.
    unsafe { x.lay_bytes((scales, offsets), added, out.as_mut_ptr().cast(), width) }
}

/// Rounds a row and the one after it, or one of zeros, with a scale each: columns of both lie side by side in `panels`, sixteen of them in each, which are
/// `stride` values apart.
pub(crate) fn round_pair(
    _proof: Isa,
    rows: [&[f32]; 2],
    most: f32,
    scales: &mut [f32],
    (panels, stride): (&mut [i16], usize),
) {
    let length = rows[0].len();
    assert!(rows[1].len() == length || scales.len() == 1);
    assert!((1..=2).contains(&scales.len()));
    let count = length.div_ceil(WIDTH);
    assert!(count == 0 || (count - 1) * stride + 2 * WIDTH <= panels.len());
    // SAFETY: as above.
    unsafe { zip(rows, most, scales, panels.as_mut_ptr(), stride) }
}

/// Rows that begin `stride` values apart.
#[derive(Clone, Copy)]
struct Rows {
    values: *const f32,
    stride: usize,
    rows: usize,
    length: usize,
}

impl Rows {
    /// `rows` rows of `length` values, which begin `stride` values apart in `x`; at most 16.
    fn of((x, stride): (&[f32], usize), rows: usize, length: usize) -> Self {
        assert!((1..=WIDTH).contains(&rows));
        assert!((rows - 1) * stride + length <= x.len());
        Self {
            values: x.as_ptr(),
            stride,
            rows,
            length,
        }
    }

    /// Which of 32 values from `first` on a row has.
    fn masks(&self, first: usize) -> [u16; 2] {
        [first, first + WIDTH].map(|first| mask(self.length.saturating_sub(first)))
    }

    /// Sixteen values of a row, zeros where `mask` has none.
    ///
    /// # Safety
    /// AVX-512 must be there, and those of the row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(&self, row: usize, first: usize, mask: u16) -> __m512 {
        let values = self.values.wrapping_add(row * self.stride + first);
        // SAFETY: by the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(mask, values) }
    }

    /// Scales of all rows; what they are to be multiplied by.
    ///
    /// # Safety
    /// AVX-512 must be there, and all rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn scale<const R: usize>(&self, most: f32, scales: &mut [f32]) -> [f32; WIDTH] {
        // Rows past the last are the last again: no branch, and as many chains as there are rows.
        let at: [*const f32; R] = std::array::from_fn(|row| {
            let row = row.min(self.rows - 1);
            self.values.wrapping_add(row * self.stride)
        });
        let mut largest = [_mm512_setzero_si512(); WIDTH];
        let whole = self.length / WIDTH * WIDTH;
        for first in (0..whole).step_by(WIDTH) {
            for row in 0..R {
                // SAFETY: by the caller's promise.
                let values = unsafe { _mm512_loadu_ps(at[row].add(first)) };
                largest[row] = larger(largest[row], values);
            }
        }
        if whole < self.length {
            let mask = mask(self.length - whole);
            for row in 0..R {
                // SAFETY: by the caller's promise; the mask leaves out what lies past the row's end.
                let values = unsafe { _mm512_maskz_loadu_ps(mask, at[row].add(whole)) };
                largest[row] = larger(largest[row], values);
            }
        }
        let largest = largest_of(largest);
        let halves = [
            _mm512_castsi512_si256(largest),
            _mm512_extracti64x4_epi64::<1>(largest),
        ];
        let mut inverses = [0.0; WIDTH];
        let each = inverses.chunks_exact_mut(HALF).zip(scales.chunks_mut(HALF));
        // Half a vector is divided in half the time.
        for ((inverses, scales), largest) in each.zip(halves) {
            let (scale, inverse) = inverse(largest, most);
            // SAFETY: a half is as long, and the mask leaves out what lies past the last scale.
            unsafe {
                _mm256_mask_storeu_ps(scales.as_mut_ptr(), mask(scales.len()) as u8, scale);
                _mm256_storeu_ps(inverses.as_mut_ptr(), inverse);
            }
        }
        inverses
    }

    /// Sixteen words of a row.
    ///
    /// # Safety
    /// As [`Rows::load`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn words(&self, row: usize, first: usize, masks: [u16; 2], inverse: f32) -> __m512i {
        let inverse = _mm512_set1_ps(inverse);
        let pairs = [0, 1].map(|i| {
            // SAFETY: by the caller's promise.
            let values = unsafe { self.load(row, first + i * WIDTH, masks[i]) };
            let integers = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
            // Of two neighbours the low halves, side by side.
            _mm512_mask_blend_epi16(0x2222_2222, integers, _mm512_srli_epi64::<16>(integers))
        });
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        _mm512_permutex2var_epi32(pairs[0], even, pairs[1])
    }

    /// Sixteen words of four bytes of a row; of one that is not finite any bytes, which its scale makes NaN.
    ///
    /// # Safety
    /// As [`Rows::load`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn fours(&self, row: usize, first: usize, inverse: f32) -> __m512i {
        let inverse = _mm512_set1_ps(inverse);
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| {
            let first = first + i * WIDTH;
            let mask = mask(self.length.saturating_sub(first));
            // SAFETY: by the caller's promise.
            let values = unsafe { self.load(row, first, mask) };
            _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse))
        });
        // Lane by lane, so that of every four words one comes from each.
        let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_epi32(order, bytes)
    }

    /// Words of four bytes of at most sixteen rows.
    ///
    /// # Safety
    /// AVX-512 must be there with VNNI, all rows readable and the words writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn lay_bytes(
        &self,
        (scales, offsets): (&mut [f32], &mut [i32]),
        added: u8,
        out: *mut i32,
        width: usize,
    ) {
        // SAFETY: by the caller's promise.
        let inverses = unsafe { self.scale::<WIDTH>(f32::from(i8::MAX), scales) };
        let (steps, stored) = (self.length.div_ceil(FOURS_DEPTH), mask(self.rows));
        let (mut sums, all_added) = (_mm512_setzero_si512(), _mm512_set1_epi8(added as i8));
        for first in (0..steps).map(|step| step * WIDTH) {
            let mut rows = [_mm512_setzero_si512(); WIDTH];
            for (row, out) in rows.iter_mut().enumerate() {
                // Without a branch: rows past the last are the last again, and are not stored.
                let row = row.min(self.rows - 1);
                // SAFETY: by the caller's promise.
                *out = unsafe { self.fours(row, 4 * first, inverses[row]) };
            }
            for (word, column) in (first..).zip(transpose(rows)) {
                sums = _mm512_dpbusd_epi32(sums, all_added, column);
                // SAFETY: by the caller's promise.
                unsafe { _mm512_mask_storeu_epi32(out.add(word * width), stored, column) };
            }
        }
        let sums = _mm512_sub_epi32(_mm512_setzero_si512(), sums);
        // SAFETY: there are as many offsets as rows.
        unsafe { _mm512_mask_storeu_epi32(offsets.as_mut_ptr(), stored, sums) };
    }

    /// Words of at most sixteen rows.
    ///
    /// # Safety
    /// AVX-512 must be there, all rows readable and the words writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lay(&self, most: f32, scales: &mut [f32], out: *mut i32, width: usize) {
        // SAFETY: by the caller's promise.
        let inverses = unsafe { self.scale::<WIDTH>(most, scales) };
        let (words, stored) = (self.length.div_ceil(2), mask(self.rows));
        for first in (0..words).step_by(WIDTH) {
            let (mut rows, masks) = ([_mm512_setzero_si512(); WIDTH], self.masks(2 * first));
            for (row, out) in rows.iter_mut().enumerate() {
                // Without a branch: rows past the last are the last again, and are not stored.
                let row = row.min(self.rows - 1);
                // SAFETY: by the caller's promise.
                *out = unsafe { self.words(row, 2 * first, masks, inverses[row]) };
            }
            let columns = transpose(rows);
            for (word, column) in (first..words).zip(columns) {
                // SAFETY: by the caller's promise.
                unsafe { _mm512_mask_storeu_epi32(out.add(word * width), stored, column) };
            }
        }
    }

    /// Words of at most eight rows, twice as many at a time.
    ///
    /// # Safety
    /// As above.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lay_half(&self, most: f32, scales: &mut [f32], out: *mut i32, width: usize) {
        // SAFETY: by the caller's promise.
        let inverses = unsafe { self.scale::<HALF>(most, scales) };
        let (words, stored) = (self.length.div_ceil(2), mask(self.rows) as u8);
        for first in (0..words).step_by(2 * WIDTH) {
            let mut rows = [_mm512_setzero_si512(); WIDTH];
            for half in 0..2 {
                let first = 2 * (first + half * WIDTH);
                let masks = self.masks(first);
                // Without a branch: rows past the last are the last again, and are not stored.
                for row in 0..HALF {
                    // SAFETY: by the caller's promise.
                    rows[half * HALF + row] =
                        unsafe { self.words(row.min(self.rows - 1), first, masks, inverses[row]) };
                }
            }
            let columns = transpose(rows);
            for (i, column) in columns.into_iter().enumerate() {
                let halves = [
                    _mm512_castsi512_si256(column),
                    _mm512_extracti64x4_epi64::<1>(column),
                ];
                for (half, column) in halves.into_iter().enumerate() {
                    let word = first + half * WIDTH + i;
                    if word < words {
                        // SAFETY: by the caller's promise.
                        unsafe { _mm256_mask_storeu_epi32(out.add(word * width), stored, column) };
                    }
                }
            }
        }
    }
}

/// [`round_pair`]
///
/// # Safety
/// AVX-512 must be there, and a line of two rows of each panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn zip(rows: [&[f32]; 2], most: f32, scales: &mut [f32], panels: *mut i16, stride: usize) {
    let count = scales.len();
    let rows = rows.map(|values| Rows {
        values: values.as_ptr(),
        stride: 0,
        rows: 1,
        length: values.len(),
    });
    // SAFETY: by the caller's promise.
    unsafe {
        let mut inverses = [0.0; 2];
        for i in 0..count {
            inverses[i] = rows[i].scale::<1>(most, &mut scales[i..i + 1])[0];
        }
        for (panel, first) in (0..rows[0].length).step_by(WIDTH).enumerate() {
            let [a, b] = [0, 1].map(|i| {
                if i >= count {
                    return _mm512_setzero_si512();
                }
                let values = rows[i].load(0, first, mask(rows[i].length - first));
                _mm512_cvtps_epi32(_mm512_mul_ps(values, _mm512_set1_ps(inverses[i])))
            });
            let line = _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b));
            _mm512_storeu_si512(panels.add(panel * stride).cast(), line);
        }
    }
}

/// A mask of the first `count` of sixteen.
fn mask(count: usize) -> u16 {
    match count {
        0..WIDTH => (1 << count) - 1,
        _ => !0,
    }
}

/// The larger sizes, as bits: those of floats without sign have the order of their sizes, and what is not finite comes last.
#[inline]
#[target_feature(enable = "avx512f")]
fn larger(sizes: __m512i, values: __m512) -> __m512i {
    let size = _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(i32::MAX));
    _mm512_max_epi32(sizes, size)
}

/// The largest of each of sixteen vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn largest_of(rows: [__m512i; WIDTH]) -> __m512i {
    // Each lane of 128 bits has of four rows what is largest in theirs.
    let fours: [__m512i; 4] = std::array::from_fn(|i| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|j| rows[4 * i + j]);
        let [ab, cd] = [(a, b), (c, d)].map(|(a, b)| {
            _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
        });
        _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    });
    let [x, y] = [(fours[0], fours[1]), (fours[2], fours[3])].map(|(a, b)| {
        let (low, high) = (
            _mm512_shuffle_i32x4::<0x44>(a, b),
            _mm512_shuffle_i32x4::<0xee>(a, b),
        );
        _mm512_max_epi32(low, high)
    });
    let (even, odd) = (
        _mm512_shuffle_i32x4::<0x88>(x, y),
        _mm512_shuffle_i32x4::<0xdd>(x, y),
    );
    _mm512_max_epi32(even, odd)
}

/// Scales and their inverses of eight rows whose largest sizes have these bits. Of rows that are not finite zeros as inverses: then all integers are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn inverse(largest: __m256i, most: f32) -> (__m256, __m256) {
    let finite = _mm256_cmplt_epi32_mask(largest, _mm256_set1_epi32(INFINITE));
    let quotient = _mm256_div_ps(_mm256_set1_ps(most), _mm256_castsi256_ps(largest));
    // The bound is for zeros and for values so small that the quotient is infinite.
    let inverse = _mm256_min_ps(quotient, _mm256_set1_ps(f32::MAX));
    let scale = _mm256_div_ps(_mm256_set1_ps(1.0), inverse);
    let nan = _mm256_set1_ps(f32::NAN);
    (
        _mm256_mask_blend_ps(finite, nan, scale),
        _mm256_maskz_mov_ps(finite, inverse),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::integers::Whole;
    use super::*;

    /// Rows of all magnitudes, `stride` values apart.
    fn rows(count: usize, stride: usize) -> Vec<f32> {
        let value =
            |i: usize| (i as f32 * 0.37).sin() * 10f32.powi((i / stride % 7) as i32 * 9 - 30);
        (0..count * stride).map(value).collect()
    }

    fn wide() -> Option<Isa> {
        let wide = Isa::available()
            .into_iter()
            .find(|isa| isa.level() == Level::Avx512);
        if wide.is_none() {
            eprintln!("SKIPPED: no AVX-512 on this machine");
        }
        wide
    }

    #[test]
    fn rows_are_rounded_as_one_by_one() {
        let Some(isa) = wide() else { return };
        for (count, length) in (1..=WIDTH).flat_map(|n| [1, 2, 31, 64, 77, 128].map(|l| (n, l))) {
            let stride = length + 5;
            let mut x = rows(count, stride);
            x[count / 2 * stride] = [f32::NAN, 0.0, f32::INFINITY][length % 3];
            let width = count.next_multiple_of(4);
            let mut scales = vec![0.0; count];
            let mut out = vec![[7i16; 2]; length.div_ceil(2) * width];
            let most = i16::LARGEST.into();
            round_rows(
                isa,
                (&x, stride),
                length,
                most,
                &mut scales,
                (&mut out, width),
            );
            for row in 0..count {
                let mut expected = vec![0i16; length.next_multiple_of(2)];
                let values = &x[row * stride..][..length];
                let (scale, _) = i16::round(Isa::PORTABLE, values, &mut expected[..length]);
                assert_eq!(scales[row].to_bits(), scale.to_bits(), "{count} {length}");
                let words = expected.as_chunks::<2>().0;
                for (i, word) in words.iter().enumerate() {
                    assert_eq!(out[i * width + row], *word, "{count} x {length}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_rounded_as_one_by_one() {
        let Some(isa) = wide() else { return };
        for (count, length) in (1..=WIDTH).flat_map(|n| [1, 3, 64, 77, 128].map(|l| (n, l))) {
            let stride = length + 3;
            let (x, width) = (rows(count, stride), count.next_multiple_of(5));
            let (mut scales, mut offsets) = (vec![0.0; count], vec![7; count]);
            let words = length.next_multiple_of(FOURS_DEPTH) / 4;
            let mut out = vec![[7i8; 4]; words * width];
            let to = (&mut scales[..], &mut offsets[..]);
            round_bytes(isa, (&x, stride), length, (to, 128), (&mut out, width));
            for row in 0..count {
                let mut expected = vec![0i8; 4 * words];
                let values = &x[row * stride..][..length];
                let (scale, sum) = i8::round(Isa::PORTABLE, values, &mut expected[..length]);
                assert_eq!(scales[row].to_bits(), scale.to_bits(), "{count} {length}");
                assert_eq!(offsets[row], -128 * sum);
                for (i, word) in expected.as_chunks::<4>().0.iter().enumerate() {
                    assert_eq!(out[i * width + row], *word, "{count} x {length}");
                }
            }
        }
    }

    #[test]
    fn a_pair_of_rows_lies_side_by_side() {
        let Some(isa) = wide() else { return };
        for (count, length) in [1, 2].into_iter().flat_map(|n| [5, 16, 50].map(|l| (n, l))) {
            let (x, stride) = (rows(2, length), 64);
            let (first, second) = x.split_at(length);
            let mut scales = vec![0.0; count];
            let mut panels = vec![7i16; length.div_ceil(WIDTH) * stride];
            let most = i16::LARGEST.into();
            round_pair(
                isa,
                [first, second],
                most,
                &mut scales,
                (&mut panels, stride),
            );
            for (row, values) in [first, second].into_iter().enumerate() {
                let mut expected = vec![0i16; length];
                let (scale, _) = i16::round(Isa::PORTABLE, values, &mut expected);
                for (column, q) in expected.into_iter().enumerate() {
                    let place = column / WIDTH * stride + column % WIDTH * 2 + row;
                    assert_eq!(panels[place], if row < count { q } else { 0 });
                }
                if row < count {
                    assert_eq!(scales[row].to_bits(), scale.to_bits());
                }
            }
        }
    }
}
