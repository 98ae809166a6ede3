//! What element-wise kernels share: their blocks, and activations as kernels take them.

use super::Cuda;
use super::abi;
use super::launch::Shape;
use crate::backend::{Act, check_shape};

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

/// An activation of `channels` channels as kernels take it.
pub(super) fn act_params(act: Option<Act<'_, Cuda>>, channels: usize) -> abi::ActParams {
    let (mut slope, mut alphas) = (0.0, 0);
    let kind = match act {
        None => abi::ACT_NONE,
        Some(Act::Relu) => abi::ACT_RELU,
        Some(Act::Gelu) => abi::ACT_GELU,
        Some(Act::GeluTanh) => abi::ACT_GELU_TANH,
        Some(Act::Silu) => abi::ACT_SILU,
        Some(Act::Mish) => abi::ACT_MISH,
        Some(Act::Elu) => abi::ACT_ELU,
        Some(Act::Tanh) => abi::ACT_TANH,
        Some(Act::Sigmoid) => abi::ACT_SIGMOID,
        Some(Act::Abs) => abi::ACT_ABS,
        Some(Act::LeakyRelu(negative)) => {
            slope = negative;
            abi::ACT_LEAKY_RELU
        }
        Some(Act::Snake(alpha)) => {
            check_shape!("activation", alpha.shape(), (1, channels));
            alphas = alpha.mat().data;
            abi::ACT_SNAKE
        }
    };
    abi::ActParams {
        kind: kind as i32,
        slope,
        alpha: alphas,
    }
}
