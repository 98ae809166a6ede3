//! Matrix products on packed weights: linear layers and, as products over shifted rows, convolutions.
//!
//! Every output is one chain of multiply-adds over `k = 0, 1, …`, in that order, whatever the number of input rows and whatever kernel
//! computes it. So a row's bytes do not depend on its neighbours nor on the threads. What may be chosen freely, and is chosen for speed, is
//! which outputs are computed together.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod finish;
mod panels;
mod portable;

pub(crate) use panels::{Panels, Row, WIDTH};

use super::Store;
use super::isa::{Isa, Level};
use super::pool::{Pool, SharedMut};
use panels::Values;

/// Rows of an output block: its accumulators stay in the first-level cache.
pub(crate) const BLOCK_ROWS: usize = 96;
/// Depth of a block: 16 KiB of an f32 panel.
const BLOCK_K: usize = 256;
/// Values of input that a block of rows may span, so that it stays in the second-level cache.
const BLOCK_VALUES: usize = 48 * 1024;
/// Most panels that one kernel call covers.
pub(crate) const MAX_PANELS: usize = 4;
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
    let job = Job {
        x,
        w,
        store,
        out: SharedMut::new(out.values),
        stride: out.stride,
        row_step: out.row_step,
        first_column: out.first_column,
        columns: out.columns,
    };
    let blocks = RowBlocks::new(spans, &x);
    let group = job.group();
    let groups = w.panels.count.div_ceil(group);
    let wanted = (pool.threads() * CHUNKS_PER_THREAD).div_ceil(blocks.count);
    let per_chunk = match pool.threads() {
        1 => groups,
        _ => groups.div_ceil(wanted).max(MAX_PANELS / group),
    };
    let column_chunks = groups.div_ceil(per_chunk);
    pool.run(blocks.count * column_chunks, |chunk| {
        let rows = blocks.get(spans, chunk / column_chunks);
        let first = chunk % column_chunks * per_chunk * group;
        let end = (first + per_chunk * group).min(w.panels.count);
        job.block(isa, rows, first, end);
    });
}

/// The spans cut into blocks of at most `rows` rows.
struct RowBlocks {
    rows: usize,
    count: usize,
}

impl RowBlocks {
    fn new(spans: &[Span], x: &Input<'_>) -> Self {
        let fit = BLOCK_VALUES / x.row_stride.max(1);
        let rows = (fit / 6 * 6).clamp(6, BLOCK_ROWS);
        let count = spans.iter().map(|s| s.rows.div_ceil(rows)).sum();
        Self { rows, count }
    }

    /// Block `index`: the span it belongs to, cut to its rows, and their offset in the span.
    fn get(&self, spans: &[Span], mut index: usize) -> (Span, usize) {
        for span in spans {
            let blocks = span.rows.div_ceil(self.rows);
            if index < blocks {
                let first = index * self.rows;
                let rows = (span.rows - first).min(self.rows);
                return (Span { rows, ..*span }, first);
            }
            index -= blocks;
        }
        unreachable!("block index out of range. This is a bug.")
    }
}

/// One product, as the threads see it.
struct Job<'a> {
    x: Input<'a>,
    w: Weights<'a>,
    store: Store<'a>,
    out: SharedMut<'a>,
    stride: usize,
    row_step: usize,
    first_column: usize,
    columns: usize,
}

/// Accumulators of a block: `[panel][row][16]`.
pub(crate) type Accumulators = [[[f32; WIDTH]; BLOCK_ROWS]; MAX_PANELS];

impl Job<'_> {
    /// Panels that belong together: gate and up.
    fn group(&self) -> usize {
        if matches!(self.store, Store::SiluMul) {
            2
        } else {
            1
        }
    }

    /// All outputs of a block of rows in panels `first..end`.
    fn block(&self, isa: Isa, (span, offset): (Span, usize), first: usize, end: usize) {
        let mut acc: Accumulators = [[[0.0; WIDTH]; BLOCK_ROWS]; MAX_PANELS];
        let step = panels_per_call(span.rows).max(self.group());
        let mut panel = first;
        while panel < end {
            let count = step.min(end - panel);
            self.accumulate(
                isa,
                span.input + offset * self.x.row_stride,
                span.rows,
                panel,
                count,
                &mut acc,
            );
            for p in (0..count).step_by(self.group()) {
                let (gate, rest) = acc[p..].split_at(1);
                let tile = finish::Tile {
                    acc: &gate[0][..span.rows],
                    up: rest.first().map_or(&[], |up| &up[..span.rows]),
                    panel: panel + p,
                    row: span.out + offset * self.row_step,
                };
                finish::finish(isa, self, &tile);
            }
            panel += count;
        }
    }

    /// Sums over the whole depth, block by block.
    fn accumulate(
        &self,
        isa: Isa,
        input: usize,
        rows: usize,
        panel: usize,
        count: usize,
        acc: &mut Accumulators,
    ) {
        let k = self.w.panels.k;
        if k == 0 {
            acc.as_flattened_mut().as_flattened_mut().fill(0.0);
        }
        let block_k = if rows <= 6 { usize::MAX } else { BLOCK_K };
        for tap in 0..self.x.taps {
            let mut done = 0;
            while done < self.x.depth {
                let depth = block_k.min(self.x.depth - done);
                let at = tap * self.x.depth + done;
                let call = Call {
                    a: &self.x.values[input + tap * self.x.tap_stride + done..],
                    row_stride: self.x.row_stride,
                    rows,
                    depth,
                    panel_stride: k * WIDTH,
                    panels: count,
                    fresh: at == 0,
                };
                let first = (panel * k + at) * WIDTH;
                match self.w.panels.values() {
                    Values::F32(b) => call.run(isa, &b[first..], acc),
                    Values::Bf16(b) => call.run(isa, &b[first..], acc),
                    Values::I8(b) => call.run(isa, &b[first..], acc),
                }
                done += depth;
            }
        }
    }
}

/// Panels that a kernel takes at once, so that enough chains are under way to hide the latency of a multiply-add.
fn panels_per_call(rows: usize) -> usize {
    match rows {
        1 => 4,
        2 => 2,
        _ => 1,
    }
}

/// Rows that a kernel takes at once: as even as possible, at most 6.
fn rows_per_call(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(6))
}

/// One stretch of depth of a block: `acc (+)= a b`, at most [`BLOCK_ROWS`] rows and [`MAX_PANELS`] panels.
pub(crate) struct Call<'a> {
    pub(crate) a: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) panel_stride: usize,
    pub(crate) panels: usize,
    /// Whether the accumulators start at zero.
    pub(crate) fresh: bool,
}

impl Call<'_> {
    /// `b` begins at the first panel's row for the first value of `a`.
    pub(crate) fn run<W: Element>(&self, isa: Isa, b: &[W], acc: &mut Accumulators) {
        match isa.level() {
            Level::Portable => portable::run(self, b, acc),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::run(isa, self, b, acc),
        }
    }
}

/// A stored weight.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Element: portable::Widen + avx2::Load {}
#[cfg(target_arch = "x86_64")]
impl<T: portable::Widen + avx2::Load> Element for T {}
/// A stored weight.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) trait Element: portable::Widen {}
#[cfg(not(target_arch = "x86_64"))]
impl<T: portable::Widen> Element for T {}
