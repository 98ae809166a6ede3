//! Matrix products on packed weights: linear layers and, as products over shifted rows, convolutions.
//!
//! Every output is one chain of multiply-adds over `k = 0, 1, …`, in that order, whatever the number of input rows and whatever kernel
//! computes it; with pairs of bf16 it is a chain over pairs, in tile registers over the sums of 16 pairs, with weights that are integers over the exact sums of
//! fixed stretches of `k`. So a row's bytes do not depend on its
//! neighbours nor on the threads. What may be chosen freely, and is chosen for speed, is which outputs are computed together.

mod accumulate;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod between;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod blocks;
mod finish;
mod fixed;
mod int8;
#[cfg(target_arch = "x86_64")]
mod int8_amx;
mod integers;
#[cfg(target_arch = "x86_64")]
mod integers_avx2;
#[cfg(target_arch = "x86_64")]
mod integers_avx512;
#[cfg(target_arch = "x86_64")]
mod interleaved;
#[cfg(target_arch = "x86_64")]
mod kinds;
mod panels;
mod portable;
#[cfg(target_arch = "x86_64")]
mod rounding_avx512;
#[cfg(target_arch = "x86_64")]
mod sliding;
#[cfg(target_arch = "x86_64")]
mod tiled;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod words;
#[cfg(target_arch = "x86_64")]
mod words_avx512;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::{Ahead, REGISTER_PRODUCTS, TILE_DEPTH, register_products, run as run_tiles};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Side, interleave, round_to_bf16, run as run_avx512};
#[cfg(target_arch = "x86_64")]
pub(crate) use between::{Between, LARGEST, MOST_ROWS, RoundedRow, STRETCH, largest_of_column};
#[cfg(target_arch = "x86_64")]
pub(crate) use integers::TO_INTEGER;
#[cfg(target_arch = "x86_64")]
pub(crate) use kinds::{Bf16, Single, Widened};
pub(crate) use panels::{Panels, Row, Stored, WIDTH};
#[cfg(target_arch = "x86_64")]
pub(crate) use rounding_avx512::{round_pair, round_rows};
#[cfg(target_arch = "x86_64")]
pub(crate) use sliding::Sliding;
#[cfg(target_arch = "x86_64")]
pub(crate) use tiles::Hardware;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Store;
use super::isa::{Isa, Level};
use super::pool::{Pool, SharedMut};
use integers::Rows as Integers;
use panels::Values;

/// Rows of an output block: its accumulators stay in the first-level cache.
pub(crate) const BLOCK_ROWS: usize = 96;
/// Depth of a block: 16 KiB of an f32 panel.
const BLOCK_K: usize = 256;
/// Most panels that one kernel call covers.
pub(crate) const MAX_PANELS: usize = 4;
/// Most panels that are summed before they are stored.
const BLOCK_PANELS: usize = 6;
/// Chunks of work per thread: enough to even out a thread that is held up.
const CHUNKS_PER_THREAD: usize = 6;

/// Rows of input and where they go: output row `out + i · out_stride` reads input values from `input + i · row_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) input: usize,
    pub(crate) rows: usize,
    pub(crate) out: usize,
}

/// The left side of the product: for each row, `taps` runs of `depth` values, `tap_stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) taps: usize,
    pub(crate) tap_stride: usize,
    pub(crate) depth: usize,
}

/// Where results go: columns `first_column..first_column + columns` of rows of `stride` values.
pub(crate) struct Output<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) row_step: usize,
    pub(crate) first_column: usize,
    pub(crate) columns: usize,
}

/// The right side: weights and bias (one value per packed channel).
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) panels: &'a Panels,
    pub(crate) bias: &'a [f32],
}

/// `out = store(x Wᵀ + b)` for all spans.
pub(crate) fn run(
    (pool, isa): (&Pool, Isa),
    x: Input<'_>,
    spans: &[Span],
    w: Weights<'_>,
    store: Store<'_>,
    out: Output<'_>,
) {
    assert_eq!(x.taps * x.depth, w.panels.k, "gemm: depth");
    for span in spans.iter().filter(|s| s.rows > 0) {
        let last = span.input + (span.rows - 1) * x.row_stride + (x.taps - 1) * x.tap_stride;
        assert!(last + x.depth <= x.values.len(), "gemm: input too short");
    }
    let job = Job::new(pool, x, w, store, out);
    let blocks = job.row_blocks(pool.threads(), isa, spans);
    let group = job.group();
    let groups = w.panels.count.div_ceil(group);
    let wanted = (pool.threads() * CHUNKS_PER_THREAD).div_ceil(blocks.count);
    let whole = job.panels_per_chunk(isa, spans) / group;
    let per_chunk = match pool.threads() {
        1 => groups,
        // Whole calls: the fewer panels, the less a kernel makes of the input that it loads.
        _ => (groups.div_ceil(wanted) / whole * whole).max(whole),
    };
    let column_chunks = groups.div_ceil(per_chunk);
    pool.run(blocks.count * column_chunks, |chunk| {
        let block = chunk / column_chunks;
        let first = chunk % column_chunks * per_chunk * group;
        let end = (first + per_chunk * group).min(w.panels.count);
        WORKSPACE.with_borrow_mut(|workspace| {
            let rows = blocks.get(spans, block);
            job.block(isa, workspace, (block, rows), first..end);
        });
    });
}

/// Some columns of `x Wᵀ + b` side by side, on the calling thread alone: those of each range of panels in turn. What has the same `number` has the same `x`.
pub(crate) fn columns<const RANGES: usize>(
    (number, isa): (u64, Isa),
    x: Input<'_>,
    span: Span,
    w: Weights<'_>,
    ranges: [Range<usize>; RANGES],
    out: &mut [f32],
) {
    assert_eq!(x.taps * x.depth, w.panels.k, "gemm: depth");
    assert!(
        ranges.iter().all(|r| r.end <= w.panels.count),
        "gemm: columns"
    );
    let stride = ranges.iter().map(|r| r.len() * WIDTH).sum();
    let out = SharedMut::new(out);
    let mut first_column = 0;
    let jobs = ranges.map(|panels| {
        let job = Job {
            number,
            by_head: true,
            shared: false,
            first_panel: panels.start,
            x,
            w,
            store: Store::Set,
            out,
            stride,
            row_step: 1,
            first_column,
            columns: panels.len() * WIDTH,
        };
        first_column += job.columns;
        (job, panels)
    });
    let blocks = jobs[0].0.row_blocks(1, isa, &[span]);
    for (block, offset) in (0..blocks.count).map(|i| blocks.get(&[span], i)) {
        for (job, panels) in &jobs {
            let place = span.input + offset * x.row_stride;
            WORKSPACE.with_borrow_mut(|workspace| {
                job.block(isa, workspace, (place, (block, offset)), panels.clone());
            });
        }
    }
}

/// A number for a product, so that a thread knows whose rows it has rounded last.
pub(crate) fn number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace {
        acc: Box::default(),
        bytes: std::array::from_fn(|_| Integers::default()),
        words: std::array::from_fn(|_| Integers::default()),
        #[cfg(target_arch = "x86_64")]
        by_word: std::array::from_fn(|_| words::Rows::default()),
        #[cfg(target_arch = "x86_64")]
        pairs: bf16::Rows::default(),
        #[cfg(target_arch = "x86_64")]
        together: interleaved::Rows::default(),
    });
}

/// Blocks of rows that a thread keeps where it comes back to them: those of some thirty seconds of audio.
const KEPT_BLOCKS: usize = 16;

/// What a thread keeps between blocks; it grows once.
struct Workspace {
    acc: Box<Aligned>,
    /// Rows of the block under way, for int8 weights: kept because a thread often works on several chunks of the same rows; of a product whose columns are
    /// asked for head by head, more than one block of it.
    bytes: [Integers<i8>; KEPT_BLOCKS],
    /// The same for weights of 16-bit integers.
    words: [Integers<i16>; KEPT_BLOCKS],
    /// The same of many rows of either that lie word by word.
    #[cfg(target_arch = "x86_64")]
    by_word: [words::Rows; KEPT_BLOCKS],
    /// The same for products of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    pairs: bf16::Rows,
    /// The same for products of f32.
    #[cfg(target_arch = "x86_64")]
    together: interleaved::Rows,
}

/// One product, as the threads see it.
struct Job<'a> {
    /// No other product of this process has it.
    number: u64,
    /// Whether some columns are computed that a single head needs.
    by_head: bool,
    /// Whether other threads may have held the output last.
    shared: bool,
    x: Input<'a>,
    w: Weights<'a>,
    store: Store<'a>,
    out: SharedMut<'a>,
    stride: usize,
    row_step: usize,
    /// Panel of the output's first column.
    first_panel: usize,
    first_column: usize,
    columns: usize,
}

impl<'a> Job<'a> {
    /// A product of all columns.
    fn new(pool: &Pool, x: Input<'a>, w: Weights<'a>, store: Store<'a>, out: Output<'a>) -> Self {
        Self {
            number: number(),
            by_head: false,
            shared: pool.threads() > 1,
            first_panel: 0,
            x,
            w,
            store,
            out: SharedMut::new(out.values),
            stride: out.stride,
            row_step: out.row_step,
            first_column: out.first_column,
            columns: out.columns,
        }
    }
}

impl Job<'_> {
    /// The column, of those that the product writes, at which a panel's begin.
    fn column(&self, panel: usize) -> usize {
        (panel - self.first_panel) / self.group() * WIDTH
    }
}

/// Accumulators of a block: `[panel][row][16]`.
pub(crate) type Accumulators = [[[f32; WIDTH]; BLOCK_ROWS]; BLOCK_PANELS];

/// The same from a cache line's beginning on.
#[repr(align(64))]
struct Aligned(Accumulators);

impl Default for Aligned {
    fn default() -> Self {
        Self([[[0.0; WIDTH]; BLOCK_ROWS]; BLOCK_PANELS])
    }
}

impl Job<'_> {
    /// Panels that belong together: gate and up.
    fn group(&self) -> usize {
        if matches!(self.store, Store::SiluMul) {
            2
        } else {
            1
        }
    }

    /// Whether the kernel can take so many rows laid together. Taps overlap, and each would have to be laid by itself. Pairs of bf16 are no faster so where
    /// one tile does not take all rows.
    #[cfg(target_arch = "x86_64")]
    fn lays_together(&self, isa: Isa, rows: usize) -> bool {
        isa.level() == Level::Avx512
            && match self.w.panels.values() {
                Values::F32(_) => self.x.taps == 1,
                Values::Pairs(_) => {
                    let even =
                        self.x.depth.is_multiple_of(2) && self.x.row_stride.is_multiple_of(2);
                    self.x.taps == 1 && even && rows <= interleaved::MOST_ROWS
                }
                Values::Split(_) | Values::I8(_) => false,
                Values::Fours(_) | Values::I16(_) => true,
            }
    }

    /// Whether it takes so many laid together.
    #[cfg(target_arch = "x86_64")]
    fn takes_together(&self, isa: Isa, rows: usize) -> bool {
        rows > interleaved::strided_rows(isa) && self.lays_together(isa, rows)
    }

    /// Panels that chunks are made of, whole calls.
    fn panels_per_chunk(&self, isa: Isa, spans: &[Span]) -> usize {
        let _ = (isa, spans);
        #[cfg(target_arch = "x86_64")]
        if isa.loads_one_operand() && spans.iter().any(|s| self.takes_together(isa, s.rows)) {
            return BLOCK_PANELS;
        }
        MAX_PANELS
    }

    /// Whether the kernel is that of tile registers.
    #[cfg(target_arch = "x86_64")]
    fn takes_tiles(&self, isa: Isa) -> bool {
        let values = self.w.panels.values();
        isa.has_tiles() && !matches!(values, Values::F32(_) | Values::I16(_) | Values::I8(_))
    }

    /// All outputs of a block of rows in some panels.
    fn block(
        &self,
        isa: Isa,
        workspace: &mut Workspace,
        (index, (span, offset)): (usize, (Span, usize)),
        panels: Range<usize>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let (true, Some(tiles)) = (self.takes_tiles(isa), isa.tiles()) {
            return self.block_in_tiles((tiles, isa), workspace, (index, (span, offset)), panels);
        }
        let acc = &mut workspace.acc.0;
        let input = span.input + offset * self.x.row_stride;
        let name = (self.number, index);
        let kept = if self.by_head { index % KEPT_BLOCKS } else { 0 };
        #[cfg(target_arch = "x86_64")]
        if self.takes_words(isa, span.rows) {
            let row = span.out + offset * self.row_step;
            let by_word = &mut workspace.by_word[kept];
            return self.block_by_word(isa, (by_word, acc), name, (input, row, span.rows), panels);
        }
        match self.w.panels.values() {
            Values::I16(_) => {
                let words = &mut workspace.words[kept];
                words.load(isa, name, &self.x, input, span.rows);
            }
            Values::I8(_) => {
                let bytes = &mut workspace.bytes[kept];
                bytes.load(isa, name, &self.x, input, span.rows);
            }
            #[cfg(target_arch = "x86_64")]
            Values::Fours(_) => {
                let bytes = &mut workspace.bytes[kept];
                bytes.load(isa, name, &self.x, input, span.rows);
            }
            _ => {}
        }
        #[cfg(target_arch = "x86_64")]
        let together = self.takes_together(isa, span.rows);
        #[cfg(not(target_arch = "x86_64"))]
        let together = false;
        let step = panels_per_call(isa, span.rows, together).max(self.group());
        for panel in panels.clone().step_by(step) {
            let count = step.min(panels.end - panel);
            let range = panel..panel + count;
            if self.shared {
                self.expect_output(panel, count, (span.out + offset * self.row_step, span.rows));
            }
            match self.w.panels.values() {
                #[cfg(target_arch = "x86_64")]
                Values::F32(b) if together => {
                    let rows = (input, span.rows);
                    let x = workspace.together.load(isa, name, &self.x, rows);
                    self.accumulate_together::<Single>(isa, b, x, range, acc);
                }
                #[cfg(target_arch = "x86_64")]
                Values::Pairs(b) if together => {
                    let span = Span { input, ..span };
                    let x = workspace.pairs.load_together(isa, name, &self.x, span);
                    self.accumulate_together::<Bf16>(isa, b, x, range, acc);
                }
                Values::F32(b) => {
                    let run = |call: &Call<'_>, b: &[f32], out: Target<'_>| call.run(isa, b, out);
                    self.accumulate(b, (input, span.rows), range, acc, run);
                }
                #[cfg(target_arch = "x86_64")]
                Values::Pairs(b) => {
                    let span = Span { input, ..span };
                    let x = workspace.pairs.load(isa, name, &self.x, span, false);
                    self.accumulate_pairs(isa, b, (x, span.rows), range, acc);
                }
                #[cfg(target_arch = "x86_64")]
                Values::Split(_) => {
                    unreachable!("weights packed for tile registers. This is a bug.")
                }
                Values::I8(b) => {
                    let size = self.w.panels.panel_values();
                    let bytes = &workspace.bytes[kept];
                    bytes.multiply(isa, &b[panel * size..], (count, size), acc);
                }
                #[cfg(target_arch = "x86_64")]
                Values::Fours(b) => {
                    let size = self.w.panels.panel_values();
                    let bytes = &workspace.bytes[kept];
                    bytes.multiply_wide(isa, &b[panel * size..], (count, size), acc);
                }
                #[cfg(target_arch = "x86_64")]
                Values::I16(b) if isa.level() == Level::Avx512 => {
                    let size = self.w.panels.panel_values();
                    let words = &workspace.words[kept];
                    words.multiply_wide(isa, &b[panel * size..], (count, size), acc);
                }
                Values::I16(b) => {
                    let size = self.w.panels.panel_values();
                    let words = &workspace.words[kept];
                    words.multiply(isa, &b[panel * size..], (count, size), acc);
                }
            }
            let row = span.out + offset * self.row_step;
            self.finish(isa, acc, (panel, count), (row, span.rows));
        }
    }

    /// Stores the sums of some rows and panels.
    fn finish(
        &self,
        isa: Isa,
        acc: &Accumulators,
        (panel, count): (usize, usize),
        (row, rows): (usize, usize),
    ) {
        for p in (0..count).step_by(self.group()) {
            let (gate, rest) = acc[p..].split_at(1);
            let tile = finish::Tile {
                acc: &gate[0][..rows],
                up: rest.first().map_or(&[], |up| &up[..rows]),
                panel: panel + p,
                row,
            };
            finish::finish(isa, self, &tile);
        }
    }

    /// Fetches the lines that results of some panels will be written to: the other threads have often held them last.
    fn expect_output(&self, panel: usize, count: usize, (row, rows): (usize, usize)) {
        #[cfg(target_arch = "x86_64")]
        for row in (0..rows).map(|i| row + i * self.row_step) {
            let column = self.column(panel);
            for p in 0..count / self.group() {
                let place = row * self.stride + self.first_column + column + p * WIDTH;
                self.out.expect(place);
            }
        }
    }
}

/// Panels that are summed before they are stored: so many that enough chains are under way to hide the latency of a multiply-add, and whole tiles.
fn panels_per_call(isa: Isa, rows: usize, together: bool) -> usize {
    match (isa.level(), rows) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, _) if together && isa.loads_one_operand() => BLOCK_PANELS,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, _) => MAX_PANELS,
        (_, 1) => 4,
        (_, 2) => 2,
        _ => 1,
    }
}

/// Rows that a kernel takes at once: as even as possible, at most 6.
fn rows_per_call(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(6))
}

/// Where a call puts its sums: those of a row and panel lie together.
pub(crate) struct Target<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) row_stride: usize,
    pub(crate) panel_stride: usize,
}

impl<'a> Target<'a> {
    fn accumulators(acc: &'a mut [[[f32; WIDTH]; BLOCK_ROWS]]) -> Self {
        Self {
            values: acc.as_flattened_mut().as_flattened_mut(),
            row_stride: WIDTH,
            panel_stride: BLOCK_ROWS * WIDTH,
        }
    }

    /// One past the last value of so many rows and panels.
    fn end(&self, rows: usize, panels: usize) -> usize {
        (rows - 1) * self.row_stride + (panels - 1) * self.panel_stride + WIDTH
    }
}

/// One stretch of depth of a block: `out (+)= a b`, at most [`MAX_PANELS`] panels.
pub(crate) struct Call<'a, X = f32> {
    pub(crate) a: &'a [X],
    pub(crate) row_stride: usize,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) panel_stride: usize,
    pub(crate) panels: usize,
    /// Whether the sums start at zero.
    pub(crate) fresh: bool,
}

impl Call<'_> {
    /// `b` begins at the first panel's row for the first value of `a`.
    pub(crate) fn run<W: Element>(&self, isa: Isa, b: &[W], out: Target<'_>) {
        match isa.level() {
            Level::Portable => portable::run(self, b, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::run(isa, self, b, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => W::run_avx512(isa, self, b, out),
        }
    }
}

/// A stored weight that products widen to f32.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Element: portable::Widen + avx2::Load {
    /// [`Call::run`] where AVX-512 is there.
    fn run_avx512(isa: Isa, call: &Call<'_>, b: &[Self], out: Target<'_>) {
        avx2::run(isa, call, b, out);
    }
}
#[cfg(target_arch = "x86_64")]
impl Element for f32 {
    fn run_avx512(isa: Isa, call: &Call<'_>, b: &[Self], out: Target<'_>) {
        let next = call.panels * call.panel_stride;
        let b = avx512::Side::strided(b, call.panels, call.panel_stride, next);
        avx512::run::<Single>(isa, call, None, b, out);
    }
}
/// Of the language model's cache, which is stored otherwise at this level.
#[cfg(target_arch = "x86_64")]
impl Element for u16 {}
/// A stored weight that products widen to f32.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) trait Element: portable::Widen {}
#[cfg(not(target_arch = "x86_64"))]
impl<T: portable::Widen> Element for T {}
