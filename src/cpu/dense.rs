//! Linear layers and activations.

use half::bf16;

use super::reference::dense as reference;
use super::{Activation, Cpu, Store, WeightPrecision, check_shape, try_vec};
use crate::backend::weight::WeightData;
use crate::backend::{Act, Dense, Epilogue, Result, Weight};
use crate::tensor::Tensor;

/// A packed linear layer `[M, K]`.
pub struct CpuLinear {
    /// `[M, K]`, rounded to the backend's weight precision.
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    m: usize,
    k: usize,
    gate_up: bool,
}

/// Largest int8 magnitude in use: symmetric, so that −128 never occurs.
const INT8_MAX: f32 = 127.0;

/// Rounds a row-major `[M, K]` weight to what the precision can hold.
fn round(w: &Weight<'_>, k: usize, precision: WeightPrecision, out: &mut Vec<f32>) {
    let first = out.len();
    out.extend_from_slice(&w.to_f32());
    let keep = matches!(w.data, WeightData::I8 { .. });
    match precision {
        WeightPrecision::F32 => {}
        WeightPrecision::Bf16 => {
            (out[first..].iter_mut()).for_each(|v| *v = bf16::from_f32(*v).to_f32());
        }
        WeightPrecision::Int8 if keep => {}
        WeightPrecision::Int8 => {
            for row in out[first..].chunks_exact_mut(k.max(1)) {
                let scale = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / INT8_MAX;
                if scale > 0.0 {
                    (row.iter_mut()).for_each(|v| *v = (*v / scale).round_ties_even() * scale);
                }
            }
        }
    }
}

impl Cpu {
    fn pack(
        &self,
        parts: &[(&Weight<'_>, Option<&Weight<'_>>)],
        gate_up: bool,
    ) -> Result<CpuLinear> {
        let k = parts[0].0.shape[1];
        let m = parts.iter().map(|(w, _)| w.shape[0]).sum();
        let mut packed = try_vec(m * k, "a linear layer")?;
        for (w, bias) in parts {
            check_shape!("pack_linear", w.shape[1], k);
            if let Some(bias) = bias {
                check_shape!("pack_linear", bias.len(), w.shape[0]);
            }
            round(w, k, self.options.weights, &mut packed);
        }
        let bias = parts.iter().any(|(_, b)| b.is_some()).then(|| {
            parts
                .iter()
                .flat_map(|(w, b)| match b {
                    Some(b) => b.to_f32().into_owned(),
                    None => vec![0.0; w.shape[0]],
                })
                .collect()
        });
        Ok(CpuLinear {
            w: packed,
            bias,
            m,
            k,
            gate_up,
        })
    }
}

impl Dense for Cpu {
    type Linear = CpuLinear;

    fn pack_linear(&self, w: &Weight<'_>, bias: Option<&Weight<'_>>) -> Result<CpuLinear> {
        self.pack(&[(w, bias)], false)
    }

    fn pack_linears(&self, parts: &[(&Weight<'_>, Option<&Weight<'_>>)]) -> Result<CpuLinear> {
        self.pack(parts, false)
    }

    fn pack_gate_up(&self, gate: &Weight<'_>, up: &Weight<'_>) -> Result<CpuLinear> {
        check_shape!("pack_gate_up", gate.shape.as_slice(), up.shape.as_slice());
        self.pack(&[(gate, None), (up, None)], true)
    }

    fn linear(
        &self,
        x: &Tensor<Self>,
        w: &CpuLinear,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("linear", x.cols(), w.k);
        let m = if w.gate_up { w.m / 2 } else { w.m };
        check_shape!("linear", out.shape(), (x.rows(), m));
        check_shape!("linear", matches!(ep, Epilogue::SiluMul), w.gate_up);
        let store = Store::new("linear", ep, out.shape());
        let mut y = vec![0.0; x.rows() * w.m];
        reference::linear(x.data(), &w.w, w.bias.as_deref(), w.k, &mut y);
        reference::store(&y, w.m, store, out.data_mut());
        Ok(())
    }

    fn activate(&self, act: Act<'_, Self>, x: &mut Tensor<Self>) -> Result<()> {
        let c = x.cols();
        let act = Activation::from(act).check("activate", c);
        reference::activate(act, x.data_mut(), c);
        Ok(())
    }

    fn axpby(&self, a: f32, x: &Tensor<Self>, b: f32, y: &mut Tensor<Self>) -> Result<()> {
        check_shape!("axpby", x.shape(), y.shape());
        for (y, &x) in y.data_mut().iter_mut().zip(x.data()) {
            *y = a * x + b * *y;
        }
        Ok(())
    }
}
