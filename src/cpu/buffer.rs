//! Storage of CPU tensors: f32 values on cache-line boundaries.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::out_of_memory;
use super::pages::advise_huge_pages;
use crate::backend::Result;

/// One cache line of values.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A growable array of f32 values that starts on a cache line.
#[derive(Default)]
pub struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        let mut buffer = Self::default();
        buffer.grow(len)?;
        Ok(buffer)
    }

    /// `len` zeros on huge pages where the system gives them.
    pub(crate) fn zeroed_huge(len: usize) -> Result<Self> {
        let mut buffer = Self::default();
        buffer.reserve(len)?;
        advise_huge_pages(buffer.lines.as_ptr().addr(), len * 4);
        buffer.grow(len)?;
        Ok(buffer)
    }

    /// Makes room for at least `len` values; new ones are zero.
    pub(crate) fn grow(&mut self, len: usize) -> Result<()> {
        let lines = len.div_ceil(16);
        if lines > self.lines.len() {
            self.reserve(len)?;
            self.lines.resize(lines, Line([0.0; 16]));
        }
        Ok(())
    }

    /// Makes room without touching it.
    fn reserve(&mut self, len: usize) -> Result<()> {
        let more = len.div_ceil(16).saturating_sub(self.lines.len());
        self.lines
            .try_reserve_exact(more)
            .map_err(|_| out_of_memory("a tensor", len.saturating_mul(4)))
    }

    /// Everything, the unused tail of the last line included.
    pub(crate) fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// The same, to be changed.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

/// What a thread keeps between calls: values that start on a cache line, where tile registers load and store them twice as fast. It grows as it is
/// asked to, and panics where the system has no memory, as vectors do.
#[derive(Default)]
pub(crate) struct Reused<T> {
    lines: Vec<Line>,
    values: PhantomData<T>,
}

impl<T: bytemuck::Pod> Reused<T> {
    /// Makes room for at least `len` values; new ones are zero.
    pub(crate) fn grow(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; 16]));
        }
    }
}

/// Everything, the unused tail of the last line included.
impl<T: bytemuck::Pod> Deref for Reused<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }
}

impl<T: bytemuck::Pod> DerefMut for Reused<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_lines_and_keeps_values() {
        let mut b = Buffer::zeroed(3).unwrap();
        b.as_mut_slice()[2] = 7.0;
        b.grow(1000).unwrap();
        assert_eq!(b.as_slice().len(), 1008);
        assert_eq!(b.as_slice()[2], 7.0);
        assert_eq!(b.as_slice().as_ptr() as usize % 64, 0);
        b.grow(5).unwrap();
        assert_eq!(b.as_slice().len(), 1008);
    }
}
