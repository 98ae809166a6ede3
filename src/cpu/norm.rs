//! Normalisation over channels.

use super::reference::norm as reference;
use super::{Activation, Cpu, check_shape, rows};
use crate::backend::{Act, Norm, Result};
use crate::tensor::{Segments, Tensor};

impl Norm for Cpu {
    fn rms_norm(
        &self,
        x: &Tensor<Self>,
        residual: Option<&mut Tensor<Self>>,
        w: &Tensor<Self>,
        eps: f32,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let d = x.cols();
        check_shape!("rms_norm", w.shape(), (1, d));
        check_shape!("rms_norm", out.shape(), x.shape());
        let h = match residual {
            Some(residual) => {
                check_shape!("rms_norm", residual.shape(), x.shape());
                self.pool.rows(residual.data_mut(), d, |first, rows| {
                    for (r, x) in rows.iter_mut().zip(&x.data()[first * d..]) {
                        *r += x;
                    }
                });
                residual.data()
            }
            None => x.data(),
        };
        self.pool.rows(out.data_mut(), d, |first, out| {
            let h = &h[first * d..][..out.len()];
            rows::rms_norm(self.isa, h, w.data(), eps, out);
        });
        Ok(())
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
        let d = x.cols();
        check_shape!("layer_norm", w.shape(), (1, d));
        check_shape!("layer_norm", b.shape(), (1, d));
        check_shape!("layer_norm", out.shape(), x.shape());
        let act = act.map(|a| Activation::from(a).check("layer_norm", d));
        self.pool.rows(out.data_mut(), d, |first, out| {
            let x = &x.data()[first * d..][..out.len()];
            rows::layer_norm(self.isa, x, w.data(), b.data(), eps, scale, out);
            if let Some(act) = act {
                rows::activate(self.isa, act, out, d);
            }
        });
        Ok(())
    }

    fn add_segment_rows(
        &self,
        x: &mut Tensor<Self>,
        segments: &Segments<Self>,
        v: &Tensor<Self>,
    ) -> Result<()> {
        let c = x.cols();
        check_shape!("add_segment_rows", x.rows(), segments.total());
        check_shape!("add_segment_rows", v.shape(), (segments.count(), c));
        for b in 0..segments.count() {
            let range = segments.range(b);
            for row in x.data_mut()[range.start * c..range.end * c].chunks_exact_mut(c.max(1)) {
                for (x, v) in row.iter_mut().zip(v.row(b)) {
                    *x += v;
                }
            }
        }
        Ok(())
    }

    fn l2_normalize(&self, x: &mut Tensor<Self>, eps: f32) -> Result<()> {
        let c = x.cols().max(1);
        for row in x.data_mut().chunks_exact_mut(c) {
            reference::l2_normalize(row, eps);
        }
        Ok(())
    }
}
