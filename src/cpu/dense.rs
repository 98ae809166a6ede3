//! Linear layers and activations.

use std::cell::RefCell;

use half::bf16;

use super::buffer::Reused;
use super::gemm::{self, Input, Output, Panels, Row, Span, Stored, WIDTH, Weights};
use super::pool::{Pool, SharedMut};
use super::{Activation, Cpu, Isa, Store, WeightPrecision, check_shape, rows, try_vec};
use crate::backend::weight::WeightData;
use crate::backend::{Act, Dense, Epilogue, Result, Weight};
use crate::tensor::Tensor;

/// A packed linear layer `[M, K]`.
pub struct CpuLinear {
    panels: Panels,
    /// One value per packed channel.
    bias: Vec<f32>,
    m: usize,
    gate_up: bool,
}

impl CpuLinear {
    /// As products read it.
    pub(super) fn weights(&self) -> Weights<'_> {
        Weights {
            panels: &self.panels,
            bias: &self.bias,
        }
    }

    /// Bytes that a forward pass reads.
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + size_of_val(self.bias.as_slice())
    }
}

/// Writes row `i` of a `[M, K]` weight to `out [K]`; int8 rows as integers beside their scale.
pub(super) fn weight_row(w: &Weight<'_>, i: usize, out: &mut [f32]) -> Row {
    let k = out.len();
    let row = i * k..(i + 1) * k;
    match &w.data {
        WeightData::F32(v) => out.copy_from_slice(&v[row]),
        WeightData::F16(v) => (out.iter_mut().zip(&v[row])).for_each(|(o, v)| *o = v.to_f32()),
        WeightData::Bf16(v) => (out.iter_mut().zip(&v[row])).for_each(|(o, v)| *o = v.to_f32()),
        WeightData::I8 { q, scale } => {
            (out.iter_mut().zip(&q[row])).for_each(|(o, &q)| *o = f32::from(q));
            return Row::Quantised(scale[i]);
        }
    }
    Row::Values
}

impl Cpu {
    /// Packs several weights as one whose channel `c` is row `place(c) = (part, row)`.
    fn pack(
        &self,
        parts: &[(&Weight<'_>, Option<&Weight<'_>>)],
        (m, panels): (usize, usize),
        place: impl Fn(usize) -> Option<(usize, usize)>,
    ) -> Result<CpuLinear> {
        let k = parts[0].0.shape[1];
        for (w, bias) in parts {
            check_shape!("pack_linear", w.shape[1], k);
            if let Some(bias) = bias {
                check_shape!("pack_linear", bias.len(), w.shape[0]);
            }
        }
        let biases: Vec<_> = parts.iter().map(|(_, b)| b.map(Weight::to_f32)).collect();
        let mut bias = try_vec(panels * WIDTH, "a bias")?;
        bias.extend((0..panels * WIDTH).map(|c| {
            place(c)
                .and_then(|(part, row)| biases[part].as_ref().map(|b| b[row]))
                .unwrap_or(0.0)
        }));
        let stored = Stored::linear(self.isa, self.options.weights);
        let panels = Panels::pack(panels, k, stored, |c, out| {
            place(c).map(|(part, row)| {
                let kind = weight_row(parts[part].0, row, out);
                if let (Row::Values, WeightPrecision::Bf16) = (&kind, self.options.weights) {
                    // Whatever the kernels keep them as.
                    out.iter_mut()
                        .for_each(|v| *v = bf16::from_f32(*v).to_f32());
                }
                kind
            })
        })?;
        Ok(CpuLinear {
            panels,
            bias,
            m,
            gate_up: false,
        })
    }
}

/// Rows of a thread below which two layers are computed one after the other, all threads sharing the weights.
const FEW_ROWS: usize = 32;
/// Rows of a block between two layers: of 1024 channels 256 KiB.
const MOST_ROWS: usize = 64;

thread_local! {
    /// What lies between two layers.
    static HIDDEN: RefCell<Reused<f32>> = RefCell::default();
}

/// `out = store(x Wᵀ + b)`: `x [N, K]`.
fn linear((pool, isa): (&Pool, Isa), x: &[f32], w: &CpuLinear, store: Store<'_>, out: &mut [f32]) {
    let k = w.panels.k;
    let span = Span {
        input: 0,
        rows: out.len().checked_div(w.m).unwrap_or(0),
        out: 0,
    };
    let input = Input {
        values: x,
        row_stride: k,
        taps: 1,
        tap_stride: 0,
        depth: k,
    };
    let output = Output {
        values: out,
        stride: w.m,
        row_step: 1,
        first_column: 0,
        columns: w.m,
    };
    gemm::run((pool, isa), input, &[span], w.weights(), store, output);
}

impl Dense for Cpu {
    type Linear = CpuLinear;

    fn pack_linear(&self, w: &Weight<'_>, bias: Option<&Weight<'_>>) -> Result<CpuLinear> {
        self.pack_linears(&[(w, bias)])
    }

    fn pack_linears(&self, parts: &[(&Weight<'_>, Option<&Weight<'_>>)]) -> Result<CpuLinear> {
        let m: usize = parts.iter().map(|(w, _)| w.shape[0]).sum();
        self.pack(parts, (m, m.div_ceil(WIDTH)), |mut c| {
            for (part, (w, _)) in parts.iter().enumerate() {
                if c < w.shape[0] {
                    return Some((part, c));
                }
                c -= w.shape[0];
            }
            None
        })
    }

    fn pack_gate_up(&self, gate: &Weight<'_>, up: &Weight<'_>) -> Result<CpuLinear> {
        check_shape!("pack_gate_up", gate.shape.as_slice(), up.shape.as_slice());
        let m = gate.shape[0];
        // Panels alternate: sixteen gates, their sixteen ups.
        let parts = [(gate, None), (up, None)];
        let linear = self.pack(&parts, (m, 2 * m.div_ceil(WIDTH)), |c| {
            let row = c / (2 * WIDTH) * WIDTH + c % WIDTH;
            (row < m).then_some((c / WIDTH % 2, row))
        })?;
        Ok(CpuLinear {
            gate_up: true,
            ..linear
        })
    }

    fn linear(
        &self,
        x: &Tensor<Self>,
        w: &CpuLinear,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("linear", x.cols(), w.panels.k);
        check_shape!("linear", out.shape(), (x.rows(), w.m));
        check_shape!("linear", matches!(ep, Epilogue::SiluMul), w.gate_up);
        let store = Store::new("linear", ep, out.shape());
        linear((&self.pool, self.isa), x.data(), w, store, out.data_mut());
        Ok(())
    }

    /// Block by block of rows, where that is faster: what lies between the layers stays in a core's cache. The products take less time than memory
    /// would to carry it away and back.
    fn feed_forward(
        &self,
        x: &Tensor<Self>,
        up: &CpuLinear,
        act: Act<'_, Self>,
        down: &CpuLinear,
        hidden: &mut Tensor<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let (rows, threads) = (x.rows(), self.pool.threads());
        if !self.works_in_blocks() || rows < threads * FEW_ROWS {
            self.linear(x, up, Epilogue::Act(act), hidden)?;
            return self.linear(hidden, down, Epilogue::Accumulate, out);
        }
        check_shape!("feed_forward", x.cols(), up.panels.k);
        check_shape!("feed_forward", down.panels.k, up.m);
        check_shape!("feed_forward", out.shape(), (rows, down.m));
        let act = Activation::from(act).check("feed_forward", up.m);
        let blocks = rows.div_ceil(MOST_ROWS).next_multiple_of(threads);
        let (k, m) = (x.cols(), down.m);
        let out = SharedMut::new(out.data_mut());
        self.pool.ranges(rows, rows.div_ceil(blocks), |block| {
            HIDDEN.with_borrow_mut(|hidden| {
                let alone = (&self.alone, self.isa);
                let between = block.len() * up.m;
                hidden.grow(between);
                let (x, hidden) = (
                    &x.data()[block.start * k..block.end * k],
                    &mut hidden[..between],
                );
                linear(alone, x, up, Store::Act(act), hidden);
                // SAFETY: the rows of different blocks do not overlap.
                let out = unsafe { out.slice(block.start * m, block.len() * m) };
                linear(alone, hidden, down, Store::Accumulate, out);
            });
        });
        Ok(())
    }

    fn activate(&self, act: Act<'_, Self>, x: &mut Tensor<Self>) -> Result<()> {
        let c = x.cols();
        let act = Activation::from(act).check("activate", c);
        self.pool.rows(x.data_mut(), c, |_, rows| {
            rows::activate(self.isa, act, rows, c);
        });
        Ok(())
    }

    fn axpby(&self, a: f32, x: &Tensor<Self>, b: f32, y: &mut Tensor<Self>) -> Result<()> {
        check_shape!("axpby", x.shape(), y.shape());
        let c = y.cols();
        self.pool.rows(y.data_mut(), c, |first, rows| {
            let x = &x.data()[first * c..];
            for (y, &x) in rows.iter_mut().zip(x) {
                *y = a * x + b * *y;
            }
        });
        Ok(())
    }
}
