//! The kernel for tile registers: 32 rows by 32 columns of sums of pairs of bf16, 32 values of the depth a step.
//!
//! Panels of pairs are what the second operand of `tdpbf16ps` has to be: 16 lines of 16 pairs. A row's sums do not depend on the rows
//! beside it, so all products of a process take this way or none does.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

use super::tiles::{LANES, ROWS, Shape, Tiles};
use super::{Call, Isa, Target, WIDTH};

const _: () = assert!(WIDTH == LANES, "a line of a panel is a row of a register");

/// Values of the depth that one step takes.
pub(crate) const TILE_DEPTH: usize = 2 * LANES;

/// `out (+)= a b`, in pairs of bf16; `call.depth` is rounded up to whole pairs. Fastest where rows, panels and sums begin on cache lines.
pub(crate) fn run(
    tiles: &mut impl Tiles,
    call: &Call<'_, u16>,
    b: &[&[u16]],
    out: Target<'_>,
    ahead: &mut Ahead,
) {
    run_terms(tiles, call, [(call.a, b)], out, ahead);
}

/// The same of numbers that are sums of two bf16, but for the product of both low parts: `call.a` and `b` are the high ones.
pub(super) fn run_split(
    tiles: &mut impl Tiles,
    call: &Call<'_, u16>,
    low: &[u16],
    (b, b_low): (&[&[u16]], &[&[u16]]),
    out: Target<'_>,
    ahead: &mut Ahead,
) {
    let terms = [(low, b), (call.a, b_low), (call.a, b)];
    run_terms(tiles, call, terms, out, ahead);
}

/// `out (+)= Σ a b` over the terms, each of the shape of `call`.
fn run_terms<const TERMS: usize>(
    tiles: &mut impl Tiles,
    call: &Call<'_, u16>,
    terms: [(&[u16], &[&[u16]]); TERMS],
    out: Target<'_>,
    ahead: &mut Ahead,
) {
    let pairs = call.depth.div_ceil(2);
    let (rows, panels) = (call.rows, terms[0].1.len());
    assert!(panels > 0 && rows > 0 && pairs > 0);
    for (a, b) in terms {
        assert!(a.len() >= (rows - 1) * call.row_stride + 2 * pairs && b.len() == panels);
        assert!(b.iter().all(|b| b.len() >= 2 * pairs * WIDTH));
    }
    assert!(out.values.len() >= out.end(rows, panels));
    let whole = pairs / LANES * LANES;
    // A register's shape holds for all of a stretch: first whole steps, then what is left of the depth.
    for stretch in [0..whole, whole..pairs] {
        let step = stretch.len().min(LANES);
        if step == 0 {
            continue;
        }
        for row in (0..rows).step_by(2 * ROWS) {
            let first = (rows - row).min(ROWS);
            let second = (rows - row - first).min(ROWS);
            tiles.configure(Shape {
                rows: [first, second.max(1)],
                words: step,
            });
            for panel in (0..panels).step_by(2) {
                let two = panel + 1 < panels;
                let corner = Corner {
                    terms: terms.map(|(a, b)| {
                        let a = a[row * call.row_stride + 2 * stretch.start..].as_ptr();
                        let b = [panel, panel + usize::from(two)]
                            .map(|p| b[p][2 * stretch.start * WIDTH..].as_ptr().cast());
                        (a.cast(), b)
                    }),
                    row_bytes: 2 * call.row_stride,
                    steps: stretch.len() / step,
                    step_bytes: 4 * step,
                    out: out.values[row * out.row_stride + panel * out.panel_stride..]
                        .as_mut_ptr()
                        .cast(),
                    out_row_bytes: 4 * out.row_stride,
                    out_panel_bytes: 4 * out.panel_stride,
                    fresh: call.fresh && stretch.start == 0,
                };
                // SAFETY: the assertions above cover every row and panel, and the shape every row of this corner.
                unsafe {
                    match (second > 0, two) {
                        (true, true) => corner.run::<true, true>(tiles, ahead),
                        (true, false) => corner.run::<true, false>(tiles, ahead),
                        (false, true) => corner.run::<false, true>(tiles, ahead),
                        (false, false) => corner.run::<false, false>(tiles, ahead),
                    }
                }
            }
        }
    }
}

/// Where a block of sums begins, and its input and weights. Distances are in bytes.
struct Corner<const TERMS: usize> {
    /// Input and two panels of each term.
    terms: [(*const u8, [*const u8; 2]); TERMS],
    row_bytes: usize,
    steps: usize,
    step_bytes: usize,
    out: *mut u8,
    out_row_bytes: usize,
    out_panel_bytes: usize,
    fresh: bool,
}

impl<const TERMS: usize> Corner<TERMS> {
    /// One or two blocks of rows, one or two panels.
    ///
    /// # Safety
    /// All of the input, the weights and the sums must be there, in the shape that is set.
    unsafe fn run<const TWO_BLOCKS: bool, const TWO_PANELS: bool>(
        &self,
        tiles: &mut impl Tiles,
        ahead: &mut Ahead,
    ) {
        let below = self.out.wrapping_add(ROWS * self.out_row_bytes);
        let right = self.out_panel_bytes;
        // SAFETY: by the caller's promise; what is not there is not touched.
        unsafe {
            if self.fresh {
                tiles.zero::<0>();
                tiles.zero::<1>();
                tiles.zero::<2>();
                tiles.zero::<3>();
            } else {
                tiles.load::<0>(self.out, self.out_row_bytes);
                if TWO_PANELS {
                    tiles.load::<1>(self.out.wrapping_add(right), self.out_row_bytes);
                }
                if TWO_BLOCKS {
                    tiles.load::<2>(below, self.out_row_bytes);
                }
                if TWO_BLOCKS && TWO_PANELS {
                    tiles.load::<3>(below.wrapping_add(right), self.out_row_bytes);
                }
            }
            for step in 0..self.steps {
                for (term, (a, b)) in self.terms.into_iter().enumerate() {
                    let a = a.wrapping_add(step * self.step_bytes);
                    let b = b.map(|b| b.wrapping_add(step * self.step_bytes * WIDTH));
                    // The last two terms have read all that the first reads.
                    if term + 2 >= TERMS {
                        ahead.step(b, TWO_PANELS);
                    }
                    tiles.load::<6>(b[0], LINE);
                    tiles.load::<4>(a, self.row_bytes);
                    tiles.dot::<0, 4, 6>();
                    if TWO_PANELS {
                        tiles.load::<7>(b[1], LINE);
                        tiles.dot::<1, 4, 7>();
                    }
                    if TWO_BLOCKS {
                        tiles.load::<5>(a.wrapping_add(ROWS * self.row_bytes), self.row_bytes);
                        tiles.dot::<2, 5, 6>();
                    }
                    if TWO_BLOCKS && TWO_PANELS {
                        tiles.dot::<3, 5, 7>();
                    }
                }
            }
            tiles.store::<0>(self.out, self.out_row_bytes);
            if TWO_PANELS {
                tiles.store::<1>(self.out.wrapping_add(right), self.out_row_bytes);
            }
            if TWO_BLOCKS {
                tiles.store::<2>(below, self.out_row_bytes);
            }
            if TWO_BLOCKS && TWO_PANELS {
                tiles.store::<3>(below.wrapping_add(right), self.out_row_bytes);
            }
        }
    }
}

/// Bytes of a line of a panel.
pub(super) const LINE: usize = 4 * WIDTH;

/// What will be read next: some of it is fetched with every step, so that memory never waits for products nor they for it.
pub(crate) enum Ahead {
    /// Nothing: all is in the cache.
    Nothing,
    /// The panels that are read, half a step ahead: where each is read once, that is as fast as memory is.
    Near,
    /// Later panels, so many lines with every step, into the second-level cache: while several registers of rows pass the panels that are in the first.
    Far { place: *const u8, lines: usize },
}

impl Ahead {
    /// Bytes of half a step of a panel. By two threads on weights in memory, depths of 896 and 4,864: int8 21 and 27 GB/s for one row, 18 and 24 for sixteen, so
    /// far ahead; 17 and 26, 16 and 20 two steps ahead; 18 and 20, 16 and 17 when nothing is fetched.
    const NEAR: usize = LANES * LINE / 2;

    /// Fetches so many lines of what is `next`, and `each` further ones with every step.
    pub(super) fn far(next: &[u8], at_once: usize, each: usize) -> Self {
        let mut place = next.as_ptr();
        fetch::<_MM_HINT_T1>(&mut place, at_once);
        Self::Far { place, lines: each }
    }

    /// Fetches what belongs to a step that reads one or both `panels`.
    #[inline(always)]
    pub(super) fn step(&mut self, panels: [*const u8; 2], both: bool) {
        match self {
            Self::Nothing => {}
            Self::Near => {
                for panel in &panels[..1 + usize::from(both)] {
                    fetch::<_MM_HINT_T0>(&mut panel.wrapping_add(Self::NEAR), LANES);
                }
            }
            Self::Far { place, lines } => fetch::<_MM_HINT_T1>(place, *lines),
        }
    }
}

/// Fetches so many lines, and moves on behind them.
#[inline(always)]
fn fetch<const HINT: i32>(place: &mut *const u8, lines: usize) {
    for _ in 0..lines {
        // SAFETY: a prefetch changes nothing and never faults, wherever it points.
        unsafe { _mm_prefetch::<HINT>(place.cast()) }
        *place = place.wrapping_add(LINE);
    }
}

/// Multiply-adds of bf16 of one step of [`register_products`]; of bytes they are twice as many.
pub(crate) const REGISTER_PRODUCTS: usize = 4 * ROWS * LANES * 2 * LANES;

/// `steps` steps on registers alone, for measuring what they can do at most: of pairs of bf16 or, `BYTES`, of fours of
/// bytes. 0 where there are no such registers.
pub(crate) fn register_products<const BYTES: bool>(isa: Isa, steps: usize, seed: f32) -> f32 {
    let Some(mut tiles) = isa.tiles() else {
        return 0.0;
    };
    let mut values = [[seed; LANES]; ROWS];
    tiles.configure(Shape {
        rows: [ROWS; 2],
        words: LANES,
    });
    // SAFETY: a register is as large as `values`.
    unsafe {
        tiles.load::<4>(values.as_ptr().cast(), 4 * LANES);
        tiles.load::<5>(values.as_ptr().cast(), 4 * LANES);
        tiles.load::<6>(values.as_ptr().cast(), 4 * LANES);
        tiles.load::<7>(values.as_ptr().cast(), 4 * LANES);
        for _ in 0..steps {
            if BYTES {
                tiles.dot_bytes::<0, 4, 6>();
                tiles.dot_bytes::<1, 5, 6>();
                tiles.dot_bytes::<2, 4, 7>();
                tiles.dot_bytes::<3, 5, 7>();
            } else {
                tiles.dot::<0, 4, 6>();
                tiles.dot::<1, 4, 7>();
                tiles.dot::<2, 5, 6>();
                tiles.dot::<3, 5, 7>();
            }
        }
        tiles.store::<0>(values.as_mut_ptr().cast(), 4 * LANES);
    }
    values[0][0]
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::tiles::{Hardware, Model};
    use super::super::{Accumulators, BLOCK_PANELS, BLOCK_ROWS};
    use super::*;
    use crate::backend::philox::{Stream, philox};

    /// Values in (-1, 1), the same for the same `seed`.
    fn draw(count: usize, seed: u64) -> Vec<u16> {
        (0..count as u64)
            .map(|i| philox(seed, Stream::Sampling, i, 0)[0])
            .map(|bits| bf16::from_f32(bits as f32 / 2f32.powi(31) - 1.0).to_bits())
            .collect()
    }

    struct Case {
        depth: usize,
        panels: usize,
        a: Vec<u16>,
        b: Vec<u16>,
    }

    impl Case {
        fn new(rows: usize, depth: usize, panels: usize) -> Self {
            Self {
                depth,
                panels,
                a: draw(rows * depth, 1),
                b: draw(panels * depth * WIDTH, 2),
            }
        }

        /// The sums of the rows from `first` on, after so many calls that add to them.
        fn run(
            &self,
            tiles: &mut impl Tiles,
            first: usize,
            rows: usize,
            calls: usize,
        ) -> Box<Accumulators> {
            let mut acc = Box::new([[[0.0; WIDTH]; BLOCK_ROWS]; BLOCK_PANELS]);
            for call in 0..calls {
                let call = Call {
                    a: &self.a[first * self.depth..],
                    row_stride: self.depth,
                    rows,
                    depth: self.depth,
                    panel_stride: self.depth * WIDTH,
                    panels: self.panels,
                    fresh: call == 0,
                };
                let b: Vec<_> = self.b.chunks(self.depth * WIDTH).collect();
                let out = Target::accumulators(&mut acc[..]);
                run(tiles, &call, &b, out, &mut Ahead::Nothing);
            }
            acc
        }

        fn expected(&self, row: usize, panel: usize, column: usize) -> f64 {
            let value = |bits: u16| f64::from(bf16::from_bits(bits).to_f32());
            (0..self.depth)
                .map(|k| {
                    let at = panel * self.depth * WIDTH + 2 * (k / 2 * WIDTH + column) + k % 2;
                    value(self.a[row * self.depth + k]) * value(self.b[at])
                })
                .sum()
        }
    }

    fn check(tiles: &mut impl Tiles) {
        for rows in [1, 2, 5, 16, 17, 31, 32, 33, 96] {
            for (depth, panels) in [(2, 1), (30, 2), (32, 3), (62, 4), (64, 1), (100, 4)] {
                let case = Case::new(rows, depth, panels);
                let once = case.run(tiles, 0, rows, 1);
                let twice = case.run(tiles, 0, rows, 2);
                let last = case.run(tiles, rows - 1, 1, 1);
                for panel in 0..panels {
                    for row in 0..rows {
                        for column in 0..WIDTH {
                            let wanted = case.expected(row, panel, column);
                            for (got, times) in [(&once, 1.0), (&twice, 2.0)] {
                                let error = f64::from(got[panel][row][column]) - times * wanted;
                                assert!(error.abs() < 2e-5, "{rows} x {depth} x {panels}: {error}");
                            }
                        }
                    }
                    assert_eq!(
                        once[panel][rows - 1],
                        last[panel][0],
                        "a row depends on others"
                    );
                    assert!(once[panel].get(rows).is_none_or(|row| *row == [0.0; WIDTH]));
                }
                assert!(
                    once[panels..]
                        .as_flattened()
                        .as_flattened()
                        .iter()
                        .all(|&v| v == 0.0)
                );
            }
        }
    }

    #[test]
    fn products_by_the_model_of_the_instructions() {
        check(&mut Model::new());
    }

    #[test]
    fn products_by_tile_registers() {
        let Some(mut tiles) = Hardware::detect() else {
            eprintln!("SKIPPED: this CPU has no tile registers, or the system does not lend them");
            return;
        };
        check(&mut tiles);
        let case = Case::new(96, 100, 4);
        assert_eq!(
            case.run(&mut tiles, 0, 96, 2),
            case.run(&mut Model::new(), 0, 96, 2)
        );
    }
}
