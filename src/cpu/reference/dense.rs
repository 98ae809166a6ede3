//! Matrix product, activations, epilogues.

use crate::cpu::{Activation, Store};

/// `out = x Wᵀ + b`: `x [N, K]`, `w [M, K]`, `bias [M]`, `out [N, M]`.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize, out: &mut [f32]) {
    let m = w.len() / k.max(1);
    for (i, out) in out.chunks_exact_mut(m.max(1)).enumerate() {
        for (j, out) in out.iter_mut().enumerate() {
            let b = bias.map_or(0.0, |b| f64::from(b[j]));
            *out = (dot(&x[i * k..(i + 1) * k], &w[j * k..(j + 1) * k]) + b) as f32;
        }
    }
}

/// `Σ a b` in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

/// Stores `y [N, M]` in `out` as the epilogue says (`out [N, M/2]` for `SiluMul`, gates in the first half of each row).
pub fn store(y: &[f32], m: usize, ep: Store<'_>, out: &mut [f32]) {
    match ep {
        Store::Set => out.copy_from_slice(y),
        Store::Act(act) => {
            out.copy_from_slice(y);
            activate(act, out, m);
        }
        Store::Add(r) => {
            for ((o, y), r) in out.iter_mut().zip(y).zip(r) {
                *o = y + r;
            }
        }
        Store::Accumulate => out.iter_mut().zip(y).for_each(|(o, y)| *o += y),
        Store::AccumulateScaled(s) => out.iter_mut().zip(y).for_each(|(o, y)| *o += s * y),
        Store::SiluMul => {
            for (o, y) in out.chunks_exact_mut(m / 2).zip(y.chunks_exact(m)) {
                for j in 0..m / 2 {
                    o[j] = activation(Activation::Silu, y[j], 0) * y[m / 2 + j];
                }
            }
        }
    }
}

/// `x = act(x)`, `x [N, C]`.
pub fn activate(act: Activation<'_>, x: &mut [f32], c: usize) {
    for row in x.chunks_exact_mut(c.max(1)) {
        for (channel, x) in row.iter_mut().enumerate() {
            *x = activation(act, *x, channel);
        }
    }
}

/// One value of one channel.
pub fn activation(act: Activation<'_>, x: f32, channel: usize) -> f32 {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
    let v = f64::from(x);
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    let y = match act {
        Activation::Relu => v.max(0.0),
        Activation::Gelu => 0.5 * v * (1.0 + erf(v * FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (v + 0.044715 * v.powi(3));
            0.5 * v * (1.0 + inner.tanh())
        }
        Activation::Silu => v * sigmoid(v),
        Activation::Mish => v * softplus(v).tanh(),
        Activation::Elu => {
            if v > 0.0 {
                v
            } else {
                v.exp_m1()
            }
        }
        Activation::Tanh => v.tanh(),
        Activation::Sigmoid => sigmoid(v),
        Activation::Abs => v.abs(),
        Activation::LeakyRelu(slope) => {
            if v >= 0.0 {
                v
            } else {
                f64::from(slope) * v
            }
        }
        Activation::Snake(alpha) => {
            let a = f64::from(alpha[channel]);
            v + (a * v).sin().powi(2) / (a + 1e-9)
        }
    };
    y as f32
}

/// `ln(1 + eˣ)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The error function: `2/√π e^(−x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!`, a series of positive terms.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
        if term.abs() <= sum.abs() * 1e-17 {
            break;
        }
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_at_tabulated_points() {
        // Abramowitz & Stegun, table 7.1.
        for (x, y) in [
            (0.1, 0.112_462_916_0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (2.0, 0.995_322_265_0),
        ] {
            assert!((erf(x) - y).abs() < 1e-10, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn activations_at_known_points() {
        let close = |a: Activation<'_>, x: f32, y: f32| {
            let got = activation(a, x, 0);
            assert!((got - y).abs() < 1e-6, "{a:?}({x}) = {got}, expected {y}");
        };
        close(Activation::Gelu, 1.0, 0.841_344_7);
        close(Activation::GeluTanh, 1.0, 0.841_192);
        close(Activation::Silu, 1.0, 0.731_058_6);
        close(Activation::Mish, 1.0, 0.865_098_4);
        close(Activation::Elu, -1.0, -0.632_120_55);
        close(Activation::LeakyRelu(0.1), -2.0, -0.2);
        close(Activation::Snake(&[0.5]), 1.0, 1.0 + 0.229_848_8 / 0.5);
        close(Activation::Mish, -100.0, 0.0);
    }
}
