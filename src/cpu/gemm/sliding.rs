//! Convolutions in 16-bit integers, for AVX-512: a row of the input is rounded once for all taps that read it.
//!
//! In: padded rows of f32, channels last. Out: rows as [`run`](super::run) stores them. Each row has a scale for every stretch of at most [`SEGMENT`] channels,
//! by which the exact sums of its products are added up in f32, tap by tap, and of a tap stretch by stretch. So a row's bytes depend on the rows that it reads alone.
//!
//! Rounded rows lie word by word ([`Words`]). The rows that a tap reads begin as many places later as it reads later rows, so a tile reads neighbours whatever the
//! dilation. Where the convolution has a stride, every `stride`-th row is such a neighbour.

use std::cell::RefCell;

use super::blocks::RowBlocks;
use super::fixed;
use super::integers::SEGMENT;
use super::panels::Values;
use super::words::Words;
use super::words_avx512::Kernel;
use super::{
    Aligned, BLOCK_ROWS, CHUNKS_PER_THREAD, Input, Isa, Job, MAX_PANELS, Output, Panels, Pool, Row,
    Span, Store, Stored, WIDTH, Weights,
};
use crate::backend::Result;

/// Weights of a convolution, `[Co / 16][taps · stretches][stretch / 2][16][2]`.
pub(crate) struct Sliding {
    panels: Panels,
    taps: usize,
    channels: usize,
    /// Channels that share a scale.
    stretch: usize,
}

impl Sliding {
    /// Fewest channels whose sums are worth scaling: of so many, sixteen products to three operations that scale their sum. Not measured.
    pub(crate) const LEAST_CHANNELS: usize = 32;

    /// Packs `[co, taps, channels]`, of which `fill(channel, row)` writes `row [taps · channels]` of an output channel.
    pub(crate) fn pack(
        (co, taps, channels): (usize, usize, usize),
        mut fill: impl FnMut(usize, &mut [f32]),
    ) -> Result<Self> {
        let stretches = channels.div_ceil(SEGMENT).max(1);
        let stretch = channels.div_ceil(stretches).next_multiple_of(2);
        let (count, padded) = (co.div_ceil(WIDTH), stretches * stretch);
        let mut values = vec![0.0; taps * channels];
        let panels = Panels::pack(count, taps * padded, Stored::Fixed, |channel, row| {
            (channel < co).then(|| {
                fill(channel, &mut values);
                let rows = row.chunks_exact_mut(padded);
                for (row, values) in rows.zip(values.chunks_exact(channels)) {
                    row[..channels].copy_from_slice(values);
                    row[channels..].fill(0.0);
                }
                Row::Quantised(fixed::round_channel(row, stretch))
            })
        })?;
        Ok(Self {
            panels,
            taps,
            channels,
            stretch,
        })
    }

    /// `out = store(convolution of x + bias)` for all spans: `x` has the taps of the convolution, each of all channels, and rows and taps whole rows apart.
    pub(crate) fn run(
        &self,
        (pool, isa): (&Pool, Isa),
        x: Input<'_>,
        spans: &[Span],
        bias: &[f32],
        store: Store<'_>,
        out: Output<'_>,
    ) {
        assert_eq!((x.taps, x.depth), (self.taps, self.channels), "gemm: taps");
        assert!(x.row_stride.is_multiple_of(x.depth) && x.row_stride > 0);
        assert!(x.tap_stride.is_multiple_of(x.depth));
        let w = Weights {
            panels: &self.panels,
            bias,
        };
        let job = Job::new(pool, x, w, store, out);
        let blocks = RowBlocks::new(spans, rows_of_block(spans));
        if blocks.count == 0 {
            return;
        }
        let count = self.panels.count;
        let wanted = (pool.threads() * CHUNKS_PER_THREAD).div_ceil(blocks.count);
        let per_chunk = match pool.threads() {
            1 => count,
            _ => count.div_ceil(wanted),
        };
        let per_chunk = per_chunk.next_multiple_of(MAX_PANELS);
        let column_chunks = count.div_ceil(per_chunk);
        pool.run(blocks.count * column_chunks, |chunk| {
            let (block, first) = (chunk / column_chunks, chunk % column_chunks * per_chunk);
            let (span, offset) = blocks.get(spans, block);
            WORKSPACE.with_borrow_mut(|workspace| {
                let rows = (span.input + offset * x.row_stride, span.rows);
                self.load(isa, (job.number, block), &x, rows, &mut workspace.rows);
                let row = span.out + offset * job.row_step;
                let panels = (first, per_chunk.min(count - first));
                self.multiply(isa, &job, workspace, (row, span.rows), panels);
            });
        });
    }

    /// Rounds what `count` output rows read, the first of them from `x.values[first]` on, unless the block called `name` is what is there already.
    fn load(
        &self,
        isa: Isa,
        name: (u64, usize),
        x: &Input<'_>,
        (first, count): (usize, usize),
        rows: &mut Words<i16>,
    ) {
        if rows.is(name) {
            return;
        }
        let (channels, stretch) = (self.channels, self.stretch);
        let (stride, dilation) = (x.row_stride / channels, x.tap_stride / channels);
        let read = (count - 1) * stride + (self.taps - 1) * dilation + 1;
        let stretches = channels.div_ceil(stretch);
        rows.begin(read.div_ceil(stride), stride * stretches, stretch);
        for phase in 0..stride.min(read) {
            let count = (read - phase).div_ceil(stride);
            for row in (0..count).step_by(WIDTH) {
                for i in 0..stretches {
                    let done = i * stretch;
                    let values = first + phase * channels + row * x.row_stride + done;
                    let values = (&x.values[values..], x.row_stride);
                    let (these, length) = (WIDTH.min(count - row), stretch.min(channels - done));
                    rows.round(isa, phase * stretches + i, (row, these), values, length);
                }
            }
        }
        for tap in (0..self.taps).map(|t| t * dilation) {
            for i in 0..stretches {
                rows.then(tap % stride * stretches + i, tap / stride, stretch);
            }
        }
    }

    /// Some panels of a block whose rows are rounded.
    fn multiply(
        &self,
        isa: Isa,
        job: &Job<'_>,
        workspace: &mut Workspace,
        rows: (usize, usize),
        (first, count): (usize, usize),
    ) {
        let Values::I16(values) = self.panels.values() else {
            unreachable!("weights packed for other kernels. This is a bug.")
        };
        let (size, acc) = (self.panels.panel_values(), &mut workspace.acc.0);
        for panel in (first..first + count).step_by(MAX_PANELS) {
            let panels = MAX_PANELS.min(first + count - panel);
            if job.shared {
                job.expect_output(panel, panels, rows);
            }
            let b = (&values[panel * size..], size, panels);
            workspace.rows.multiply(isa, rows.1, b, acc);
            job.finish(isa, acc, (panel, panels), rows);
        }
    }
}

/// Rows of the blocks that `spans` are cut into: as even as possible, of whole tiles.
fn rows_of_block(spans: &[Span]) -> usize {
    let longest = spans.iter().map(|s| s.rows).max().unwrap_or(0).max(1);
    let even = longest.div_ceil(longest.div_ceil(BLOCK_ROWS));
    even.next_multiple_of(Kernel::<i16>::ROWS)
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// What a thread keeps between blocks; it grows once.
#[derive(Default)]
struct Workspace {
    rows: Words<i16>,
    acc: Box<Aligned>,
}
