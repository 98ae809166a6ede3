//! Relative positions of the encoder's attention: ESPnet's sinusoids (`transformer/embedding.py`,
//! `EspnetRelPositionalEncoding`), projected once per layer and kept for all later calls that are not longer.

use crate::backend::{Backend, Epilogue, Result};
use crate::tensor::Tensor;

/// Positions are made for at least this many rows, and for powers of two above.
const SHORTEST: usize = 64;

/// Projected positions of a stack of layers.
pub(super) struct Positions<B: Backend> {
    center: usize,
    /// Per layer `[2 · center + 1, D]`.
    projected: Vec<Tensor<B>>,
}

impl<B: Backend> Default for Positions<B> {
    fn default() -> Self {
        Self {
            center: 0,
            projected: Vec::new(),
        }
    }
}

impl<B: Backend> Positions<B> {
    /// Makes sure that sequences of `rows` rows are covered, for layers with the given projections `[D, D]`.
    pub(super) fn cover<'a>(
        &mut self,
        backend: &B,
        rows: usize,
        layers: impl Iterator<Item = &'a B::Linear>,
        d: usize,
    ) -> Result<()>
    where
        B::Linear: 'a,
    {
        if rows <= self.center {
            return Ok(());
        }
        let center = rows.next_power_of_two().max(SHORTEST);
        let count = 2 * center + 1;
        let table = backend.tensor(count, d, &sinusoids(center, d))?;
        self.projected = layers
            .map(|projection| {
                let mut p = backend.alloc(count, d)?;
                backend.linear(&table, projection, Epilogue::None, &mut p)?;
                Ok(p)
            })
            .collect::<Result<_>>()?;
        self.center = center;
        Ok(())
    }

    /// Row of distance 0.
    pub(super) fn center(&self) -> usize {
        self.center
    }

    /// Projected positions of a layer.
    pub(super) fn layer(&self, i: usize) -> &Tensor<B> {
        &self.projected[i]
    }
}

/// Rows for the distances `j − i` from `−center` to `center` of a key `j` from its query `i`, `[2 · center + 1, d]`:
/// sine and cosine of `(i − j) · 10000^(−2c/d)`, interleaved.
fn sinusoids(center: usize, d: usize) -> Vec<f32> {
    let step = -(10_000_f64.ln() / d as f64) as f32;
    let rates: Vec<f32> = (0..d)
        .step_by(2)
        .map(|c| f64::from(c as f32 * step).exp() as f32)
        .collect();
    let mut rows = Vec::with_capacity((2 * center + 1) * d);
    for row in 0..=2 * center {
        let distance = center as f32 - row as f32;
        for (pair, rate) in rates.iter().enumerate() {
            let (sin, cos) = f64::from(distance * rate).sin_cos();
            rows.push(sin as f32);
            if 2 * pair + 1 < d {
                rows.push(cos as f32);
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_run_from_the_far_left_key_to_the_far_right() {
        let rows = sinusoids(2, 4);
        assert_eq!(rows.len(), 5 * 4);
        // The middle row is distance zero.
        assert_eq!(rows[8..12], [0.0, 1.0, 0.0, 1.0]);
        // The first row: the key is two to the left, so i − j = 2; the rates are 1 and 1/100.
        for (value, angle) in [(rows[0], 2.0_f32), (rows[2], 0.02)] {
            assert!((value - angle.sin()).abs() < 1e-7);
        }
        assert!((rows[16] + 2.0_f32.sin()).abs() < 1e-7);
        assert!((rows[17] - 2.0_f32.cos()).abs() < 1e-7);
    }
}
