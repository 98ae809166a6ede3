//! What conditional flow matching adds to a transformer: time embedding, classifier-free guidance, the Euler step.

use super::{Memory, Result};
use crate::tensor::{Segments, Tensor};

/// Flow ops. In tensors of `2N` rows the conditional rows of all sequences come first, then the unconditional ones.
pub trait Flow: Memory {
    /// Sinusoidal embedding of `t [B, 1]`: `out [B, dim]` = `sin(s t f_i)` then `cos(s t f_i)` with scale `s` and
    /// `f_i = exp(−i ln(10000) / (dim/2 − 1))` (Matcha's `SinusoidalPosEmb`).
    fn time_embedding(&self, t: &Tensor<Self>, scale: f32, out: &mut Tensor<Self>) -> Result<()>;

    /// Input of the estimator: `out [2N, 4C]`, conditional rows `[x, mu, spk, cond]`, unconditional rows `[x, 0, 0, 0]`.
    /// `x, mu, cond [N, C]`, `spk [B, C]`.
    fn cfm_pack(
        &self,
        x: &Tensor<Self>,
        mu: &Tensor<Self>,
        spk: &Tensor<Self>,
        cond: &Tensor<Self>,
        segments: &Segments<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// `x += dt[b] · ((1 + cfg_rate) · v_cond − cfg_rate · v_uncond)`: `x [N, C]`, `v [2N, C]`, `dt [B, 1]`.
    fn cfg_euler(
        &self,
        x: &mut Tensor<Self>,
        v: &Tensor<Self>,
        cfg_rate: f32,
        dt: &Tensor<Self>,
        segments: &Segments<Self>,
    ) -> Result<()>;
}
