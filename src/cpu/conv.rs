//! Convolutions over the rows of each sequence, as products over shifted rows.
//!
//! Rows are channels last, so the `k` rows that an output reads lie side by side: with dilation 1 a convolution is a product whose input rows
//! overlap, and with dilation it is a sum of `k` products. Nothing is unfolded. Where there is padding or an activation before, the input is
//! copied once, padded and activated, into the backend's scratch buffer.

use super::exact::ExactConv;
#[cfg(target_arch = "x86_64")]
use super::gemm::Sliding;
use super::gemm::{self, Input, Output, Panels, Row, Span, Stored, WIDTH, Weights};
use super::reference::conv::source_row;
use super::{Activation, Buffer, Cpu, Store, check_shape, rows};
use crate::backend::{Act, Conv, ConvGeom, Epilogue, Fidelity, Padding, Result, Weight};
use crate::tensor::{Segments, Tensor};

/// How a convolution's weights are kept.
enum Kernel {
    /// Weights and bias of each group.
    Products(Vec<(Taps, Vec<f32>)>),
    /// One channel per group: `[k, C]` and bias `[C]`.
    Depthwise(Vec<f32>, Vec<f32>),
    /// Sums in f64.
    Exact(ExactConv),
}

/// Weights of `k` taps side by side.
enum Taps {
    /// Panels `[Co, k · Ci]`.
    Panels(Panels),
    /// Of integers.
    #[cfg(target_arch = "x86_64")]
    Sliding(Sliding),
}

impl Taps {
    /// Packs `[co, taps, ci]`, of which `value(channel, tap, input)` is one.
    fn pack(
        stored: Stored,
        (co, taps, ci): (usize, usize, usize),
        value: impl Fn(usize, usize, usize) -> f32,
    ) -> Result<Self> {
        let fill = |channel: usize, row: &mut [f32]| {
            for (i, v) in row.iter_mut().enumerate() {
                *v = value(channel, i / ci, i % ci);
            }
        };
        #[cfg(target_arch = "x86_64")]
        if stored == Stored::Fixed && ci >= Sliding::LEAST_CHANNELS && taps > 0 {
            return Ok(Self::Sliding(Sliding::pack((co, taps, ci), fill)?));
        }
        let count = co.div_ceil(WIDTH);
        let stored = match stored {
            Stored::Fixed => Stored::F32,
            other => other,
        };
        let panels = Panels::pack(count, taps * ci, stored, |channel, row| {
            (channel < co).then(|| {
                fill(channel, row);
                Row::Values
            })
        })?;
        Ok(Self::Panels(panels))
    }

    /// Their products with the rows of `x`, whose taps are those of the convolution.
    fn run(
        &self,
        cpu: &Cpu,
        mut x: Input<'_>,
        spans: &[Span],
        bias: &[f32],
        store: Store<'_>,
        out: Output<'_>,
    ) {
        match self {
            Self::Panels(panels) => {
                if x.tap_stride == x.depth {
                    // Rows that overlap.
                    (x.taps, x.depth) = (1, x.taps * x.depth);
                }
                let weights = Weights { panels, bias };
                gemm::run((&cpu.pool, cpu.isa), x, spans, weights, store, out);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Sliding(taps) => taps.run((&cpu.pool, cpu.isa), x, spans, bias, store, out),
        }
    }
}

/// A packed convolution.
pub struct CpuConv1d {
    kernel: Kernel,
    ci: usize,
    co: usize,
    taps: usize,
}

/// A packed transposed convolution: one convolution per phase of the output, `[Co, taps · Ci]` each.
pub struct CpuConvT1d {
    phases: Vec<Phase>,
    bias: Vec<f32>,
    ci: usize,
    co: usize,
    taps: usize,
    stride: usize,
    padding: usize,
}

/// The taps that reach the output rows `phase + stride · m`.
struct Phase {
    weights: Taps,
    taps: usize,
    /// Input row of the last tap, relative to `m`.
    last: usize,
}

/// Bias of `panels` panels, zeros where there is none.
fn padded_bias(bias: &[f32], panels: usize) -> Vec<f32> {
    let mut padded = vec![0.0; panels * WIDTH];
    padded[..bias.len()].copy_from_slice(bias);
    padded
}

/// The bias as f32, zeros where there is none.
fn bias_or_zeros(op: &str, bias: Option<&Weight<'_>>, co: usize) -> Vec<f32> {
    let bias = bias.map_or_else(|| vec![0.0; co], |b| b.to_f32().into_owned());
    assert!(
        bias.len() == co,
        "{op}: {} biases for {co} channels",
        bias.len()
    );
    bias
}

impl Conv for Cpu {
    type Conv1d = CpuConv1d;
    type ConvT1d = CpuConvT1d;

    fn pack_conv1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        groups: usize,
        fidelity: Fidelity,
    ) -> Result<CpuConv1d> {
        check_shape!("pack_conv1d", w.shape.len(), 3);
        let (co, cig, taps) = (w.shape[0], w.shape[1], w.shape[2]);
        check_shape!("pack_conv1d", co % groups, 0);
        if fidelity == Fidelity::Exact {
            check_shape!("pack_conv1d", groups, 1);
            let bias = bias.map(|b| b.to_f32().into_owned());
            return Ok(CpuConv1d {
                kernel: Kernel::Exact(ExactConv::new(&w.to_f32(), co, cig, bias.as_deref())),
                ci: cig,
                co,
                taps,
            });
        }
        let bias = bias_or_zeros("pack_conv1d", bias, co);
        let stored = match fidelity {
            Fidelity::Usual => Stored::convolution(self.isa, self.options.weights),
            Fidelity::Signal => Stored::signal(self.isa, self.options.weights),
            Fidelity::Exact => Stored::F32,
        };
        let stored = match stored {
            // Rows are rounded whole.
            Stored::Fixed if groups > 1 => Stored::F32,
            other => other,
        };
        let values = w.to_f32();
        let kernel = if groups > 1 && cig == 1 && co == groups {
            let w = (0..taps * co).map(|i| values[i % co * taps + i / co]);
            Kernel::Depthwise(w.collect(), bias)
        } else {
            let cog = co / groups;
            let group = |g: usize| {
                let weights = Taps::pack(stored, (cog, taps, cig), |c, tap, i| {
                    values[((g * cog + c) * cig + i) * taps + tap]
                })?;
                let bias = &bias[g * cog..(g + 1) * cog];
                Ok((weights, padded_bias(bias, cog.div_ceil(WIDTH))))
            };
            Kernel::Products((0..groups).map(group).collect::<Result<_>>()?)
        };
        Ok(CpuConv1d {
            kernel,
            ci: cig * groups,
            co,
            taps,
        })
    }

    fn pack_conv_transpose1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        stride: usize,
        padding: usize,
    ) -> Result<CpuConvT1d> {
        check_shape!("pack_conv_transpose1d", w.shape.len(), 3);
        let (ci, co, taps) = (w.shape[0], w.shape[1], w.shape[2]);
        let values = w.to_f32();
        let stored = Stored::signal(self.isa, self.options.weights);
        let phase = |phase: usize| {
            // Input row r reaches output row r · stride + t − padding: the taps of a phase are `first + stride · j`, and tap j reads row `last − j`.
            let (first, last) = ((phase + padding) % stride, (phase + padding) / stride);
            let reach = taps.saturating_sub(first).div_ceil(stride);
            let weights = Taps::pack(stored, (co, reach, ci), |c, tap, i| {
                values[(i * co + c) * taps + first + stride * (reach - 1 - tap)]
            })?;
            Ok(Phase {
                weights,
                taps: reach,
                last,
            })
        };
        Ok(CpuConvT1d {
            phases: (0..stride).map(phase).collect::<Result<_>>()?,
            bias: padded_bias(
                &bias_or_zeros("pack_conv_transpose1d", bias, co),
                co.div_ceil(WIDTH),
            ),
            ci,
            co,
            taps,
            stride,
            padding,
        })
    }

    fn conv1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &CpuConv1d,
        geom: ConvGeom,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        check_shape!("conv1d", x.shape(), (segments.total(), w.ci));
        check_shape!("conv1d", out.shape(), (out_segments.total(), w.co));
        check_shape!("conv1d", matches!(ep, Epilogue::SiluMul), false);
        let pairs = || segments.lengths().zip(out_segments.lengths());
        for (from, to) in pairs() {
            check_shape!("conv1d", to, geom.output_rows(from, w.taps));
        }
        let store = Store::new("conv1d", ep, out.shape());
        let pre = pre.map(|a| Activation::from(a).check("conv1d", w.ci));
        let plain = pre.is_none() && geom.left == 0 && geom.right == 0;
        let mut scratch = self.scratch();
        let values = if plain {
            x.data()
        } else {
            self.pad(x, segments, &geom, pre, &mut scratch.padded)?
        };
        let pad = geom.left + geom.right;
        let spans: Vec<Span> = (0..segments.count())
            .map(|b| Span {
                input: (segments.range(b).start + b * pad) * w.ci,
                rows: out_segments.length(b),
                out: out_segments.range(b).start,
            })
            .collect();
        match &w.kernel {
            Kernel::Products(groups) => {
                self.products(values, &spans, groups, w, &geom, store, out.data_mut());
            }
            Kernel::Depthwise(taps, bias) => {
                self.depthwise(values, &spans, (taps, bias), &geom, store, out.data_mut());
            }
            Kernel::Exact(exact) => {
                let mut y = vec![0.0; out.rows() * w.co];
                for (span, to) in spans.iter().zip((0..).map(|b| out_segments.range(b))) {
                    let x = &values[span.input..];
                    let y = &mut y[to.start * w.co..to.end * w.co];
                    exact.run(&self.pool, self.isa, x, (geom.stride, geom.dilation), y);
                }
                rows::store(self.isa, &y, w.co, store, 0, out.data_mut());
            }
        }
        Ok(())
    }

    fn conv_transpose1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &CpuConvT1d,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        check_shape!("conv_transpose1d", x.shape(), (segments.total(), w.ci));
        check_shape!(
            "conv_transpose1d",
            out.shape(),
            (out_segments.total(), w.co)
        );
        check_shape!("conv_transpose1d", matches!(ep, Epilogue::SiluMul), false);
        for (from, to) in segments.lengths().zip(out_segments.lengths()) {
            let expected = match from {
                0 => 0,
                rows => ((rows - 1) * w.stride + w.taps).saturating_sub(2 * w.padding),
            };
            check_shape!("conv_transpose1d", to, expected);
        }
        let store = Store::new("conv_transpose1d", ep, out.shape());
        let pre = pre.map(|a| Activation::from(a).check("conv_transpose1d", w.ci));
        let geom = ConvGeom {
            stride: 1,
            dilation: 1,
            left: w.taps.div_ceil(w.stride) - 1,
            right: w.taps / w.stride + 1,
            padding: Padding::Zero,
        };
        let mut scratch = self.scratch();
        let values = self.pad(x, segments, &geom, pre, &mut scratch.padded)?;
        for (phase, part) in w.phases.iter().enumerate() {
            let spans: Vec<Span> = (0..segments.count())
                .map(|b| {
                    let first = segments.range(b).start + b * (geom.left + geom.right);
                    Span {
                        input: (first + geom.left + part.last + 1).saturating_sub(part.taps) * w.ci,
                        rows: (out_segments.length(b).saturating_sub(phase)).div_ceil(w.stride),
                        out: out_segments.range(b).start + phase,
                    }
                })
                .collect();
            let input = Input {
                values,
                row_stride: w.ci,
                taps: part.taps,
                tap_stride: w.ci,
                depth: w.ci,
            };
            let output = Output {
                values: out.data_mut(),
                stride: w.co,
                row_step: w.stride,
                first_column: 0,
                columns: w.co,
            };
            part.weights
                .run(self, input, &spans, &w.bias, store, output);
        }
        Ok(())
    }
}

impl Cpu {
    /// Copies every sequence into `buffer` with its padding, the activation applied.
    fn pad<'b>(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        geom: &ConvGeom,
        pre: Option<Activation<'_>>,
        buffer: &'b mut Buffer,
    ) -> Result<&'b [f32]> {
        let (c, pad) = (x.cols(), geom.left + geom.right);
        let n = (segments.total() + segments.count() * pad) * c;
        buffer.grow(n)?;
        let padded = &mut buffer.as_mut_slice()[..n];
        for b in 0..segments.count() {
            let range = segments.range(b);
            let to = &mut padded[(range.start + b * pad) * c..(range.end + (b + 1) * pad) * c];
            self.pool.rows(to, c, |first, block| {
                for (i, row) in block.chunks_exact_mut(c).enumerate() {
                    let source = if range.is_empty() {
                        None
                    } else {
                        source_row(first + i, range.len(), geom)
                    };
                    match source {
                        Some(source) => row.copy_from_slice(x.row(range.start + source)),
                        None => row.fill(0.0),
                    }
                }
                if let Some(pre) = pre {
                    rows::activate(self.isa, pre, block, c);
                }
            });
        }
        Ok(padded)
    }

    /// All groups of a convolution over padded rows.
    fn products(
        &self,
        values: &[f32],
        spans: &[Span],
        groups: &[(Taps, Vec<f32>)],
        w: &CpuConv1d,
        geom: &ConvGeom,
        store: Store<'_>,
        out: &mut [f32],
    ) {
        let (cig, cog) = (w.ci / groups.len(), w.co / groups.len());
        for (g, (weights, bias)) in groups.iter().enumerate() {
            let input = Input {
                values: &values[g * cig..],
                row_stride: geom.stride * w.ci,
                taps: w.taps,
                tap_stride: geom.dilation * w.ci,
                depth: cig,
            };
            let output = Output {
                values: out,
                stride: w.co,
                row_step: 1,
                first_column: g * cog,
                columns: cog,
            };
            weights.run(self, input, spans, bias, store, output);
        }
    }

    /// A convolution of every channel by itself.
    fn depthwise(
        &self,
        values: &[f32],
        spans: &[Span],
        (w, bias): (&[f32], &[f32]),
        geom: &ConvGeom,
        store: Store<'_>,
        out: &mut [f32],
    ) {
        let c = bias.len();
        for span in spans {
            let to = &mut out[span.out * c..(span.out + span.rows) * c];
            self.pool.rows(to, c, |first, block| {
                let x = &values[span.input + first * geom.stride * c..];
                let steps = (geom.stride * c, geom.dilation * c);
                let mut y = vec![0.0; block.len()];
                rows::depthwise(self.isa, x, w, bias, steps, &mut y);
                rows::store(self.isa, &y, c, store, (span.out + first) * c, block);
            });
        }
    }
}
