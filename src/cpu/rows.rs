//! Loops over the values of rows, compiled for each instruction set: activations and norms.

use super::epilogue::for_each_activation;
use super::isa::per_isa;
use super::math::{activation, fma};
use super::{Activation, Isa, Store};

/// Partial sums kept side by side: their number fixes the order of additions.
const LANES: usize = 16;

per_isa! {
    /// `x = act(x)`: `x [N, C]`.
    pub(crate) fn activate<FMA>(act: Activation<'_>, x: &mut [f32], c: usize) {
        macro_rules! all {
            ($act:expr) => {
                for x in x.iter_mut() {
                    *x = activation::<FMA>($act, *x, 1.0);
                }
            };
        }
        for_each_activation!(act, all, |alpha: &[f32]| {
            for row in x.chunks_exact_mut(c) {
                for (x, &a) in row.iter_mut().zip(alpha) {
                    *x = activation::<FMA>(Activation::Snake(&[]), *x, a);
                }
            }
        })
    }
}

/// `Σ f(x)` in [`LANES`] partial sums.
#[inline(always)]
fn sum<const FMA: bool>(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for j in 0..LANES {
            lanes[j] = f(lanes[j], block[j]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = f(*lane, x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    lanes[0]
}

per_isa! {
    /// `out = x / sqrt(mean(x²) + eps) · w` for every row.
    pub(crate) fn rms_norm<FMA>(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        let d = w.len();
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let square = sum::<FMA>(x, |s, v| fma::<FMA>(v, v, s));
            let r = 1.0 / (square / d as f32 + eps).sqrt();
            for ((o, &x), &w) in out.iter_mut().zip(x).zip(w) {
                *o = x * r * w;
            }
        }
    }
}

per_isa! {
    /// `out = scale · ((x − mean) / sqrt(var + eps) · w + b)` for every row.
    pub(crate) fn layer_norm<FMA>(x: &[f32], w: &[f32], b: &[f32], eps: f32, scale: f32, out: &mut [f32]) {
        let d = w.len();
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let mean = sum::<FMA>(x, |s, v| s + v) / d as f32;
            let square = sum::<FMA>(x, |s, v| fma::<FMA>(v - mean, v - mean, s));
            let r = 1.0 / (square / d as f32 + eps).sqrt();
            for (((o, &x), &w), &b) in out.iter_mut().zip(x).zip(w).zip(b) {
                *o = scale * fma::<FMA>((x - mean) * r, w, b);
            }
        }
    }
}

per_isa! {
    /// `out[i][c] = bias[c] + Σ_t w[t][c] · x[i · row_step + t · tap_step + c]`: `w [k, C]`, steps in values.
    pub(crate) fn depthwise<FMA>(x: &[f32], w: &[f32], bias: &[f32], steps: (usize, usize), out: &mut [f32]) {
        let c = bias.len();
        for (i, out) in out.chunks_exact_mut(c).enumerate() {
            out.copy_from_slice(bias);
            for (t, w) in w.chunks_exact(c).enumerate() {
                let x = &x[i * steps.0 + t * steps.1..][..c];
                for ((o, &x), &w) in out.iter_mut().zip(x).zip(w) {
                    *o = fma::<FMA>(x, w, *o);
                }
            }
        }
    }
}

/// Stores `y [N, C]` in `out [N, C]` as the epilogue says; `first` is the place of `out` in the whole output, for the addend.
pub(crate) fn store(isa: Isa, y: &[f32], c: usize, ep: Store<'_>, first: usize, out: &mut [f32]) {
    match ep {
        Store::Set | Store::SiluMul => out.copy_from_slice(y),
        Store::Act(act) => {
            out.copy_from_slice(y);
            activate(isa, act, out, c);
        }
        Store::Add(r) => {
            for ((o, y), r) in out.iter_mut().zip(y).zip(&r[first..]) {
                *o = y + r;
            }
        }
        Store::Accumulate => out.iter_mut().zip(y).for_each(|(o, y)| *o += y),
        Store::AccumulateScaled(s) => out.iter_mut().zip(y).for_each(|(o, y)| *o += s * y),
    }
}
