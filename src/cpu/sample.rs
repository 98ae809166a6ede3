//! Log-probabilities and sampling. See [`reference::sample`](super::reference::sample) for what is drawn.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use super::isa::per_isa;
use super::math::exp;
use super::{Cpu, Isa, check_shape};
use crate::backend::philox::sampling_uniforms;
use crate::backend::{Result, Sample, SampleRow, Sampled, Uniforms};
use crate::tensor::{Ids, Tensor};

/// Partial sums kept side by side.
const LANES: usize = 16;

thread_local! {
    /// A thread's probabilities.
    static PROBABILITIES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Sample for Cpu {
    type Drawn = Vec<Sampled>;

    fn log_softmax(&self, logits: &Tensor<Self>, out: &mut Tensor<Self>) -> Result<()> {
        check_shape!("log_softmax", out.shape(), logits.shape());
        let v = logits.cols();
        self.pool.rows(out.data_mut(), v, |first, rows| {
            for (i, out) in rows.chunks_exact_mut(v).enumerate() {
                let x = logits.row(first + i);
                out.copy_from_slice(x);
                let (max, sum) = exponentials(self.isa, out);
                let shift = f64::from(max) + sum.ln();
                for (o, &x) in out.iter_mut().zip(x) {
                    *o = (f64::from(x) - shift) as f32;
                }
            }
        });
        Ok(())
    }

    fn draw(
        &self,
        logits: &Tensor<Self>,
        rows: &[SampleRow<'_>],
        slots: &[u32],
        tokens: &mut Ids<Self>,
    ) -> Result<Vec<Sampled>> {
        check_shape!("draw", rows.len(), logits.rows());
        check_shape!("draw", slots.len(), rows.len());
        let none = Sampled {
            token: 0,
            draws: 0,
            candidates: 0,
        };
        let sampled: Vec<Mutex<Sampled>> = rows.iter().map(|_| Mutex::new(none)).collect();
        self.pool.run(rows.len(), |i| {
            let last = rows[i].ahead.then(|| tokens.data()[slots[i] as usize]);
            let result = PROBABILITIES
                .with_borrow_mut(|p| sample_row(self.isa, logits.row(i), &rows[i], last, p));
            *sampled[i].lock().unwrap_or_else(PoisonError::into_inner) = result;
        });
        let sampled: Vec<Sampled> = sampled
            .into_iter()
            .map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        for (&slot, s) in slots.iter().zip(&sampled) {
            tokens.buf[slot as usize] = s.token;
        }
        Ok(sampled)
    }

    fn drawn(&self, draws: Vec<Sampled>) -> Result<Vec<Sampled>> {
        Ok(draws)
    }
}

per_isa! {
    /// `x = exp(x − max)`; returns the largest value and the sum of the exponentials.
    fn exponentials<FMA>(x: &mut [f32]) -> (f32, f64) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (blocks, tail) = x.as_chunks::<LANES>();
        for block in blocks {
            for j in 0..LANES {
                lanes[j] = if block[j] > lanes[j] { block[j] } else { lanes[j] };
            }
        }
        let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        let mut sums = [0.0f64; LANES];
        let (blocks, tail) = x.as_chunks_mut::<LANES>();
        for block in blocks {
            for j in 0..LANES {
                block[j] = exp::<FMA>(block[j] - max);
                sums[j] += f64::from(block[j]);
            }
        }
        for (sum, v) in sums.iter_mut().zip(tail) {
            *v = exp::<FMA>(*v - max);
            *sum += f64::from(*v);
        }
        (max, sums.iter().sum())
    }
}

/// `p = softmax(logits)` with some ids left out.
fn probabilities(isa: Isa, logits: &[f32], without: [Option<i32>; 2], p: &mut Vec<f32>) {
    p.clear();
    p.extend_from_slice(logits);
    for id in without.into_iter().flatten() {
        p[id as usize] = f32::NEG_INFINITY;
    }
    let (_, sum) = exponentials(isa, p);
    p.iter_mut().for_each(|v| *v = (f64::from(*v) / sum) as f32);
}

/// `last` is the token after the row's history, where that is ahead.
fn sample_row(
    isa: Isa,
    logits: &[f32],
    row: &SampleRow<'_>,
    last: Option<i32>,
    p: &mut Vec<f32>,
) -> Sampled {
    let [first, second] = match row.uniforms {
        Uniforms::Philox { seed, step } => sampling_uniforms(seed, step),
        Uniforms::Given(u) => u,
    };
    let params = &row.params;
    probabilities(isa, logits, [row.forbidden, None], p);
    let best = most_probable(p, params.top_k);
    let mut kept = 0;
    let mut cumulative = 0.0f32;
    while kept < best.len() && cumulative < params.top_p {
        cumulative += best[kept].0;
        kept += 1;
    }
    let drawn = inverse_cdf(best[..kept].iter().map(|b| b.0), first);
    let token = best.get(drawn).map_or(0, |b| b.1);

    let known = params
        .window
        .saturating_sub(usize::from(last.is_some()))
        .min(row.history.len());
    let window = row.history[row.history.len() - known..].iter().chain(&last);
    let repeats = window.filter(|&&t| t == token).count();
    if (repeats as f32) < params.window as f32 * params.repetition_rate {
        return Sampled {
            token,
            draws: 1,
            candidates: kept as u32,
        };
    }
    probabilities(isa, logits, [row.forbidden, Some(token)], p);
    Sampled {
        token: inverse_cdf(p.iter().copied(), second) as i32,
        draws: 2,
        candidates: kept as u32,
    }
}

/// The `k` most probable ids in falling order, the lower id first among equals.
fn most_probable(p: &[f32], k: usize) -> Vec<(f32, i32)> {
    /// Up to here an insertion costs less than a sort.
    const INSERTION_LIMIT: usize = 64;
    if k > INSERTION_LIMIT {
        let mut all: Vec<(f32, i32)> = p.iter().copied().zip(0..).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.truncate(k);
        return all;
    }
    let mut best: Vec<(f32, i32)> = Vec::with_capacity(k + 1);
    for (id, &p) in p.iter().enumerate() {
        if best.len() == k && best.last().is_none_or(|worst| p <= worst.0) {
            continue;
        }
        let place = best.partition_point(|b| b.0 >= p);
        best.insert(place, (p, id as i32));
        best.truncate(k);
    }
    best
}

/// Index of the first entry whose share of the cumulative sum exceeds `u` (f64); the last one with a share where rounding leaves none.
fn inverse_cdf(p: impl Iterator<Item = f32> + Clone, u: f64) -> usize {
    let total: f64 = p.clone().map(f64::from).sum();
    let (mut cumulative, mut last) = (0.0, 0);
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
