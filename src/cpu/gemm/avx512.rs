//! The kernel for AVX-512: sums of f32, of pairs of bf16, widened or not, of fours of bytes or of pairs of 16-bit integers. In registers are up to 6 rows by 64 columns where
//! rows lie one after the other, and where they lie together, word by word, up to 8 rows by 48, 12 by 32 or 16 by 16.

use std::arch::x86_64::*;

use super::interleaved::{Interleaved, STRIDED_ROWS};
use super::kinds::Kind;
use super::{Call, Isa, MAX_PANELS, Target, WIDTH, rows_per_call};

/// Weights that each panel is fetched ahead where all rows are one tile, which has read a panel before memory can bring the next: a depth of 64,
/// 2 KiB of bf16 (Emerald Rapids, one row by four panels, of 28 GB/s: bf16 23 so, 18 when the tile fetched the next four, 20 when it fetched
/// nothing; int8 26 to 29 so, 23 to 25 when it fetched 4 KiB ahead).
const NEAR: usize = 64 * WIDTH;
/// The same in bytes where the tile's rows lie together (Emerald Rapids, 16 rows of int8 in a loop by itself, two runs: 14 to 17 GB/s 1 KiB ahead, 16 to
/// 18 so; 19 to 21 where each line is asked for once and not twice; 2 to 8 KiB did not differ).
const FAR_BYTES: usize = 4096;
/// The same where it is fetched into the second-level cache (Zen 4, two threads, 16 rows of bf16 in a loop by itself, 34 GB/s of reads, medians of nine: 27
/// GB/s 4 to 16 KiB ahead, which is 92 % of what the products allow; into the first level 23 to 24, 1 to 8 KiB ahead; 19 where nothing was fetched).
const FARTHER_BYTES: usize = 8192;

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

    /// What the only tile of a call fetches: its own panels, from `panel` on, so many weights ahead.
    fn near(&self, panel: usize, distance: usize) -> [*const W; MAX_PANELS] {
        let own = |p: usize| self.panels[(panel + p).min(MAX_PANELS - 1)].as_ptr();
        match self.connected {
            true => std::array::from_fn(|p| own(p).wrapping_add(distance)),
            false => self.next,
        }
    }

    /// What tile `i` of several fetches where they share out so many panels, and of how many.
    fn share(&self, (i, tiles): (usize, usize), panels: usize) -> ([*const W; MAX_PANELS], usize) {
        let mut ahead = [self.panels[0].as_ptr(); MAX_PANELS];
        let shared = (i..panels).step_by(tiles);
        for (ahead, panel) in ahead.iter_mut().zip(shared.clone()) {
            *ahead = self.next[panel];
        }
        (ahead, shared.len())
    }

    /// What tile `i` of `calls` fetches: together the tiles fetch all that comes next, so that memory has work while they multiply.
    fn ahead(&self, i: usize, calls: usize) -> [*const W; MAX_PANELS] {
        let ([n0, n1, n2, n3], here) = (self.next, self.panels[0].as_ptr());
        match (calls, i) {
            (2 | 3, 0) => [n0, n1, n0, n1],
            (2, 1) => [n2, n3, n2, n3],
            (3, 1) => [n2, here, n2, here],
            (3, 2) => [n3, here, n3, here],
            (4.., 0..MAX_PANELS) => [self.next[i], here, self.next[i], here],
            _ => [here; MAX_PANELS],
        }
    }
}

/// What makes integer sums floats: stretches of the depth, each with a scale per row, and what its sums begin with.
#[derive(Clone, Copy)]
pub(crate) struct Stretches<'a> {
    /// `[stretches][rows]`
    pub(super) scales: &'a [f32],
    /// `[stretches][rows]`
    pub(super) offsets: &'a [i32],
    /// Depth of a stretch; the last one may end earlier.
    pub(super) depth: usize,
    /// Where rows lie one after the other: values from a row's stretch to its next.
    pub(super) apart: usize,
}

/// `out (+)= a b`; with integers `out (+)= Σ scales · (a b)` over the stretches, which only they have.
pub(crate) fn run<K: Kind>(
    _proof: Isa,
    call: &Call<'_, K::X>,
    stretches: Option<Stretches<'_>>,
    b: Side<'_, K::W>,
    out: Target<'_>,
) {
    let steps = call.depth.div_ceil(K::STEP);
    let (rows, panels) = (call.rows, call.panels);
    assert!((1..=MAX_PANELS).contains(&panels) && rows > 0);
    assert_eq!(K::SCALED, stretches.is_some(), "gemm: scales of integers");
    let (stretch, later) = stretches.map_or((steps, 0), |s| s.steps::<K>(rows, steps));
    let apart = stretches.map_or(0, |s| s.apart);
    assert!(later == 0 || apart >= stretch * K::STEP);
    let end = |i: usize, steps| i * apart + (rows - 1) * call.row_stride + steps * K::STEP;
    assert!(call.a.len() >= end(later, steps - later * stretch));
    assert!(later == 0 || call.a.len() >= end(later - 1, stretch));
    let size = steps * K::STEP * WIDTH;
    assert!(b.panels.iter().take(panels).all(|b| b.len() >= size));
    assert!(out.values.len() >= out.end(rows, panels));
    let per_call = rows_per_call(rows);
    let calls = rows.div_ceil(per_call);
    let alone = calls == 1;
    for i in 0..calls {
        let row = i * per_call;
        let corner = Corner::<K> {
            a: call.a[row * call.row_stride..].as_ptr(),
            row_stride: call.row_stride,
            b: b.panels.map(|b| b.as_ptr()),
            steps,
            stretch,
            jump: apart.saturating_sub(stretch * K::STEP),
            out: out.values[row * out.row_stride..].as_mut_ptr(),
            out_row_stride: out.row_stride,
            out_panel_stride: out.panel_stride,
            scales: stretches.map_or(std::ptr::null(), |s| s.scales[row..].as_ptr()),
            offsets: stretches.map_or(std::ptr::null(), |s| s.offsets[row..].as_ptr()),
            scale_stride: rows,
            fresh: call.fresh,
            ahead: if alone {
                b.near(0, NEAR)
            } else {
                b.ahead(i, calls)
            },
            // Where two steps share a line they fetch from two panels each.
            all_ahead: alone && K::STEPS_PER_LINE == 1,
            fetched: 0,
            far: false,
        };
        // SAFETY: the level says that the instructions are there; the assertions above cover every row and panel of the tile.
        unsafe { corner.run(per_call.min(rows - row), panels) }
    }
}

/// The same of rows that lie together; of more than one tile of them by at most the panels that a tile takes.
pub(super) fn run_interleaved<K: Kind>(
    isa: Isa,
    x: Interleaved<'_, K::X>,
    stretches: Option<Stretches<'_>>,
    (b, panels): (Side<'_, K::W>, usize),
    (out, fresh): (Target<'_>, bool),
) {
    let steps = x.depth / K::STEP;
    let (rows, tiles) = (x.rows, x.rows.div_ceil(x.per_tile));
    assert!(x.depth.is_multiple_of(K::STEP) && x.first.is_multiple_of(K::WORD));
    let at_once = x.at_once.min(panels);
    assert!((1..=MAX_PANELS).contains(&panels) && rows > 0);
    assert!(tiles == 1 || panels == at_once);
    assert!(x.first + x.depth <= x.row_length && x.values.len() >= rows * x.row_length);
    assert!(
        b.panels
            .iter()
            .take(panels)
            .all(|b| b.len() >= x.depth * WIDTH)
    );
    assert!(out.values.len() >= out.end(rows, panels));
    assert_eq!(K::SCALED, stretches.is_some(), "gemm: scales of integers");
    let (stretch, _) = stretches.map_or((steps, 0), |s| s.steps::<K>(rows, steps));
    let far = match tiles {
        1 => isa.reads_panels_in_turn() && rows > STRIDED_ROWS,
        _ => isa.loads_one_operand(),
    };
    let tiles_of = (0..panels).step_by(at_once);
    for (panel, i) in tiles_of.flat_map(|panel| (0..tiles).map(move |i| (panel, i))) {
        let row = i * x.per_tile;
        let count = x.per_tile.min(rows - row);
        let wide = at_once.min(panels - panel);
        let (ahead, fetched) = match tiles {
            1 if far => (b.near(panel, FARTHER_BYTES / size_of::<K::W>()), wide),
            1 => (b.near(panel, FAR_BYTES / size_of::<K::W>()), wide),
            _ => b.share((i, tiles), wide),
        };
        let corner = Corner::<K> {
            a: x.values[row * x.row_length + count * x.first..].as_ptr(),
            row_stride: 0,
            b: std::array::from_fn(|p| b.panels[(panel + p).min(panels - 1)].as_ptr()),
            steps,
            stretch,
            jump: 0,
            out: out.values[row * out.row_stride + panel * out.panel_stride..].as_mut_ptr(),
            out_row_stride: out.row_stride,
            out_panel_stride: out.panel_stride,
            scales: stretches.map_or(std::ptr::null(), |s| s.scales[row..].as_ptr()),
            offsets: stretches.map_or(std::ptr::null(), |s| s.offsets[row..].as_ptr()),
            scale_stride: rows,
            fresh,
            ahead,
            all_ahead: false,
            fetched,
            far,
        };
        // SAFETY: as above.
        unsafe { corner.run_interleaved(count, wide) }
    }
}

impl Stretches<'_> {
    /// Steps of a stretch, and how many stretches come after the first.
    fn steps<K: Kind>(&self, rows: usize, steps: usize) -> (usize, usize) {
        let stretch = self.depth / K::STEP;
        assert!(stretch > 0 && self.depth.is_multiple_of(K::STEP));
        let later = steps.saturating_sub(1) / stretch;
        assert!(self.scales.len().min(self.offsets.len()) >= (later + 1) * rows);
        (stretch, later)
    }
}

/// Where a tile begins in the input, the weights and the sums.
pub(crate) struct Corner<K: Kind> {
    a: *const K::X,
    row_stride: usize,
    b: [*const K::W; MAX_PANELS],
    steps: usize,
    /// Steps of a stretch, and values to skip in the input after each.
    stretch: usize,
    jump: usize,
    out: *mut f32,
    out_row_stride: usize,
    out_panel_stride: usize,
    /// Of the tile's rows in the first stretch, where sums are integers; those of the next lie `scale_stride` further on.
    scales: *const f32,
    offsets: *const i32,
    scale_stride: usize,
    fresh: bool,
    /// A step fetches from the first two, where two steps share a line by turns from those and the others.
    ahead: [*const K::W; MAX_PANELS],
    /// Whether it fetches from all four.
    all_ahead: bool,
    /// From how many rows that lie together fetch, and whether into the second-level cache.
    fetched: usize,
    far: bool,
}

/// Calls the tile whose numbers of rows and panels are constants.
macro_rules! tiles {
    ($self:ident, $rows:expr, $panels:expr, [$($r:literal)*]) => {
        match ($rows, $panels) {
            $(
                ($r, 1) => K::tile::<$r, 1, false>($self),
                ($r, 2) => K::tile::<$r, 2, false>($self),
                ($r, 3) => K::tile::<$r, 3, false>($self),
                ($r, 4) => K::tile::<$r, 4, false>($self),
            )*
            _ => unreachable!("a tile of {} x {}. This is a bug.", $rows, $panels),
        }
    };
}

/// The same of rows that lie together: one to three panels by the first numbers of rows, by the next that are more one or two, then one.
macro_rules! interleaved_tiles {
    ($self:ident, $rows:expr, $panels:expr, [$($few:literal)*] [$($r:literal)*] [$($many:literal)*]) => {
        match ($rows, $panels) {
            $(($few, 3) => K::tile::<$few, 3, true>($self),)*
            $(
                ($few, 1) => K::tile::<$few, 1, true>($self),
                ($few, 2) => K::tile::<$few, 2, true>($self),
            )*
            $(
                ($r, 1) => K::tile::<$r, 1, true>($self),
                ($r, 2) => K::tile::<$r, 2, true>($self),
            )*
            $(($many, 1) => K::tile::<$many, 1, true>($self),)*
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

    /// # Safety
    /// As [`Corner::tile`].
    unsafe fn run_interleaved(&self, rows: usize, panels: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            interleaved_tiles!(self, rows, panels, [1 2 3 4 5 6 7 8] [9 10 11 12] [13 14 15 16])
        }
    }

    /// `R` rows by `P` panels, the rows one after the other or together. [`Kind::tile`] compiles it for the instructions that the kind needs.
    ///
    /// # Safety
    /// AVX-512 must be there with what the kind multiplies by; `a`, `b`, `out` and `scales` must be valid for the whole tile.
    #[expect(
        clippy::pointers_in_nomem_asm_block,
        reason = "the block is empty: it hides where the pointer comes from"
    )]
    #[inline(always)]
    pub(super) unsafe fn tile<const R: usize, const P: usize, const TOGETHER: bool>(&self) {
        const { assert!(R * P <= 24) };
        // SAFETY: by the caller's promise the instructions are there; all offsets stay inside the tile, and a prefetch never faults.
        unsafe {
            let mut c = [[_mm512_setzero_ps(); P]; R];
            let at = |r, p| {
                self.out
                    .add(r * self.out_row_stride + p * self.out_panel_stride)
            };
            if !K::SCALED && !self.fresh {
                for r in 0..R {
                    for p in 0..P {
                        c[r][p] = _mm512_loadu_ps(at(r, p));
                    }
                }
            }
            let (mut a, mut done) = (self.a, 0);
            let (mut scales, mut offsets) = (self.scales, self.offsets);
            let (b, ahead) = (self.b, self.ahead);
            // From a row to the next, and from a word of a row to its next, in values.
            let (row, word) = match TOGETHER {
                true => (K::WORD, R * K::WORD),
                false => (self.row_stride, K::WORD),
            };
            macro_rules! rows_behind {
                ($a:expr, $w:expr, $i:expr, [$($r:literal)*]) => {
                    $(if $r < R {
                        for p in 0..P {
                            // Three products by a word, or four, are worth a load of it.
                            c[$r][p] = match P {
                                3.. => K::add(c[$r][p], $a.byte_add(4 * $r), $w[p], $i),
                                _ => K::add_behind::<{ 4 * $r }>(c[$r][p], $a, $w[p], $i),
                            };
                        }
                    })*
                };
            }
            macro_rules! products {
                ($step:expr) => {
                    let at = $step * K::STEP * WIDTH;
                    let w: [K::Columns; P] = std::array::from_fn(|p| K::load(b[p].add(at)));
                    // Word by word, so that sums wait for each other as little as possible.
                    for i in 0..K::WORDS {
                        if TOGETHER {
                            let a = a.add(i * word);
                            rows_behind!(a, w, i, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]);
                            continue;
                        }
                        for r in 0..R {
                            for p in 0..P {
                                c[r][p] = K::add(c[r][p], a.add(r * row + i * word), w[p], i);
                            }
                        }
                    }
                    a = a.wrapping_add(K::WORDS * word);
                    if TOGETHER {
                        // The compiler would address operands by two registers, which Intel's CPUs take apart into one more operation for each product.
                        std::arch::asm!("/* {a} */", a = inout(reg) a, options(nomem, nostack, preserves_flags));
                    }
                };
            }
            loop {
                let end = (done + self.stretch).min(self.steps);
                let mut step = done;
                if K::SCALED {
                    for r in 0..R {
                        let offset = _mm512_castsi512_ps(_mm512_set1_epi32(*offsets.add(r)));
                        c[r] = [offset; P];
                    }
                }
                if TOGETHER {
                    // All steps of a panel's cache line, so that it is asked for once.
                    while step + K::STEPS_PER_LINE <= end {
                        let line = step * K::STEP * WIDTH;
                        for (i, other) in ahead[..P].iter().enumerate() {
                            if i >= self.fetched {
                                break;
                            }
                            let line = other.wrapping_add(line).cast();
                            match self.far {
                                true => _mm_prefetch::<_MM_HINT_T1>(line),
                                false => _mm_prefetch::<_MM_HINT_T0>(line),
                            }
                        }
                        for _ in 0..K::STEPS_PER_LINE {
                            products!(step);
                            step += 1;
                        }
                    }
                }
                while step < end {
                    if !TOGETHER {
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
                    }
                    products!(step);
                    step += 1;
                }
                if K::SCALED {
                    let first = self.fresh && done == 0;
                    for r in 0..R {
                        for p in 0..P {
                            let old = match first {
                                true => _mm512_setzero_ps(),
                                false => _mm512_loadu_ps(at(r, p)),
                            };
                            let exact = _mm512_cvtepi32_ps(_mm512_castps_si512(c[r][p]));
                            // One rounding, as in the other kernels.
                            let scale = _mm512_set1_ps(*scales.add(r));
                            _mm512_storeu_ps(at(r, p), _mm512_fmadd_ps(scale, exact, old));
                        }
                    }
                    a = a.wrapping_add(self.jump);
                    scales = scales.wrapping_add(self.scale_stride);
                    offsets = offsets.wrapping_add(self.scale_stride);
                }
                done = end;
                if done == self.steps {
                    break;
                }
            }
            if !K::SCALED {
                for r in 0..R {
                    for p in 0..P {
                        _mm512_storeu_ps(at(r, p), c[r][p]);
                    }
                }
            }
        }
    }
}

/// `out [words][rows]` from `rows` rows of words that begin `stride` words apart in `x`; at most 16 rows.
pub(crate) fn interleave<T: Word>(isa: Isa, x: &[T], stride: usize, rows: usize, out: &mut [T]) {
    assert!(rows > 0 && out.len().is_multiple_of(rows));
    let words = out.len() / rows;
    interleave_apart(isa, (x, stride), (rows, words), (out, rows));
}

/// The same of `words` words of each row, those of one place `width` words from those of the next.
pub(super) fn interleave_apart<T: Word>(
    _proof: Isa,
    (x, stride): (&[T], usize),
    (rows, words): (usize, usize),
    (out, width): (&mut [T], usize),
) {
    const { assert!(size_of::<T>() == 4) };
    assert!((1..=WIDTH).contains(&rows) && rows <= width);
    assert!((rows - 1) * stride + words <= x.len());
    assert!(words == 0 || (words - 1) * width + rows <= out.len());
    let (x, out) = (x.as_ptr().cast(), out.as_mut_ptr().cast());
    // SAFETY: this is called for the level that has these instructions; every word of every row is within `x`, and within `out`.
    unsafe { interleave_words((x, stride), (rows, words), (out, width)) }
}

/// Sixteen words of sixteen rows at a time.
///
/// # Safety
/// AVX-512 must be there, all words of the 1 to 16 rows readable and the output writable.
#[target_feature(enable = "avx512f")]
unsafe fn interleave_words(
    (x, stride): (*const i32, usize),
    (rows, words): (usize, usize),
    (out, width): (*mut i32, usize),
) {
    let stored = !0u16 >> (WIDTH - rows);
    for first in (0..words).step_by(WIDTH) {
        let count = WIDTH.min(words - first);
        let loaded = !0u16 >> (WIDTH - count);
        // SAFETY: by the caller's promise; the masks leave out what lies past a row's end and past the last row.
        unsafe {
            let row = |r: usize| {
                let r = r.min(rows - 1);
                _mm512_maskz_loadu_epi32(loaded, x.add(r * stride + first))
            };
            let columns = transpose(std::array::from_fn(row));
            for (i, &column) in columns[..count].iter().enumerate() {
                _mm512_mask_storeu_epi32(out.add((first + i) * width), stored, column);
            }
        }
    }
}

/// Sixteen vectors of which vector `j` has word `j` of each of sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: [__m512i; WIDTH]) -> [__m512i; WIDTH] {
    // Pairs of rows, then fours: `fours[4 i + j]` has of rows 4 i .. 4 i + 4 the words j, 4 + j, 8 + j and 12 + j.
    let mut fours = [_mm512_setzero_si512(); WIDTH];
    for i in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|j| rows[4 * i + j]);
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        fours[4 * i] = _mm512_unpacklo_epi64(ab, cd);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(ab, cd);
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        fours[4 * i + 2] = _mm512_unpacklo_epi64(ab, cd);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(ab, cd);
    }
    // Then sixteens: lane `l` of these four vectors is word 4 l + j of four rows.
    let mut columns = [_mm512_setzero_si512(); WIDTH];
    for j in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| fours[4 * i + j]);
        let (ab, cd) = (
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0x88>(c, d),
        );
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (
            _mm512_shuffle_i32x4::<0xdd>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        );
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    columns
}

/// 32 bits.
pub(crate) trait Word: bytemuck::Pod {}
impl Word for f32 {}
impl Word for [i8; 4] {}
impl Word for [i16; 2] {}
impl Word for [u16; 2] {}

/// `out = bf16(x)`, to the nearest, of two the even one.
pub(crate) fn round_to_bf16(_proof: Isa, x: &[f32], out: &mut [u16]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn loops(x: &[f32], out: &mut [u16]) {
        let n = x.len().min(out.len());
        let whole = n / WIDTH * WIDTH;
        // SAFETY: whole blocks lie before the ends, and the mask leaves out what lies past them.
        unsafe {
            for first in (0..whole).step_by(WIDTH) {
                let values = _mm512_loadu_ps(x.as_ptr().add(first));
                let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
                _mm256_storeu_si256(out.as_mut_ptr().add(first).cast(), rounded);
            }
            if whole < n {
                let mask = !0u16 >> (WIDTH - (n - whole));
                let values = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(whole));
                let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
                _mm256_mask_storeu_epi16(out.as_mut_ptr().add(whole).cast(), mask, rounded);
            }
        }
    }
    // SAFETY: this is called for the level that has these instructions.
    unsafe { loops(x, out) }
}

/// `x = high + low`, but for what two bf16 cannot hold: each to the nearest.
pub(super) fn split_to_bf16(_proof: Isa, x: &[f32], high: &mut [u16], low: &mut [u16]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn loops(x: &[f32], high: &mut [u16], low: &mut [u16]) {
        let n = x.len().min(high.len()).min(low.len());
        for first in (0..n).step_by(WIDTH) {
            let mask = !0u16 >> (WIDTH - WIDTH.min(n - first));
            // SAFETY: the mask leaves out what lies past the ends.
            unsafe {
                let values = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(first));
                let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
                let widened = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded));
                let rest = _mm512_sub_ps(values, _mm512_castsi512_ps(widened));
                let rest: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(rest));
                _mm256_mask_storeu_epi16(high.as_mut_ptr().add(first).cast(), mask, rounded);
                _mm256_mask_storeu_epi16(low.as_mut_ptr().add(first).cast(), mask, rest);
            }
        }
    }
    // SAFETY: this is called for the level that has these instructions.
    unsafe { loops(x, high, low) }
}
