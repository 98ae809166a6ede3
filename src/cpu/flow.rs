//! Time embedding, guidance and the Euler step.

use super::{Cpu, check_shape};
use crate::backend::{Flow, Result};
use crate::tensor::{Segments, Tensor};

impl Flow for Cpu {
    fn time_embedding(&self, t: &Tensor<Self>, scale: f32, out: &mut Tensor<Self>) -> Result<()> {
        let dim = out.cols();
        check_shape!("time_embedding", t.shape(), (out.rows(), 1));
        check_shape!("time_embedding", dim % 2, 0);
        let half = dim / 2;
        let step = (10_000f64.ln() / (half as f64 - 1.0)) as f32;
        for (t, out) in t.data().iter().zip(out.data_mut().chunks_exact_mut(dim)) {
            for i in 0..half {
                let frequency = f64::from(i as f32 * -step).exp() as f32;
                let angle = f64::from(scale * t * frequency);
                out[i] = angle.sin() as f32;
                out[half + i] = angle.cos() as f32;
            }
        }
        Ok(())
    }

    fn cfm_pack(
        &self,
        x: &Tensor<Self>,
        mu: &Tensor<Self>,
        spk: &Tensor<Self>,
        cond: &Tensor<Self>,
        segments: &Segments<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let (n, c) = x.shape();
        check_shape!("cfm_pack", n, segments.total());
        check_shape!("cfm_pack", mu.shape(), (n, c));
        check_shape!("cfm_pack", cond.shape(), (n, c));
        check_shape!("cfm_pack", spk.shape(), (segments.count(), c));
        check_shape!("cfm_pack", out.shape(), (2 * n, 4 * c));
        let (conditional, unconditional) = out.data_mut().split_at_mut(n * 4 * c);
        for b in 0..segments.count() {
            for i in segments.range(b) {
                let row = &mut conditional[i * 4 * c..(i + 1) * 4 * c];
                row[..c].copy_from_slice(x.row(i));
                row[c..2 * c].copy_from_slice(mu.row(i));
                row[2 * c..3 * c].copy_from_slice(spk.row(b));
                row[3 * c..].copy_from_slice(cond.row(i));
                let row = &mut unconditional[i * 4 * c..(i + 1) * 4 * c];
                row[..c].copy_from_slice(x.row(i));
                row[c..].fill(0.0);
            }
        }
        Ok(())
    }

    fn cfg_euler(
        &self,
        x: &mut Tensor<Self>,
        v: &Tensor<Self>,
        cfg_rate: f32,
        dt: &Tensor<Self>,
        segments: &Segments<Self>,
    ) -> Result<()> {
        let (n, c) = x.shape();
        check_shape!("cfg_euler", n, segments.total());
        check_shape!("cfg_euler", v.shape(), (2 * n, c));
        check_shape!("cfg_euler", dt.shape(), (segments.count(), 1));
        let (conditional, unconditional) = v.data().split_at(n * c);
        for b in 0..segments.count() {
            let dt = dt.data()[b];
            let rows = segments.range(b);
            for i in rows.start * c..rows.end * c {
                let v = (1.0 + cfg_rate) * conditional[i] - cfg_rate * unconditional[i];
                x.data_mut()[i] += dt * v;
            }
        }
        Ok(())
    }
}
