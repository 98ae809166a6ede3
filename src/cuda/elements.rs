//! What element-wise kernels share: their blocks.

use super::launch::Shape;

/// Values of one thread where rows are multiples of it (`kernels/include/elements.cuh`).
const CHUNK: usize = 8;
const THREADS: usize = 256;
/// Blocks of a kernel that walks over all values with a stride.
const STRIDED_BLOCKS: usize = 2048;

/// Blocks for all values of `[rows, cols]`.
pub(super) fn strided(rows: usize, cols: usize) -> Shape {
    let width = if cols.is_multiple_of(CHUNK) { CHUNK } else { 1 };
    let count = rows * cols / width;
    Shape::blocks(count.div_ceil(THREADS).min(STRIDED_BLOCKS), THREADS as u32)
}
