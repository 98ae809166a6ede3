//! Where each sequence of a packed batch begins and ends.

use super::Ids;
use crate::backend::{Memory, Result};

/// Row ranges of the `B` sequences of a packed tensor: sequence `b` owns rows `offsets[b]..offsets[b + 1]`.
///
/// The offsets are on the host for planning and in the backend's memory for kernels.
pub struct Segments<B: Memory> {
    offsets: Vec<usize>,
    device: Ids<B>,
}

impl<B: Memory> Segments<B> {
    /// Segments of the given lengths, in order. Zero lengths are allowed.
    ///
    /// # Errors
    /// When the backend cannot hold the `B + 1` offsets.
    pub fn new(backend: &B, lengths: &[usize]) -> Result<Self> {
        let mut segments = Self {
            offsets: Vec::with_capacity(lengths.len() + 1),
            device: backend.ids(&[])?,
        };
        segments.update(backend, lengths)?;
        Ok(segments)
    }

    /// Becomes the segments of other lengths, in the memory that is there where it suffices.
    ///
    /// # Errors
    /// As [`Segments::new`].
    pub fn update(&mut self, backend: &B, lengths: &[usize]) -> Result<()> {
        let mut end = 0;
        self.offsets.clear();
        self.offsets.push(end);
        for length in lengths {
            end += length;
            self.offsets.push(end);
        }
        let on_device: Vec<i32> = self.offsets.iter().map(|&o| o as i32).collect();
        backend.upload_ids(&on_device, &mut self.device)
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of all sequences together.
    pub fn total(&self) -> usize {
        self.offsets[self.count()]
    }

    /// The rows of sequence `b`.
    pub fn range(&self, b: usize) -> std::ops::Range<usize> {
        self.offsets[b]..self.offsets[b + 1]
    }

    /// Rows of sequence `b`.
    pub fn length(&self, b: usize) -> usize {
        self.offsets[b + 1] - self.offsets[b]
    }

    /// Rows of each sequence.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.offsets.windows(2).map(|w| w[1] - w[0])
    }

    /// Rows of the longest sequence, 0 when there is none.
    pub fn longest(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }

    /// `B + 1` offsets on the host.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The same offsets in the backend's memory, `[B + 1]`.
    pub fn device(&self) -> &Ids<B> {
        &self.device
    }
}
