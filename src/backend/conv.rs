//! Convolutions over the rows of each sequence, channels last.

use super::{Act, Epilogue, Memory, Result, Weight};
use crate::tensor::{Segments, Tensor};

/// What lies beyond a sequence's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    Zero,
    /// Mirrored without repeating the edge row, as `torch.nn.ReflectionPad1d`.
    Reflect,
}

/// Geometry of a convolution. Output rows of a sequence of `T` rows:
/// `(left + T + right − dilation · (k − 1) − 1) / stride + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeom {
    pub stride: usize,
    pub dilation: usize,
    pub left: usize,
    pub right: usize,
    pub padding: Padding,
}

impl ConvGeom {
    /// Stride 1, zeros on the left only, as many rows out as in.
    pub fn causal(kernel: usize, dilation: usize) -> Self {
        Self {
            stride: 1,
            dilation,
            left: (kernel - 1) * dilation,
            right: 0,
            padding: Padding::Zero,
        }
    }

    /// Stride 1, zeros on both sides, as many rows out as in (odd kernels).
    pub fn same(kernel: usize, dilation: usize) -> Self {
        let pad = (kernel - 1) * dilation / 2;
        Self {
            stride: 1,
            dilation,
            left: pad,
            right: pad,
            padding: Padding::Zero,
        }
    }

    /// Output rows for a sequence of `rows` rows; 0 when the kernel does not fit.
    pub fn output_rows(&self, rows: usize, kernel: usize) -> usize {
        (self.left + rows + self.right)
            .checked_sub(self.dilation * (kernel - 1) + 1)
            .map_or(0, |n| n / self.stride + 1)
    }
}

/// How exactly a convolution is computed, where a device has a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fidelity {
    /// In the device's usual precision.
    Usual,
    /// With eleven significant bits at least, of a value or of the largest of some channels beside it: the vocoder's, whose rounding errors are heard as noise.
    Signal,
    /// Activations kept in f32 and sums in f64: for f0, whose rounding errors the source's phase multiplies by thousands. Without groups.
    Exact,
}

/// Convolution ops. `pre` is applied to the input as it is read (padding stays zero: every `pre` here maps 0 to 0).
pub trait Conv: Memory {
    /// A packed convolution.
    type Conv1d: Send + Sync;
    /// A packed transposed convolution.
    type ConvT1d: Send + Sync;

    /// Packs a PyTorch `Conv1d`: `w [Co, Ci / groups, k]`, `bias [Co]`.
    fn pack_conv1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        groups: usize,
        fidelity: Fidelity,
    ) -> Result<Self::Conv1d>;

    /// Packs a PyTorch `ConvTranspose1d`: `w [Ci, Co, k]`, `bias [Co]`, with its stride and padding, computed as [`Fidelity::Signal`].
    fn pack_conv_transpose1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        stride: usize,
        padding: usize,
    ) -> Result<Self::ConvT1d>;

    /// `x [N, Ci]` → `out [N', Co]`, each sequence by itself.
    fn conv1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &Self::Conv1d,
        geom: ConvGeom,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()>;

    /// `x [N, Ci]` → `out [N', Co]`, `T' = (T − 1) · stride − 2 · padding + k` rows per sequence.
    fn conv_transpose1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &Self::ConvT1d,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()>;
}
