//! The kernel for AVX-512: up to 6 rows by 64 columns of sums in registers, of f32, of pairs of bf16, widened or not, or of pairs of integers.

use std::arch::x86_64::*;

use super::{Call, Isa, MAX_PANELS, Target, WIDTH, rows_per_call};

/// Bytes that each panel is fetched ahead where all rows are one tile, which has read a panel before memory can bring the next
/// (Emerald Rapids, one row by four bf16 panels: 23 GB/s so, 18 when the tile fetched the next four, 20 when it fetched nothing, of 28).
const NEAR_BYTES: usize = 2048;

/// What a product multiplies. One step takes [`Kind::STEP`] values of the depth.
pub(crate) trait Kind {
    /// A value of the input.
    type X: Copy;
    /// A stored weight.
    type W: Copy;
    /// Sixteen columns of one step.
    type Columns: Copy;
    const STEP: usize;
    /// Steps that share a cache line of a panel.
    const STEPS_PER_LINE: usize = 64 / (Self::STEP * WIDTH * size_of::<Self::W>());

    /// # Safety
    /// AVX-512 must be there, and `16 · STEP` weights readable at `p`.
    unsafe fn load(p: *const Self::W) -> Self::Columns;

    /// `sums + x · w`. Integer sums travel as the bits of floats.
    ///
    /// # Safety
    /// AVX-512 must be there, with what the kind multiplies by, and `STEP` values readable at `x`.
    unsafe fn add(sums: __m512, x: *const Self::X, w: Self::Columns) -> __m512;
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
    unsafe fn add(sums: __m512, x: *const f32, w: __m512) -> __m512 {
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
    unsafe fn add(sums: __m512, x: *const u16, w: __m512bh) -> __m512 {
        // SAFETY: by the caller's promise; the cast is as above.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(x), w)
        }
    }
}

/// f32 by pairs of bf16 that are widened, two multiply-adds for each.
pub(super) struct Widened;

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
    unsafe fn add(sums: __m512, x: *const f32, w: [__m512; 2]) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe {
            let sums = _mm512_fmadd_ps(_mm512_set1_ps(*x), w[0], sums);
            _mm512_fmadd_ps(_mm512_set1_ps(*x.add(1)), w[1], sums)
        }
    }
}

/// Pairs of 16-bit integers by int8.
pub(super) struct Integer;

impl Kind for Integer {
    type X = i16;
    type W = i8;
    type Columns = __m512i;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const i8) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn add(sums: __m512, x: *const i16, w: __m512i) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm512_castsi512_ps(_mm512_dpwssd_epi32(_mm512_castps_si512(sums), x, w))
        }
    }
}

/// The panels of a call, and those that are likely to come after them.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a, W> {
    panels: [&'a [W]; MAX_PANELS],
    next: [*const W; MAX_PANELS],
    /// Whether the panels of a call go on behind what it reads of them.
    connected: bool,
}

impl<'a, W> Side<'a, W> {
    /// `count` panels, `stride` apart; those of the next call begin `next` weights later.
    pub(crate) fn strided(b: &'a [W], count: usize, stride: usize, next: usize) -> Self {
        assert!((1..=MAX_PANELS).contains(&count));
        Self {
            panels: std::array::from_fn(|p| &b[p.min(count - 1) * stride..]),
            next: std::array::from_fn(|p| b.as_ptr().wrapping_add(next + p * stride)),
            connected: true,
        }
    }

    /// Panels from anywhere.
    pub(crate) fn scattered(panels: &[&'a [W]], next: &[&[W]]) -> Self {
        assert!((1..=MAX_PANELS).contains(&panels.len()));
        let at = |p: usize| panels[p.min(panels.len() - 1)];
        Self {
            panels: std::array::from_fn(at),
            next: std::array::from_fn(|p| next.get(p).unwrap_or(&at(p)).as_ptr()),
            connected: false,
        }
    }

    /// What the only tile of a call fetches.
    fn near(&self) -> [*const W; MAX_PANELS] {
        match self.connected {
            true => (self.panels).map(|b| b.as_ptr().wrapping_byte_add(NEAR_BYTES)),
            false => self.next,
        }
    }

    /// What tile `i` of `calls` fetches: together the tiles fetch all that comes next, so that memory has work while they multiply.
    fn ahead(&self, i: usize, calls: usize) -> [*const W; MAX_PANELS] {
        let ([n0, n1, n2, n3], here) = (self.next, self.panels[0].as_ptr());
        match (calls, i) {
            (1, _) => self.next,
            (2 | 3, 0) => [n0, n1, n0, n1],
            (2, 1) => [n2, n3, n2, n3],
            (3, 1) => [n2, here, n2, here],
            (3, 2) => [n3, here, n3, here],
            (4.., 0..MAX_PANELS) => [self.next[i], here, self.next[i], here],
            _ => [here; MAX_PANELS],
        }
    }
}

/// `out (+)= a b`; with integers `out (+)= scales · (a b)`, one scale per row.
pub(crate) fn run<K: Kind>(
    _proof: Isa,
    call: &Call<'_, K::X>,
    scales: Option<&[f32]>,
    b: Side<'_, K::W>,
    out: Target<'_>,
) {
    let steps = call.depth.div_ceil(K::STEP);
    let (rows, panels) = (call.rows, call.panels);
    assert!((1..=MAX_PANELS).contains(&panels) && rows > 0);
    assert!(call.a.len() >= (rows - 1) * call.row_stride + steps * K::STEP);
    let size = steps * K::STEP * WIDTH;
    assert!(b.panels.iter().take(panels).all(|b| b.len() >= size));
    assert!(out.values.len() >= out.end(rows, panels));
    assert!(scales.is_none_or(|s| s.len() == rows));
    let per_call = rows_per_call(rows);
    let calls = rows.div_ceil(per_call);
    // Where two steps share a line, what comes next is near already.
    let alone = calls == 1 && K::STEPS_PER_LINE == 1;
    for i in 0..calls {
        let row = i * per_call;
        let corner = Corner::<K> {
            a: call.a[row * call.row_stride..].as_ptr(),
            row_stride: call.row_stride,
            b: b.panels.map(|b| b.as_ptr()),
            steps,
            out: out.values[row * out.row_stride..].as_mut_ptr(),
            out_row_stride: out.row_stride,
            out_panel_stride: out.panel_stride,
            scales: scales.map(|s| s[row..].as_ptr()),
            fresh: call.fresh,
            ahead: if alone { b.near() } else { b.ahead(i, calls) },
            all_ahead: alone,
        };
        // SAFETY: the level says that the instructions are there; the assertions above cover every row and panel of the tile.
        unsafe { corner.run(per_call.min(rows - row), panels) }
    }
}

/// Where a tile begins in the input, the weights and the sums.
struct Corner<K: Kind> {
    a: *const K::X,
    row_stride: usize,
    b: [*const K::W; MAX_PANELS],
    steps: usize,
    out: *mut f32,
    out_row_stride: usize,
    out_panel_stride: usize,
    /// Of the tile's rows, where sums are integers.
    scales: Option<*const f32>,
    fresh: bool,
    /// A step fetches from the first two, where two steps share a line by turns from those and the others.
    ahead: [*const K::W; MAX_PANELS],
    /// Whether it fetches from all four.
    all_ahead: bool,
}

/// Calls the tile whose numbers of rows and panels are constants.
macro_rules! tiles {
    ($self:ident, $rows:expr, $panels:expr, [$($r:literal)*]) => {
        match ($rows, $panels) {
            $(
                ($r, 1) => $self.tile::<$r, 1>(),
                ($r, 2) => $self.tile::<$r, 2>(),
                ($r, 3) => $self.tile::<$r, 3>(),
                ($r, 4) => $self.tile::<$r, 4>(),
            )*
            _ => unreachable!("a tile of {} x {}. This is a bug.", $rows, $panels),
        }
    };
}

impl<K: Kind> Corner<K> {
    /// # Safety
    /// As [`Corner::tile`].
    unsafe fn run(&self, rows: usize, panels: usize) {
        // SAFETY: by the caller's promise.
        unsafe { tiles!(self, rows, panels, [1 2 3 4 5 6]) }
    }

    /// `R` rows by `P` panels.
    ///
    /// # Safety
    /// AVX-512 with VNNI and BF16 must be there; `a`, `b`, `out` and `scales` must be valid for the whole tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")]
    unsafe fn tile<const R: usize, const P: usize>(&self) {
        const { assert!(R * P <= 24) };
        let mut c = [[_mm512_setzero_ps(); P]; R];
        // SAFETY: all offsets stay inside the tile, and a prefetch never faults.
        unsafe {
            let at = |r, p| {
                self.out
                    .add(r * self.out_row_stride + p * self.out_panel_stride)
            };
            if self.scales.is_none() && !self.fresh {
                for r in 0..R {
                    for p in 0..P {
                        c[r][p] = _mm512_loadu_ps(at(r, p));
                    }
                }
            }
            let mut a = self.a;
            let (b, ahead) = (self.b, self.ahead);
            for step in 0..self.steps {
                let at = step * K::STEP * WIDTH;
                let turn = step % K::STEPS_PER_LINE.min(2) * 2;
                for other in [turn, turn + 1] {
                    _mm_prefetch::<_MM_HINT_T0>(ahead[other].wrapping_add(at).cast());
                }
                if self.all_ahead {
                    for other in [2, 3] {
                        _mm_prefetch::<_MM_HINT_T0>(ahead[other].wrapping_add(at).cast());
                    }
                }
                let w: [K::Columns; P] = std::array::from_fn(|p| K::load(b[p].add(at)));
                for r in 0..R {
                    for p in 0..P {
                        c[r][p] = K::add(c[r][p], a.add(r * self.row_stride), w[p]);
                    }
                }
                a = a.add(K::STEP);
            }
            for r in 0..R {
                for p in 0..P {
                    let mut sums = c[r][p];
                    if let Some(scales) = self.scales {
                        let old = match self.fresh {
                            true => _mm512_setzero_ps(),
                            false => _mm512_loadu_ps(at(r, p)),
                        };
                        let exact = _mm512_cvtepi32_ps(_mm512_castps_si512(sums));
                        // Two roundings, as in the other kernels.
                        sums = _mm512_add_ps(
                            old,
                            _mm512_mul_ps(_mm512_set1_ps(*scales.add(r)), exact),
                        );
                    }
                    _mm512_storeu_ps(at(r, p), sums);
                }
            }
        }
    }
}

/// `out = bf16(x)`, to the nearest, of two the even one.
pub(crate) fn round_to_bf16(_proof: Isa, x: &[f32], out: &mut [u16]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn loops(x: &[f32], out: &mut [u16]) {
        let n = x.len().min(out.len());
        for first in (0..n).step_by(WIDTH) {
            let mask = !0u16 >> (WIDTH - WIDTH.min(n - first));
            // SAFETY: the mask leaves out what lies past the ends.
            unsafe {
                let values = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(first));
                let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
                _mm256_mask_storeu_epi16(out.as_mut_ptr().add(first).cast(), mask, rounded);
            }
        }
    }
    // SAFETY: this is called for the level that has these instructions.
    unsafe { loops(x, out) }
}
