//! Allocation, copies and lookups.

use super::{Result, Weight};
use crate::tensor::{Ids, Segments, Tensor};

/// A device's memory. All sizes are in values, not bytes.
pub trait Memory: Sized {
    /// Storage of a [`Tensor`].
    type Buf: Send + Sync;
    /// Storage of [`Ids`].
    type IdBuf: Send + Sync;
    /// A lookup table `[V, C]` in the precision of the checkpoint.
    type Embedding: Send + Sync;

    /// A point in the row of all that was asked for.
    type Mark: Send;

    /// The point after everything that was asked for so far.
    fn mark(&self) -> Result<Self::Mark>;

    /// Whether everything before the point has been done.
    fn is_reached(&self, mark: &Self::Mark) -> Result<bool>;

    /// Waits for it.
    fn reach(&self, mark: &Self::Mark) -> Result<()>;

    /// Waits until everything that was asked for has been done; nothing to do where ops return when they are done.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Runs `work`, a row of ops that comes again and again. A device may hold its launches back and send them off as one; what is computed
    /// is the same. Not to be nested.
    fn recorded(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }

    /// A zeroed tensor in the device's activation precision.
    fn alloc(&self, rows: usize, cols: usize) -> Result<Tensor<Self>>;

    /// A zeroed f32 tensor, where the activation precision is not enough (phase, time, logits).
    fn alloc_f32(&self, rows: usize, cols: usize) -> Result<Tensor<Self>> {
        self.alloc(rows, cols)
    }

    /// A zeroed tensor of the vocoder's activations: eleven significant bits at least, since their rounding is heard as noise.
    fn alloc_signal(&self, rows: usize, cols: usize) -> Result<Tensor<Self>> {
        self.alloc(rows, cols)
    }

    /// Gives `t` a new shape; its values are undefined afterwards. Allocates only when the buffer is too small.
    fn resize(&self, t: &mut Tensor<Self>, rows: usize, cols: usize) -> Result<()>;

    /// Overwrites all of `t` (`src.len() == rows * cols`).
    fn upload(&self, src: &[f32], t: &mut Tensor<Self>) -> Result<()>;

    /// Replaces `dst` by the values of `t`, row-major.
    fn download(&self, t: &Tensor<Self>, dst: &mut Vec<f32>) -> Result<()>;

    /// An f32 tensor with the given values: parameters that are vectors, and inputs.
    fn tensor(&self, rows: usize, cols: usize, src: &[f32]) -> Result<Tensor<Self>> {
        let mut t = self.alloc_f32(rows, cols)?;
        self.upload(src, &mut t)?;
        Ok(t)
    }

    /// New ids with the given values.
    fn ids(&self, src: &[i32]) -> Result<Ids<Self>>;

    /// Overwrites `ids` by `src`, growing it when needed.
    fn upload_ids(&self, src: &[i32], ids: &mut Ids<Self>) -> Result<()>;

    /// Replaces `dst` by the values of `ids`.
    fn download_ids(&self, ids: &Ids<Self>, dst: &mut Vec<i32>) -> Result<()>;

    /// Copies `rows` rows of `src` from `src_row` to `dst` at `dst_row`; both have the same columns.
    fn copy_rows(
        &self,
        src: &Tensor<Self>,
        src_row: usize,
        dst: &mut Tensor<Self>,
        dst_row: usize,
        rows: usize,
    ) -> Result<()>;

    /// `out[i] = src[rows[i]]`: `src [N, C]`, `rows [M]`, `out [M, C]`.
    fn gather_rows(
        &self,
        src: &Tensor<Self>,
        rows: &Ids<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// Repeats every row `factor` times: `x [N, C]` → `out [factor · N, C]` (nearest upsampling; segments scale along).
    fn upsample_rows(&self, x: &Tensor<Self>, factor: usize, out: &mut Tensor<Self>) -> Result<()>;

    /// Sets tensors side by side: `[N, C1], [N, C2], …` → `out [N, C1 + C2 + …]`.
    fn concat_cols(&self, parts: &[&Tensor<Self>], out: &mut Tensor<Self>) -> Result<()>;

    /// Linear interpolation of each segment to a new length, `align_corners = false` (the speed change of the mel):
    /// `x [N, C]` → `out [N', C]`.
    fn interpolate_rows(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()>;

    /// Makes a lookup table of a weight `[V, C]`.
    fn pack_embedding(&self, w: &Weight<'_>) -> Result<Self::Embedding>;

    /// `out[i] = tables[which[i]][ids[i]]`: `which [N]`, `ids [N]`, `out [N, C]`. Ids must be in range; `-1 - s` stands for the id
    /// `drawn[s]`, which [`draw`](super::Sample::draw) left there.
    fn embed(
        &self,
        tables: &[&Self::Embedding],
        which: &Ids<Self>,
        ids: &Ids<Self>,
        drawn: Option<&Ids<Self>>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;
}
