//! Log-probabilities and sampling.

use super::reference::sample as reference;
use super::{Cpu, check_shape};
use crate::backend::{Result, Sample, SampleRow, Sampled};
use crate::tensor::{Ids, Tensor};

impl Sample for Cpu {
    fn log_softmax(&self, logits: &Tensor<Self>, out: &mut Tensor<Self>) -> Result<()> {
        check_shape!("log_softmax", out.shape(), logits.shape());
        let v = logits.cols().max(1);
        let rows = logits.data().chunks_exact(v);
        for (x, out) in rows.zip(out.data_mut().chunks_exact_mut(v)) {
            reference::log_softmax(x, out);
        }
        Ok(())
    }

    fn sample(
        &self,
        logits: &Tensor<Self>,
        rows: &[SampleRow<'_>],
        out: &mut Ids<Self>,
    ) -> Result<Vec<Sampled>> {
        check_shape!("sample", rows.len(), logits.rows());
        check_shape!("sample", out.len(), rows.len());
        let sampled: Vec<Sampled> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| reference::sample(logits.row(i), row))
            .collect();
        for (id, s) in out.buf.iter_mut().zip(&sampled) {
            *id = s.token;
        }
        Ok(sampled)
    }
}
