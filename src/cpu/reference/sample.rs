//! Repetition-aware sampling of one row, after `ras_sampling` of the reference (`utils/common.py`).

use crate::backend::philox::sampling_uniforms;
use crate::backend::{SampleRow, Sampled, Uniforms};

/// `out = x − max − ln Σ exp(x − max)`
pub fn log_softmax(x: &[f32], out: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&v| f64::from(v - max).exp()).sum();
    let shift = f64::from(max) + sum.ln();
    for (o, &x) in out.iter_mut().zip(x) {
        *o = (f64::from(x) - shift) as f32;
    }
}

/// `softmax` with one id left out, f32 values as PyTorch holds them.
fn softmax_without(logits: &[f32], out: [Option<i32>; 2]) -> Vec<f32> {
    let mut p: Vec<f32> = logits.to_vec();
    for id in out.into_iter().flatten() {
        p[id as usize] = f32::NEG_INFINITY;
    }
    let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    p.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: f64 = p.iter().map(|&v| f64::from(v)).sum();
    p.iter_mut().for_each(|v| *v = (f64::from(*v) / sum) as f32);
    p
}

/// Index of the first entry whose share of the cumulative sum exceeds `u` (f64).
fn inverse_cdf(p: impl Iterator<Item = f32> + Clone, u: f64) -> usize {
    let total: f64 = p.clone().map(f64::from).sum();
    let mut cumulative = 0.0;
    let mut last = 0;
    for (i, p) in p.enumerate() {
        if p > 0.0 {
            last = i;
        }
        cumulative += f64::from(p);
        if cumulative / total > u {
            return i;
        }
    }
    last
}

/// Draws one token from `logits [V]`.
///
/// The nucleus holds the most probable ids (ties: the lower id first) until their probability reaches `top_p`, at most `top_k`. A drawn token that
/// fills its share of the window is forbidden and the draw repeated over all ids.
pub fn sample(logits: &[f32], row: &SampleRow<'_>) -> Sampled {
    let [first, second] = match row.uniforms {
        Uniforms::Philox { seed, step } => sampling_uniforms(seed, step),
        Uniforms::Given(u) => u,
    };
    let params = &row.params;
    let p = softmax_without(logits, [row.forbidden, None]);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    let mut kept = 0;
    let mut cumulative = 0.0f32;
    while kept < order.len() && kept < params.top_k && cumulative < params.top_p {
        cumulative += p[order[kept]];
        kept += 1;
    }
    let candidates = &order[..kept];
    let token = candidates[inverse_cdf(candidates.iter().map(|&i| p[i]), first)] as i32;

    let window = &row.history[row.history.len().saturating_sub(params.window)..];
    let repeats = window.iter().filter(|&&t| t == token).count();
    if (repeats as f32) < params.window as f32 * params.repetition_rate {
        return Sampled {
            token,
            draws: 1,
            candidates: kept as u32,
        };
    }
    let p = softmax_without(logits, [row.forbidden, Some(token)]);
    Sampled {
        token: inverse_cdf(p.iter().copied(), second) as i32,
        draws: 2,
        candidates: kept as u32,
    }
}
