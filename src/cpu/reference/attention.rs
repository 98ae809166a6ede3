//! Rotary embedding and attention of one query row and head.

use super::dense::dot;

/// Cosines and sines of a rotary position, `[Dh / 2]` each: angle `p / theta^(2i / Dh)`.
pub fn rotary(position: usize, theta: f32, head_dim: usize) -> (Vec<f32>, Vec<f32>) {
    (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            let frequency = (1.0 / f64::from(theta).powf(f64::from(exponent))) as f32;
            // The angle is rounded to f32 as PyTorch does; its sine and cosine are exact.
            let angle = f64::from(position as f32 * frequency);
            (angle.cos() as f32, angle.sin() as f32)
        })
        .unzip()
}

/// Rotates one head `[Dh]` in place, halves layout: `(a, b) → (a cos − b sin, b cos + a sin)`.
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(head.len() / 2);
    for i in 0..low.len() {
        let (a, b) = (low[i], high[i]);
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

/// `softmax(scores)` in place, f64.
pub fn softmax(scores: &mut [f64]) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// One query of one head over `keys` and `values` (`j → [Dh]`): `out = Σ softmax((q · k_j + bias_j) / √Dh) v_j`.
pub fn attend<'a>(
    q: &[f32],
    count: usize,
    key: impl Fn(usize) -> &'a [f32],
    value: impl Fn(usize) -> &'a [f32],
    bias: impl Fn(usize) -> f64,
    out: &mut [f32],
) {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let mut p: Vec<f64> = (0..count)
        .map(|j| (dot(q, key(j)) + bias(j)) * scale)
        .collect();
    softmax(&mut p);
    for (d, out) in out.iter_mut().enumerate() {
        *out = (0..count)
            .map(|j| p[j] * f64::from(value(j)[d]))
            .sum::<f64>() as f32;
    }
}
