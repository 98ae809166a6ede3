//! Elementary functions without branches, so that the compiler turns loops over them into vector code.
//!
//! Each is a reduction and a minimax polynomial in f32; the tests state the error against f64. `FMA` says whether a multiply-add is one
//! instruction (see [`per_isa`](super::isa)): without it `mul_add` would be a library call.
//! References: Cephes (Moshier) for `exp`, `ln` and `tanh`.

use std::f32::consts::{FRAC_1_PI, LN_2, LOG2_E};

use super::Activation;

/// Adding and subtracting it rounds to an integer, which is left in the low bits of the sum: 1.5 · 2²³.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first of few bits, so that its small multiples are exact.
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `a · b + c`
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn poly<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut y = coefficients[0];
    for &c in &coefficients[1..] {
        y = fma::<FMA>(y, x, c);
    }
    y
}

/// `2ⁿ` and `e^r − 1` with `eˣ = 2ⁿ e^r`, `|r| ≤ ln 2 / 2`; `x` is clamped to where both are normal numbers.
#[inline(always)]
fn exp_parts<const FMA: bool>(x: f32) -> (f32, f32) {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = fma::<FMA>(x, LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let p = poly::<FMA, 6>(
        r,
        [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            5.000_000_1e-1,
        ],
    );
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (power, fma::<FMA>(p, r * r, r))
}

/// `eˣ`, relative error below 1.5e-7; saturates at `e⁸⁸`, and is 0 below `e⁻⁸⁷`.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    let (power, p) = exp_parts::<FMA>(x);
    let y = fma::<FMA>(power, p, power);
    if x < -87.0 { 0.0 } else { y }
}

/// `eˣ` for what is not above 0, relative error below 7e-6: for results that are rounded to few bits. Not below `e⁻⁸⁷`.
#[inline(always)]
pub(crate) fn exp_of_negative<const FMA: bool>(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = fma::<FMA>(x, LOG2_E, ROUND);
    let r = fma::<FMA>(rounded - ROUND, -LN_2, x);
    let p = poly::<FMA, 3>(r, [4.127_697_7e-2, 1.675_368_8e-1, 5.000_514e-1]);
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    fma::<FMA>(power, fma::<FMA>(p, r * r, r), power)
}

/// `eˣ − 1` without cancellation.
#[inline(always)]
pub(crate) fn exp_m1<const FMA: bool>(x: f32) -> f32 {
    let (power, p) = exp_parts::<FMA>(x);
    fma::<FMA>(power, p, power - 1.0)
}

/// `1 / (1 + e⁻ˣ)`; never below the smallest normal number, since a division with such a result takes ten times as long.
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `tanh x`: odd polynomial near zero, `1 − 2 / (e²ˣ + 1)` elsewhere.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * a) + 1.0);
    let s = x * x;
    let p = poly::<FMA, 5>(
        s,
        [
            -5.704_988_7e-3,
            2.063_908_9e-2,
            -5.373_971_6e-2,
            1.333_144_2e-1,
            -3.333_328e-1,
        ],
    );
    let near = fma::<FMA>(p * s, x, x);
    if a < 0.625 { near } else { far.copysign(x) }
}

/// `x Φ(x)`, with Φ the normal distribution: what of it differs from `max(x, 0)` is `t Φ(−t)` with `t = |x|`, which has no cancellation. `Φ(−t)` is the eighth
/// power of a polynomial (off by 4e-9 of `max(t, 0.1)` before rounding).
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    let t = x.abs();
    // Beyond it `t Φ(−t)` is below 1e-11, and the polynomial is none of its root.
    let t = if t > 7.0 { 7.0 } else { t };
    let root = poly::<FMA, 9>(
        t,
        [
            -2.938_698e-7,
            7.448_429_7e-6,
            -6.006_099_14e-5,
            3.363_801_7e-5,
            1.505_617_6e-3,
            -6.733_39e-4,
            -3.192_723_6e-2,
            -9.145_766_5e-2,
            9.170_040_4e-1,
        ],
    );
    let square = root * root;
    let fourth = square * square;
    let tail = t * (fourth * fourth);
    if x < 0.0 { -tail } else { x - tail }
}

/// `x − nπ` with `|x − nπ| ≤ π/2`, for `|x|` up to some ten thousand, and n in the low bits.
#[inline(always)]
fn half_turns<const FMA: bool>(x: f32) -> (f32, u32) {
    // π in parts of 11, 11 and 24 bits, so that the first two products are exact for n < 2¹³.
    const PI_HIGH: f32 = 3.140_625;
    const PI_MIDDLE: f32 = 9.670_257_6e-4;
    const PI_LOW: f32 = 6.277_114_4e-7;
    let rounded = fma::<FMA>(x, FRAC_1_PI, ROUND);
    let n = rounded - ROUND;
    let r = fma::<FMA>(n, -PI_HIGH, x);
    let r = fma::<FMA>(n, -PI_MIDDLE, r);
    (fma::<FMA>(n, -PI_LOW, r), rounded.to_bits())
}

/// `sin² x` for `|x|` up to some ten thousand.
#[inline(always)]
pub(crate) fn sin_squared<const FMA: bool>(x: f32) -> f32 {
    let s = sin_reduced::<FMA>(half_turns::<FMA>(x).0);
    s * s
}

/// `sin x` and `cos x` for `|x|` up to some ten thousand.
#[inline(always)]
pub(crate) fn sin_cos<const FMA: bool>(x: f32) -> (f32, f32) {
    let (r, n) = half_turns::<FMA>(x);
    // sin(nπ + r) = (−1)ⁿ sin r, and so the cosine.
    let signed = |y: f32| f32::from_bits(y.to_bits() ^ (n << 31));
    (signed(sin_reduced::<FMA>(r)), signed(cos_reduced::<FMA>(r)))
}

/// `ln x` of a positive normal number.
#[inline(always)]
pub(crate) fn ln<const FMA: bool>(x: f32) -> f32 {
    // x = 2ᵉ (1 + z) with √½ ≤ 1 + z < √2
    let bits = x.to_bits();
    let e = bits.wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits()) as i32 >> 23;
    let z = f32::from_bits(bits.wrapping_sub((e as u32) << 23)) - 1.0;
    let e = e as f32;
    let p = poly::<FMA, 9>(
        z,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333_1e-1,
        ],
    );
    let s = z * z;
    let y = fma::<FMA>(e, LN2_LOW, p * s * z);
    let y = z + fma::<FMA>(-0.5, s, y);
    fma::<FMA>(e, LN2_HIGH, y)
}

/// `sin x` for `|x| ≤ π/2`.
#[inline(always)]
pub(crate) fn sin_reduced<const FMA: bool>(x: f32) -> f32 {
    let s = x * x;
    let p = poly::<FMA, 5>(
        s,
        [
            -2.505_210_8e-8,
            2.755_731_9e-6,
            -1.984_127e-4,
            8.333_333_3e-3,
            -1.666_666_7e-1,
        ],
    );
    fma::<FMA>(p * s, x, x)
}

/// `cos x` for `|x| ≤ π/2`.
#[inline(always)]
pub(crate) fn cos_reduced<const FMA: bool>(x: f32) -> f32 {
    let s = x * x;
    let p = poly::<FMA, 6>(
        s,
        [
            2.087_675_7e-9,
            -2.755_731_9e-7,
            2.480_158_7e-5,
            -1.388_888_9e-3,
            4.166_666_7e-2,
            -0.5,
        ],
    );
    fma::<FMA>(p, s, 1.0)
}

/// `sin x` for phases up to some 10⁸: the reduction is done in f64.
#[inline(always)]
pub(crate) fn sin_of_phase<const FMA: bool>(x: f32) -> f32 {
    const ROUND_F64: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let rounded = x * std::f64::consts::FRAC_1_PI + ROUND_F64;
    let n = rounded - ROUND_F64;
    let s = sin_reduced::<FMA>((x - n * std::f64::consts::PI) as f32);
    // sin(nπ + r) = (−1)ⁿ sin r
    f32::from_bits(s.to_bits() ^ ((rounded.to_bits() as u32) << 31))
}

/// The activation of one value; `alpha` is Snake's.
#[inline(always)]
pub(crate) fn activation<const FMA: bool>(act: Activation<'_>, x: f32, alpha: f32) -> f32 {
    use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
    match act {
        Activation::Relu => {
            if x > 0.0 {
                x
            } else {
                0.0
            }
        }
        Activation::Abs => x.abs(),
        Activation::Gelu => gelu::<FMA>(x),
        Activation::GeluTanh => {
            let inner = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * fma::<FMA>(0.044_715 * x * x, x, x);
            // 0.5 (1 + tanh y) = σ(2 y)
            x * sigmoid::<FMA>(2.0 * inner)
        }
        Activation::Silu => x * sigmoid::<FMA>(x),
        Activation::Mish => {
            // tanh(ln(1 + e)) = e (e + 2) / (e (e + 2) + 2)
            let e = exp::<FMA>(if x > 20.0 { 20.0 } else { x });
            let n = e * (e + 2.0);
            x * (n / (n + 2.0))
        }
        Activation::Elu => {
            let negative = exp_m1::<FMA>(x);
            if x > 0.0 { x } else { negative }
        }
        Activation::Tanh => tanh::<FMA>(x),
        Activation::Sigmoid => sigmoid::<FMA>(x),
        Activation::LeakyRelu(slope) => {
            if x >= 0.0 {
                x
            } else {
                slope * x
            }
        }
        Activation::Snake(_) => x + sin_squared::<FMA>(alpha * x) / (alpha + 1e-9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::dense as reference;

    /// Largest error of `f` over `[low, high]`, relative to `|expected| + floor`.
    fn error(
        f: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
        low: f32,
        high: f32,
        floor: f64,
    ) -> f64 {
        let n = 100_003;
        (0..=n)
            .map(|i| {
                let x = low + (high - low) * (i as f32 / n as f32);
                let y = exact(f64::from(x));
                (f64::from(f(x)) - y).abs() / (y.abs() + floor)
            })
            .fold(0.0, f64::max)
    }

    fn sin_cos_error<const FMA: bool>() -> f64 {
        let sine = error(|x| sin_cos::<FMA>(x).0, f64::sin, -7.0, 7.0, 1.0);
        sine.max(error(|x| sin_cos::<FMA>(x).1, f64::cos, -7.0, 7.0, 1.0))
    }

    fn both(name: &str, bound: f64, with: f64, without: f64) {
        assert!(with < bound, "{name} with FMA: {with:e}, bound {bound:e}");
        assert!(
            without < 2.0 * bound,
            "{name} without FMA: {without:e}, bound {bound:e}"
        );
    }

    #[test]
    fn elementary_functions_are_within_their_errors() {
        macro_rules! check {
            ($f:ident, $exact:expr, $low:expr, $high:expr, $floor:expr, $bound:expr) => {
                both(
                    stringify!($f),
                    $bound,
                    error($f::<true>, $exact, $low, $high, $floor),
                    error($f::<false>, $exact, $low, $high, $floor),
                )
            };
        }
        check!(exp, f64::exp, -86.9, 87.9, 0.0, 1.5e-7);
        check!(exp_of_negative, f64::exp, -86.9, 0.0, 0.0, 7e-6);
        check!(exp_m1, f64::exp_m1, -80.0, 5.0, 0.0, 3e-7);
        check!(
            sigmoid,
            |x: f64| 1.0 / (1.0 + (-x).exp()),
            -80.0,
            80.0,
            0.0,
            3e-7
        );
        check!(tanh, f64::tanh, -12.0, 12.0, 0.0, 2.5e-7);
        check!(sin_reduced, f64::sin, -1.57, 1.57, 0.0, 2e-7);
        check!(cos_reduced, f64::cos, -1.57, 1.57, 1.0, 2e-7);
        check!(
            sin_squared,
            |x: f64| x.sin().powi(2),
            -300.0,
            300.0,
            1.0,
            5e-7
        );
        check!(sin_of_phase, f64::sin, 0.0, 3e6, 1.0, 2e-7);
        both(
            "sin_cos",
            3e-7,
            sin_cos_error::<true>(),
            sin_cos_error::<false>(),
        );
        check!(ln, f64::ln, 1e-9, 1e-6, 0.0, 2e-7);
        check!(ln, f64::ln, 1e-6, 1.0, 0.0, 2e-7);
        check!(ln, f64::ln, 0.999, 1.001, 0.0, 2e-7);
        check!(ln, f64::ln, 1.0, 1e9, 0.0, 2e-7);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp::<true>(f32::INFINITY).is_finite());
    }

    #[test]
    fn gelu_of_large_and_of_small_values() {
        for x in [12.0, 1e30, f32::INFINITY] {
            assert_eq!(gelu::<true>(x), x);
            assert!(gelu::<true>(-x).abs() < 1e-10);
        }
        assert!(gelu::<true>(f32::NAN).is_nan());
        let exact = |x: f64| f64::from(reference::activation(Activation::Gelu, x as f32, 0));
        both(
            "gelu near 0",
            2e-6,
            error(gelu::<true>, exact, -0.5, 0.5, 0.0),
            error(gelu::<false>, exact, -0.5, 0.5, 0.0),
        );
    }

    #[test]
    fn activations_are_within_their_errors() {
        let alpha = [0.7f32];
        for act in [
            Activation::Relu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Mish,
            Activation::Elu,
            Activation::Tanh,
            Activation::Sigmoid,
            Activation::LeakyRelu(0.1),
            Activation::Snake(&alpha),
        ] {
            let exact = |x: f64| f64::from(reference::activation(act, x as f32, 0));
            let name = format!("{act:?}");
            both(
                &name,
                4e-7,
                error(
                    |x| activation::<true>(act, x, alpha[0]),
                    exact,
                    -20.0,
                    20.0,
                    1.0,
                ),
                error(
                    |x| activation::<false>(act, x, alpha[0]),
                    exact,
                    -20.0,
                    20.0,
                    1.0,
                ),
            );
        }
    }
}
