//! Activations as every model sees them: row-major `[rows, cols]`, channels last, packed without padding.
//!
//! A batch of sequences is one [`Tensor`] whose rows are the sequences one after the other, plus [`Segments`] that say
//! where each begins. Heads, when there are any, lie side by side in a row (`[N, H·Dh]`).

mod segments;
mod trace;

pub use segments::Segments;
pub use trace::{Trace, TracedTensor};

use crate::backend::Memory;

/// A row-major matrix `[rows, cols]` in a backend's memory.
///
/// Its buffer may be larger than `rows * cols`: [`Memory::resize`] reuses what is there.
pub struct Tensor<B: Memory> {
    pub(crate) buf: B::Buf,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<B: Memory> Tensor<B> {
    /// Wraps a backend's buffer, which must hold at least `rows * cols` values.
    pub(crate) fn from_buf(buf: B::Buf, rows: usize, cols: usize) -> Self {
        Self { buf, rows, cols }
    }

    /// Number of rows (packed tokens, frames or samples).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of channels in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `(rows, cols)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
}

/// A vector of 32-bit integers (ids, positions, offsets) in a backend's memory.
pub struct Ids<B: Memory> {
    pub(crate) buf: B::IdBuf,
    pub(crate) len: usize,
}

impl<B: Memory> Ids<B> {
    pub(crate) fn from_buf(buf: B::IdBuf, len: usize) -> Self {
        Self { buf, len }
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
