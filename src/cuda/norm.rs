//! Normalisation over channels.

use super::Cuda;
use super::abi;
use super::buffer::NO_MAT;
use super::elements::strided;
use super::epilogue::optional_act;
use super::launch::{Kernel, Shape};
use crate::backend::{Act, BackendError, Norm, Result, check_shape};
use crate::tensor::{Segments, Tensor};

const RMS_NORM: Kernel = Kernel::new("norm", "rms_norm");
const LAYER_NORM: Kernel = Kernel::new("norm", "layer_norm");
const L2_NORMALIZE: Kernel = Kernel::new("norm", "l2_normalize");
const ADD_SEGMENT_ROWS: Kernel = Kernel::new("norm", "add_segment_rows");

/// Columns of one thread.
const CHUNK: usize = 8;
const WARP: usize = 32;
/// Rows that a block of narrow rows has.
const NARROW_ROWS: usize = 4;
const MAX_THREADS: usize = 1024;

impl Cuda {
    /// Blocks for a kernel that normalises rows: a warp per row up to 256 columns, a block beyond. It follows from `cols` how a sum is ordered.
    fn rows_shape(&self, op: &'static str, rows: usize, cols: usize) -> Result<Shape> {
        let warps = cols.div_ceil(WARP * CHUNK);
        if warps <= 1 {
            let threads = NARROW_ROWS * WARP;
            return Ok(Shape::blocks(rows.div_ceil(NARROW_ROWS), threads as u32));
        }
        if warps * WARP > MAX_THREADS {
            return Err(BackendError::Driver {
                device: self.device_name().to_owned(),
                op,
                message: format!(
                    "rows of {cols} columns: the kernel takes {} at most",
                    MAX_THREADS * CHUNK
                ),
            });
        }
        Ok(Shape::blocks(rows, (warps * WARP) as u32))
    }
}

impl Norm for Cuda {
    fn rms_norm(
        &self,
        x: &Tensor<Self>,
        residual: Option<&mut Tensor<Self>>,
        w: &Tensor<Self>,
        eps: f32,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("rms_norm", w.shape(), (1, x.cols()));
        check_shape!("rms_norm", out.shape(), x.shape());
        if let Some(residual) = &residual {
            check_shape!("rms_norm", residual.shape(), x.shape());
        }
        let params = abi::RmsNormParams {
            x: x.mat(),
            residual: residual.map_or(NO_MAT, |r| r.mat()),
            w: w.mat(),
            out: out.mat(),
            eps,
            reserved: 0,
        };
        let shape = self.rows_shape("rms_norm", x.rows(), x.cols())?;
        // SAFETY: shapes checked above.
        unsafe { self.launcher.launch(RMS_NORM, shape, &params) }
    }

    fn layer_norm(
        &self,
        x: &Tensor<Self>,
        w: &Tensor<Self>,
        b: &Tensor<Self>,
        eps: f32,
        scale: f32,
        act: Option<Act<'_, Self>>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("layer_norm", w.shape(), (1, x.cols()));
        check_shape!("layer_norm", b.shape(), (1, x.cols()));
        check_shape!("layer_norm", out.shape(), x.shape());
        let params = abi::LayerNormParams {
            x: x.mat(),
            w: w.mat(),
            b: b.mat(),
            out: out.mat(),
            act: optional_act("layer_norm", act, x.cols()),
            eps,
            scale,
        };
        let shape = self.rows_shape("layer_norm", x.rows(), x.cols())?;
        // SAFETY: shapes checked above.
        unsafe { self.launcher.launch(LAYER_NORM, shape, &params) }
    }

    fn add_segment_rows(
        &self,
        x: &mut Tensor<Self>,
        segments: &Segments<Self>,
        v: &Tensor<Self>,
    ) -> Result<()> {
        check_shape!("add_segment_rows", x.rows(), segments.total());
        check_shape!("add_segment_rows", v.shape(), (segments.count(), x.cols()));
        let params = abi::AddSegmentRowsParams {
            x: x.mat(),
            v: v.mat(),
            offsets: segments.device().address(),
            segments: segments.count() as i32,
            reserved: 0,
        };
        // SAFETY: shapes checked above.
        unsafe {
            self.launcher
                .launch(ADD_SEGMENT_ROWS, strided(x.rows(), x.cols()), &params)
        }
    }

    fn l2_normalize(&self, x: &mut Tensor<Self>, eps: f32) -> Result<()> {
        let params = abi::L2NormalizeParams {
            x: x.mat(),
            eps,
            reserved: 0,
        };
        let shape = self.rows_shape("l2_normalize", x.rows(), x.cols())?;
        // SAFETY: the kernel stays within the tensor.
        unsafe { self.launcher.launch(L2_NORMALIZE, shape, &params) }
    }
}
