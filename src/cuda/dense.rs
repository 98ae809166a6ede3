//! Linear layers, activations and `axpby` on the device. The products are [`super::gemm`]'s.

use super::elements::strided;
use super::epilogue::{act_params, epilogue_params};
use super::gemm::PackedMatrix;
use super::launch::Kernel;
use super::{Cuda, abi};
use crate::backend::weight::WeightData;
use crate::backend::{Act, Dense, Epilogue, Result, Weight, check_shape};
use crate::tensor::Tensor;

const ACTIVATE: Kernel = Kernel::new("elementwise", "activate_rows");
const AXPBY: Kernel = Kernel::new("elementwise", "axpby");

/// Gates, then ups, that lie side by side in a packed weight.
const GATE_GROUP: usize = 8;

/// A packed linear layer `[M, K]`.
pub struct CudaLinear {
    packed: PackedMatrix,
    m: usize,
    k: usize,
    gated: bool,
}

/// Writes row `i` of a `[M, K]` weight to `out [K]`.
fn weight_row(w: &Weight<'_>, i: usize, out: &mut [f32]) {
    let row = i * out.len()..(i + 1) * out.len();
    match &w.data {
        WeightData::F32(v) => out.copy_from_slice(&v[row]),
        WeightData::F16(v) => (out.iter_mut().zip(&v[row])).for_each(|(o, v)| *o = v.to_f32()),
        WeightData::Bf16(v) => (out.iter_mut().zip(&v[row])).for_each(|(o, v)| *o = v.to_f32()),
        WeightData::I8 { q, scale } => {
            (out.iter_mut().zip(&q[row])).for_each(|(o, &q)| *o = f32::from(q) * scale[i]);
        }
    }
}

impl Dense for Cuda {
    type Linear = CudaLinear;

    fn pack_linear(&self, w: &Weight<'_>, bias: Option<&Weight<'_>>) -> Result<CudaLinear> {
        self.pack_linears(&[(w, bias)])
    }

    fn pack_linears(&self, parts: &[(&Weight<'_>, Option<&Weight<'_>>)]) -> Result<CudaLinear> {
        let k = parts[0].0.shape[1];
        let mut rows = Vec::new();
        for (part, (w, bias)) in parts.iter().enumerate() {
            check_shape!("pack_linear", w.shape[1], k);
            if let Some(bias) = bias {
                check_shape!("pack_linear", bias.len(), w.shape[0]);
            }
            rows.extend((0..w.shape[0]).map(|row| (part, row)));
        }
        let biases: Vec<_> = parts.iter().map(|(_, b)| b.map(Weight::to_f32)).collect();
        let packed = PackedMatrix::new(self, (rows.len(), k), false, |r, out| {
            let (part, row) = rows[r];
            weight_row(parts[part].0, row, out);
            biases[part].as_ref().map_or(0.0, |b| b[row])
        })?;
        Ok(CudaLinear {
            packed,
            m: rows.len(),
            k,
            gated: false,
        })
    }

    fn pack_gate_up(&self, gate: &Weight<'_>, up: &Weight<'_>) -> Result<CudaLinear> {
        check_shape!("pack_gate_up", gate.shape.as_slice(), up.shape.as_slice());
        let (m, k) = (gate.shape[0], gate.shape[1]);
        let rows = 2 * m.next_multiple_of(GATE_GROUP);
        let packed = PackedMatrix::new(self, (rows, k), true, |r, out| {
            let row = r / (2 * GATE_GROUP) * GATE_GROUP + r % GATE_GROUP;
            match (row < m, r / GATE_GROUP % 2) {
                (true, 0) => weight_row(gate, row, out),
                (true, _) => weight_row(up, row, out),
                (false, _) => out.fill(0.0),
            }
            0.0
        })?;
        Ok(CudaLinear {
            packed,
            m,
            k,
            gated: true,
        })
    }

    fn linear(
        &self,
        x: &Tensor<Self>,
        w: &CudaLinear,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("linear", x.cols(), w.k);
        check_shape!("linear", out.shape(), (x.rows(), w.m));
        check_shape!("linear", matches!(ep, Epilogue::SiluMul), w.gated);
        let epilogue = epilogue_params("linear", ep, out.shape());
        self.multiply(x, &w.packed, epilogue, out)
    }

    fn activate(&self, act: Act<'_, Self>, x: &mut Tensor<Self>) -> Result<()> {
        let params = abi::ActivateParams {
            act: act_params("activate", act, x.cols()),
            values: x.mat(),
        };
        // SAFETY: the values of one tensor, and as many alphas as it has columns.
        unsafe {
            self.launcher
                .launch(ACTIVATE, strided(x.rows(), x.cols()), &params)
        }
    }

    fn axpby(&self, a: f32, x: &Tensor<Self>, b: f32, y: &mut Tensor<Self>) -> Result<()> {
        check_shape!("axpby", x.shape(), y.shape());
        let params = abi::AxpbyParams {
            x: x.mat(),
            y: y.mat(),
            a,
            b,
        };
        // SAFETY: shapes checked above.
        unsafe {
            self.launcher
                .launch(AXPBY, strided(y.rows(), y.cols()), &params)
        }
    }
}
