//! Normalisation over channels.

use super::{Act, Memory, Result};
use crate::tensor::{Segments, Tensor};

/// Row-wise normalisation with its neighbours fused.
pub trait Norm: Memory {
    /// `h = x (+ residual)`; `out = h / sqrt(mean(h²) + eps) · w`. With a residual, `h` is stored back into it.
    /// `x, residual, out [N, D]`, `w [1, D]`.
    fn rms_norm(
        &self,
        x: &Tensor<Self>,
        residual: Option<&mut Tensor<Self>>,
        w: &Tensor<Self>,
        eps: f32,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// `out = act(scale · ((x − mean) / sqrt(var + eps) · w + b))`, biased variance. `x, out [N, D]`, `w, b [1, D]`.
    /// The scale serves embeddings that are multiplied by √d right after their norm.
    fn layer_norm(
        &self,
        x: &Tensor<Self>,
        w: &Tensor<Self>,
        b: &Tensor<Self>,
        eps: f32,
        scale: f32,
        act: Option<Act<'_, Self>>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// Adds one row per sequence: `x[i] += v[b]` for every row `i` of sequence `b`. `x [N, C]`, `v [B, C]`.
    fn add_segment_rows(
        &self,
        x: &mut Tensor<Self>,
        segments: &Segments<Self>,
        v: &Tensor<Self>,
    ) -> Result<()>;

    /// `x[i] /= max(‖x[i]‖₂, eps)`, as `torch.nn.functional.normalize`. `x [N, C]`.
    fn l2_normalize(&self, x: &mut Tensor<Self>, eps: f32) -> Result<()>;
}
