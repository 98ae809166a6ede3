//! Time embedding, guidance and the Euler step.

use super::Cuda;
use super::abi;
use super::elements::strided;
use super::launch::Kernel;
use crate::backend::{Flow, Result, check_shape};
use crate::tensor::{Segments, Tensor};

const TIME_EMBEDDING: Kernel = Kernel::new("flow", "time_embedding");
const CFM_PACK: Kernel = Kernel::new("flow", "cfm_pack");
const CFG_EULER: Kernel = Kernel::new("flow", "cfg_euler");

impl Flow for Cuda {
    fn time_embedding(&self, t: &Tensor<Self>, scale: f32, out: &mut Tensor<Self>) -> Result<()> {
        let dim = out.cols();
        check_shape!("time_embedding", t.shape(), (out.rows(), 1));
        check_shape!("time_embedding", dim % 2, 0);
        let half = dim / 2;
        let params = abi::TimeEmbeddingParams {
            t: t.mat(),
            out: out.mat(),
            scale,
            step: (10_000f64.ln() / (half as f64 - 1.0)) as f32,
        };
        // SAFETY: shapes checked above.
        unsafe {
            self.launcher
                .launch(TIME_EMBEDDING, strided(out.rows(), half), &params)
        }
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
        let params = abi::CfmPackParams {
            x: x.mat(),
            mu: mu.mat(),
            spk: spk.mat(),
            cond: cond.mat(),
            out: out.mat(),
            offsets: segments.device().address(),
            segments: segments.count() as i32,
            reserved: 0,
        };
        // SAFETY: shapes checked above.
        unsafe {
            self.launcher
                .launch(CFM_PACK, strided(2 * n, 4 * c), &params)
        }
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
        let params = abi::CfgEulerParams {
            x: x.mat(),
            v: v.mat(),
            dt: dt.mat(),
            offsets: segments.device().address(),
            segments: segments.count() as i32,
            cfg_rate,
        };
        // SAFETY: shapes checked above.
        unsafe { self.launcher.launch(CFG_EULER, strided(n, c), &params) }
    }
}
