//! Convolutions in 16-bit integers, for AVX-512: a row of the input is rounded once for all taps that read it.
//!
//! In: padded rows of f32, channels last. Out: rows as [`run`](super::run) stores them. Each row has a scale for every stretch of at most [`SEGMENT`] channels,
//! by which the exact sums of its products are added up in f32, tap by tap, and of a tap stretch by stretch. So a row's bytes depend on the rows that it reads alone.
//!
//! Rounded rows lie word by word: all rows' first two channels, then all rows' next two. The rows that a tap reads begin as many places later as it reads later
//! rows, so a tile reads neighbours whatever the dilation. Where the convolution has a stride, every `stride`-th row is such a neighbour.

use std::cell::RefCell;

use super::blocks::RowBlocks;
use super::fixed;
use super::integers::{SEGMENT, Whole};
use super::panels::Values;
use super::sliding_avx512::{Kernel, Start};
use super::{
    Aligned, BLOCK_ROWS, CHUNKS_PER_THREAD, Input, Isa, Job, MAX_PANELS, Output, Panels, Pool, Row,
    SharedMut, Span, Store, Stored, WIDTH, Weights, fixed_avx512, number,
};
use crate::backend::Result;

/// Bytes of the panels that all tiles of a block take turns at: they stay in the first-level cache.
const TURN_BYTES: usize = 16 * 1024;

/// Weights of a convolution, `[Co / 16][taps · stretches][stretch / 2][16][2]`.
pub(crate) struct Sliding {
    panels: Panels,
    taps: usize,
    channels: usize,
    /// Channels that share a scale.
    stretch: usize,
}

impl Sliding {
    /// Fewest channels for which sums of integers are worth scaling.
    pub(crate) const LEAST_CHANNELS: usize = 32;

    /// Packs `count` panels. `fill(channel, row)` writes `row [taps · channels]` of an output channel, or returns `false` for one that only pads.
    pub(crate) fn pack(
        count: usize,
        (taps, channels): (usize, usize),
        mut fill: impl FnMut(usize, &mut [f32]) -> bool,
    ) -> Result<Self> {
        let stretches = channels.div_ceil(SEGMENT).max(1);
        let stretch = channels.div_ceil(stretches).next_multiple_of(2);
        let padded = stretches * stretch;
        let mut values = vec![0.0; taps * channels];
        let panels = Panels::pack(count, taps * padded, Stored::Fixed, |channel, row| {
            fill(channel, &mut values).then(|| {
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
        let job = Job {
            number: number(),
            by_head: false,
            shared: pool.threads() > 1,
            first_panel: 0,
            x,
            w: Weights {
                panels: &self.panels,
                bias,
            },
            store,
            out: SharedMut::new(out.values),
            stride: out.stride,
            row_step: out.row_step,
            first_column: out.first_column,
            columns: out.columns,
        };
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
                workspace
                    .rows
                    .load(isa, (job.number, block), self, &x, rows);
                let row = span.out + offset * job.row_step;
                let panels = (first, per_chunk.min(count - first));
                self.multiply(isa, &job, workspace, (row, span.rows), panels);
            });
        });
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
        let Workspace { rows: x, acc } = workspace;
        let Values::I16(values) = self.panels.values() else {
            unreachable!("weights packed for other kernels. This is a bug.")
        };
        let size = self.panels.panel_values();
        let turn = TURN_BYTES / (MAX_PANELS * self.stretch * WIDTH * size_of::<i16>());
        for panel in (first..first + count).step_by(MAX_PANELS) {
            let panels = MAX_PANELS.min(first + count - panel);
            if job.shared {
                job.expect_output(panel, panels, rows);
            }
            let mut done = 0;
            for starts in x.starts.chunks(turn.max(1)) {
                let kernel = Kernel {
                    words: &x.words,
                    scales: &x.scales,
                    pitch: x.pitch,
                    steps: self.stretch / 2,
                    starts,
                    fresh: done == 0,
                };
                let b = &values[panel * size + done * self.stretch * WIDTH..];
                kernel.run(isa, rows.1, (b, size, panels), &mut acc.0);
                done += starts.len();
            }
            job.finish(isa, &acc.0, (panel, panels), rows);
        }
    }
}

/// Rows of the blocks that `spans` are cut into: as even as possible, of whole tiles.
fn rows_of_block(spans: &[Span]) -> usize {
    let longest = spans.iter().map(|s| s.rows).max().unwrap_or(0).max(1);
    let even = longest.div_ceil(longest.div_ceil(BLOCK_ROWS));
    even.next_multiple_of(Kernel::ROWS)
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// What a thread keeps between blocks; it grows once.
#[derive(Default)]
struct Workspace {
    rows: Rows,
    acc: Box<Aligned>,
}

/// The rows that a block of output rows reads, rounded.
#[derive(Default)]
struct Rows {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    /// `[stride][stretches][stretch / 2][pitch]`
    words: Vec<[i16; 2]>,
    /// `[stride][stretches][pitch]`
    scales: Vec<f32>,
    /// Places for rows.
    pitch: usize,
    /// Of every stretch of every tap.
    starts: Vec<Start>,
}

impl Rows {
    /// Rounds what `count` output rows read, the first of them from `x.values[first]` on, unless the block called `name` is what is here already.
    fn load(
        &mut self,
        isa: Isa,
        name: (u64, usize),
        of: &Sliding,
        x: &Input<'_>,
        (first, count): (usize, usize),
    ) {
        if self.name == Some(name) {
            return;
        }
        self.name = None;
        let (channels, stretch) = (of.channels, of.stretch);
        let (stride, dilation) = (x.row_stride / channels, x.tap_stride / channels);
        let read = (count - 1) * stride + (of.taps - 1) * dilation + 1;
        // An odd number of cache lines from a word of a row to its next, so that these spread over the whole cache.
        self.pitch = (read.div_ceil(stride).div_ceil(WIDTH) | 1) * WIDTH;
        let (pitch, words) = (self.pitch, stretch / 2);
        let stretches = channels.div_ceil(stretch);
        let (places, most) = (stride * stretches * pitch, i16::LARGEST.into());
        if self.words.len() < places * words {
            self.words.resize(places * words, [0; 2]);
        }
        if self.scales.len() < places {
            self.scales.resize(places, 0.0);
        }
        for phase in 0..stride.min(read) {
            let rows = (read - phase).div_ceil(stride);
            for row in (0..rows).step_by(WIDTH) {
                let at = first + (row * stride + phase) * channels;
                for i in 0..stretches {
                    let place = phase * stretches + i;
                    let length = stretch.min(channels - i * stretch);
                    let values = &x.values[at + i * stretch..];
                    let n = WIDTH.min(rows - row);
                    let scales = &mut self.scales[place * pitch + row..][..n];
                    let out = &mut self.words[place * words * pitch + row..];
                    let from = (values, x.row_stride);
                    fixed_avx512::round_rows(isa, from, length, most, scales, (out, pitch));
                }
            }
        }
        self.starts.clear();
        for tap in (0..of.taps).map(|t| t * dilation) {
            self.starts.extend((0..stretches).map(|i| {
                let place = tap % stride * stretches + i;
                Start {
                    word: place * words * pitch + tap / stride,
                    scale: place * pitch + tap / stride,
                }
            }));
        }
        self.name = Some(name);
    }
}
