//! Normalisation of one row.

/// `out = x / sqrt(mean(x²) + eps) · w`
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let mean: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
    let r = 1.0 / (mean + f64::from(eps)).sqrt();
    for ((o, &x), &w) in out.iter_mut().zip(x).zip(w) {
        *o = (f64::from(x) * r * f64::from(w)) as f32;
    }
}

/// `out = scale · ((x − mean) / sqrt(var + eps) · w + b)` with the biased variance.
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, scale: f32, out: &mut [f32]) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let var = x
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>()
        / n;
    let r = 1.0 / (var + f64::from(eps)).sqrt();
    for (i, o) in out.iter_mut().enumerate() {
        let y = (f64::from(x[i]) - mean) * r * f64::from(w[i]) + f64::from(b[i]);
        *o = (f64::from(scale) * y) as f32;
    }
}

/// `x /= max(‖x‖₂, eps)`
pub fn l2_normalize(x: &mut [f32], eps: f32) {
    let norm = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let r = 1.0 / norm.max(f64::from(eps));
    x.iter_mut().for_each(|v| *v = (f64::from(*v) * r) as f32);
}
