//! Convolutions over the rows of each sequence.

use super::exact::ExactConv;
use super::reference::{conv as reference, dense};
use super::{Activation, Cpu, Store, check_shape};
use crate::backend::{Act, Conv, ConvGeom, Epilogue, Result, Weight};
use crate::tensor::{Segments, Tensor};

/// A packed convolution.
pub struct CpuConv1d {
    /// `[Co, Ci / groups, k]`
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    ci: usize,
    co: usize,
    kernel: usize,
    groups: usize,
    /// In place of `w`, for sums in f64.
    exact: Option<ExactConv>,
}

/// A packed transposed convolution.
pub struct CpuConvT1d {
    /// `[Ci, Co, k]`
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    ci: usize,
    co: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

/// The input with `pre` applied, where there is one.
fn prepare(op: &str, x: &Tensor<Cpu>, pre: Option<Act<'_, Cpu>>) -> Vec<f32> {
    let mut x_pre = x.data().to_vec();
    if let Some(pre) = pre {
        let act = Activation::from(pre).check(op, x.cols());
        dense::activate(act, &mut x_pre, x.cols());
    }
    x_pre
}

impl Conv for Cpu {
    type Conv1d = CpuConv1d;
    type ConvT1d = CpuConvT1d;

    fn pack_conv1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        groups: usize,
    ) -> Result<CpuConv1d> {
        check_shape!("pack_conv1d", w.shape.len(), 3);
        Ok(CpuConv1d {
            w: w.to_f32().into_owned(),
            bias: bias.map(|b| b.to_f32().into_owned()),
            ci: w.shape[1] * groups,
            co: w.shape[0],
            kernel: w.shape[2],
            groups,
            exact: None,
        })
    }

    fn pack_conv1d_exact(&self, w: &Weight<'_>, bias: Option<&Weight<'_>>) -> Result<CpuConv1d> {
        check_shape!("pack_conv1d_exact", w.shape.len(), 3);
        let bias = bias.map(|b| b.to_f32().into_owned());
        let (co, ci, kernel) = (w.shape[0], w.shape[1], w.shape[2]);
        Ok(CpuConv1d {
            w: Vec::new(),
            exact: Some(ExactConv::new(&w.to_f32(), co, ci, bias.as_deref())),
            bias,
            ci,
            co,
            kernel,
            groups: 1,
        })
    }

    fn pack_conv_transpose1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        stride: usize,
        padding: usize,
    ) -> Result<CpuConvT1d> {
        check_shape!("pack_conv_transpose1d", w.shape.len(), 3);
        Ok(CpuConvT1d {
            w: w.to_f32().into_owned(),
            bias: bias.map(|b| b.to_f32().into_owned()),
            ci: w.shape[0],
            co: w.shape[1],
            kernel: w.shape[2],
            stride,
            padding,
        })
    }

    fn conv1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &CpuConv1d,
        geom: ConvGeom,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        check_shape!("conv1d", x.shape(), (segments.total(), w.ci));
        check_shape!("conv1d", out.shape(), (out_segments.total(), w.co));
        let store = Store::new("conv1d", ep, out.shape());
        let x = prepare("conv1d", x, pre);
        let mut y = vec![0.0; out.rows() * w.co];
        for b in 0..segments.count() {
            let (from, to) = (segments.range(b), out_segments.range(b));
            check_shape!("conv1d", to.len(), geom.output_rows(from.len(), w.kernel));
            let x = &x[from.start * w.ci..from.end * w.ci];
            if let Some(exact) = &w.exact {
                exact.run(x, &geom, &mut y[to.start * w.co..to.end * w.co]);
                continue;
            }
            reference::conv1d(
                x,
                w.ci,
                &w.w,
                w.co,
                w.groups,
                w.bias.as_deref(),
                &geom,
                &mut y[to.start * w.co..to.end * w.co],
            );
        }
        dense::store(&y, w.co, store, out.data_mut());
        Ok(())
    }

    fn conv_transpose1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &CpuConvT1d,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        check_shape!("conv_transpose1d", x.shape(), (segments.total(), w.ci));
        check_shape!(
            "conv_transpose1d",
            out.shape(),
            (out_segments.total(), w.co)
        );
        let store = Store::new("conv_transpose1d", ep, out.shape());
        let x = prepare("conv_transpose1d", x, pre);
        let mut y = vec![0.0; out.rows() * w.co];
        for b in 0..segments.count() {
            let (from, to) = (segments.range(b), out_segments.range(b));
            let expected = match from.len() {
                0 => 0,
                rows => ((rows - 1) * w.stride + w.kernel).saturating_sub(2 * w.padding),
            };
            check_shape!("conv_transpose1d", to.len(), expected);
            reference::conv_transpose1d(
                &x[from.start * w.ci..from.end * w.ci],
                w.ci,
                &w.w,
                w.co,
                w.bias.as_deref(),
                w.stride,
                w.padding,
                &mut y[to.start * w.co..to.end * w.co],
            );
        }
        dense::store(&y, w.co, store, out.data_mut());
        Ok(())
    }
}
