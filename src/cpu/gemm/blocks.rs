//! How many rows of a product a thread works on at a time.

use super::integers::Rows as Integers;
use super::panels::Values;
use super::{BLOCK_ROWS, Isa, Job, Span};
#[cfg(target_arch = "x86_64")]
use super::{interleaved, tiled};

/// Bytes of input that a block of rows may span, so that it stays in the second-level cache.
const BLOCK_BYTES: usize = 192 * 1024;
/// The same where AVX-512 lays rows together: its CPUs have 1 MiB and more.
#[cfg(target_arch = "x86_64")]
const BLOCK_BYTES_TOGETHER: usize = 512 * 1024;

/// The spans cut into blocks of at most `rows` rows.
pub(super) struct RowBlocks {
    rows: usize,
    pub(super) count: usize,
}

impl RowBlocks {
    pub(super) fn new(spans: &[Span], rows: usize) -> Self {
        let count = spans.iter().map(|s| s.rows.div_ceil(rows)).sum();
        Self { rows, count }
    }

    /// Block `index`: the span it belongs to, cut to its rows, and their offset in the span.
    pub(super) fn get(&self, spans: &[Span], mut index: usize) -> (Span, usize) {
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

impl Job<'_> {
    /// The blocks of rows that chunks work on.
    pub(super) fn row_blocks(&self, threads: usize, isa: Isa, spans: &[Span]) -> RowBlocks {
        let row_bytes = self.row_bytes().max(1);
        #[cfg(target_arch = "x86_64")]
        if self.takes_tiles(isa) {
            return RowBlocks::new(spans, tiled::block_rows(spans, row_bytes, threads));
        }
        #[cfg(target_arch = "x86_64")]
        if self.lays_together(isa, spans.iter().map(|s| s.rows).max().unwrap_or(0)) {
            let fit = (BLOCK_BYTES_TOGETHER / row_bytes).min(BLOCK_ROWS);
            return RowBlocks::new(spans, interleaved::rows_of_block(isa, fit));
        }
        let fit = (BLOCK_BYTES / row_bytes / 6 * 6).clamp(6, BLOCK_ROWS);
        // As many blocks for each thread, of as many rows: then a thread keeps its rows from one product to the next.
        let rows: usize = spans.iter().map(|s| s.rows).sum();
        let blocks = rows.div_ceil(fit).next_multiple_of(threads);
        let even = rows.div_ceil(blocks.max(1)).next_multiple_of(6);
        // Each block reads the weights anew: not of less than half of the rows that fit. Then the threads share out columns.
        RowBlocks::new(spans, if 2 * even < fit { fit } else { even.min(fit) })
    }

    /// Bytes that a row adds to a block.
    fn row_bytes(&self) -> usize {
        match self.w.panels.values() {
            // AVX2 multiplies 16 bits of both.
            Values::I8(_) | Values::I16(_) => Integers::<i16>::row_bytes(self.w.panels.k),
            #[cfg(target_arch = "x86_64")]
            Values::Fours(_) => Integers::<i8>::row_bytes(self.w.panels.k),
            #[cfg(target_arch = "x86_64")]
            Values::Pairs(_) => self.x.row_stride * size_of::<u16>(),
            _ => self.x.row_stride * size_of::<f32>(),
        }
    }
}
