//! Error measures.
#![allow(dead_code)]

/// Normalised mean squared error: `Σ(a − b)² / Σb²` (scale-free).
pub(crate) fn nmse(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len(), "lengths differ");
    let (mut error, mut power) = (0.0, 0.0);
    for (&a, &e) in actual.iter().zip(expected) {
        error += (f64::from(a) - f64::from(e)).powi(2);
        power += f64::from(e).powi(2);
    }
    if error.is_nan() {
        f64::INFINITY
    } else {
        error / power.max(f64::MIN_POSITIVE)
    }
}

/// Signal-to-noise ratio of `actual` in dB.
pub(crate) fn snr_db(actual: &[f32], expected: &[f32]) -> f64 {
    -10.0 * nmse(actual, expected).log10()
}

/// Largest absolute difference; infinite when there is a NaN.
pub(crate) fn max_abs(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len(), "lengths differ");
    actual.iter().zip(expected).fold(0.0, |m, (a, e)| {
        let d = (a - e).abs();
        if d.is_nan() { f32::INFINITY } else { m.max(d) }
    })
}

/// Cosine of the angle between two vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a
        .iter()
        .zip(b)
        .map(|(&x, &y)| f64::from(x) * f64::from(y))
        .sum();
    let norm = |v: &[f32]| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    dot / (norm(a) * norm(b))
}
