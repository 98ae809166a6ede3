//! Products in tile registers: a block of rows by some panels, part by part.
//!
//! A part is what registers hold sums of: 32 rows by two panels. It is stored as soon as it is summed, while it is in the first-level cache, and the two
//! panels stay there for the parts below it. Where there are none below, weights are read once, and four panels are summed before they are stored.

use std::ops::Range;

use super::amx::{Ahead, LINE};
use super::panels::Values;
use super::{Hardware, Isa, Job, MAX_PANELS, Span, Target, WIDTH, Workspace, amx};

/// Rows of a part.
const ROWS: usize = 32;
/// Panels of a part.
const PANELS: usize = 2;
/// Lines that a step reads of a panel.
const LINES: usize = 16;
/// Most lines that are fetched before the first products.
const AT_ONCE: usize = 1024;
/// Most rows of a block that several threads share out: weights come from memory once per block.
const BLOCK_ROWS: usize = 192;
/// Bytes of input that a block may span, of the second-level cache, which is 2 MiB where there are tile registers.
const BLOCK_BYTES: usize = 1536 * 1024;

/// Rows of the blocks that `spans` are cut into: as even as whole parts can be, and as many for every thread, so that what a thread has written it
/// also reads.
pub(super) fn block_rows(spans: &[Span], row_bytes: usize, threads: usize) -> usize {
    let most = match threads {
        1 => BLOCK_BYTES / row_bytes,
        _ => (BLOCK_BYTES / row_bytes).min(BLOCK_ROWS),
    };
    let most = (most / ROWS).max(1);
    let longest = spans.iter().map(|s| s.rows.div_ceil(ROWS)).max();
    let parts = longest.unwrap_or(0).max(1);
    let blocks = match parts.div_ceil(most) {
        1 => 1,
        several => several.next_multiple_of(threads),
    };
    parts.div_ceil(blocks) * ROWS
}

impl Job<'_> {
    /// All outputs of a block of rows in some panels.
    pub(super) fn block_in_tiles(
        &self,
        (mut tiles, isa): (Hardware, Isa),
        workspace: &mut Workspace,
        (index, (span, offset)): (usize, (Span, usize)),
        panels: Range<usize>,
    ) {
        let acc = &mut workspace.acc.0;
        let input = span.input + offset * self.x.row_stride;
        let (name, rows) = ((self.number, index), Span { input, ..span });
        let (values, size) = (self.w.panels.values(), self.w.panels.panel_values());
        if size == 0 {
            acc.as_flattened_mut().as_flattened_mut().fill(0.0);
        }
        // A step reads a KiB of each panel for all rows of two registers, or of one; where weights are split it fetches twice.
        let parts = span.rows.div_ceil(match values {
            Values::Fours(_) => ROWS / 2,
            _ => ROWS,
        });
        let (mut ahead, at_once) = match span.rows {
            0..=ROWS => (Ahead::Near, MAX_PANELS),
            _ => {
                let first = PANELS * self.w.panels.panel_bytes() / LINE;
                let next = self.w.panels.bytes_from(panels.start);
                let each = (PANELS * LINES).div_ceil(parts);
                (Ahead::far(next, first.min(AT_ONCE), each), PANELS)
            }
        };
        if let Values::Fours(_) = values {
            let bytes = &mut workspace.bytes;
            bytes[0].load(isa, name, &self.x, input, span.rows);
        }
        for panel in panels.clone().step_by(at_once) {
            let count = at_once.min(panels.end - panel);
            for first in (0..span.rows).step_by(ROWS) {
                let part = (first, ROWS.min(span.rows - first));
                let row = span.out + (offset + first) * self.row_step;
                self.expect_output(panel, count, (row, part.1));
                match values {
                    Values::Pairs(b) => {
                        let x = workspace.pairs.load(isa, name, &self.x, rows, false);
                        for (call, at) in x.calls(part, (count, size)) {
                            let b = strided(&b[panel * size + at * WIDTH..], size);
                            let out = Target::accumulators(acc);
                            amx::run(&mut tiles, &call, &b[..count], out, &mut ahead);
                        }
                    }
                    Values::Split(b) => {
                        let x = workspace.pairs.load(isa, name, &self.x, rows, true);
                        for (call, at) in x.calls(part, (count, 2 * size)) {
                            let b = &b[2 * panel * size + at * WIDTH..];
                            let low = &x.low[x.values.len() - call.a.len()..];
                            let b = [b, &b[size..]].map(|b| strided(b, 2 * size));
                            let b = (&b[0][..count], &b[1][..count]);
                            let out = Target::accumulators(acc);
                            amx::run_split(&mut tiles, &call, low, b, out, &mut ahead);
                        }
                    }
                    Values::Fours(b) => {
                        let b = (&b[panel * size..][..count * size], size);
                        let kernel = (&mut tiles, &mut ahead, isa);
                        workspace.bytes[0].multiply_in_tiles(kernel, part, b, acc);
                    }
                    Values::F32(_) | Values::I16(_) | Values::I8(_) => {
                        unreachable!("weights packed for other kernels. This is a bug.")
                    }
                }
                self.finish(isa, acc, (panel, count), (row, part.1));
            }
        }
    }
}

/// Panels `stride` apart, from their first on: as many as there are, then empty ones.
fn strided<T>(b: &[T], stride: usize) -> [&[T]; MAX_PANELS] {
    std::array::from_fn(|p| b.get(p * stride..).unwrap_or(&[]))
}
