//! CAM++: fbank of a prompt to a speaker embedding.
//!
//! In: Kaldi fbank without its mean `[T, bins]`; out: an embedding `[E]`, not normalised. A 2-D convolutional head over frequency
//! and time, a time-delay layer, densely connected blocks whose layers weigh their output by a context mask (mean of the
//! whole recording plus mean of the segment), statistics pooling, one linear layer. After Wang et al., "CAM++", 2023
//! (3D-Speaker `campplus/DTDNN.py`). Batch norms that follow a convolution arrive folded into it.

use crate::audio::features::Features;
use crate::backend::{Act, Conv, ConvGeom, Dense, Epilogue, Fidelity, Memory, Result};
use crate::checkpoint::Scope;
use crate::cpu::{Cpu, CpuConv1d, CpuConv2d, CpuLinear};
use crate::model::config::SpeakerConfig;
use crate::tensor::{Segments, Tensor, Trace};

/// The encoder with its weights.
pub struct SpeakerEncoder {
    config: SpeakerConfig,
    head: Head,
    tdnn: CpuConv1d,
    tdnn_geom: ConvGeom,
    tdnn_kernel: usize,
    /// Each with its transition.
    blocks: Vec<(Vec<DenseLayer>, Transition)>,
    dense: CpuLinear,
    /// Batch norm of the embedding.
    out_norm: ScaleShift,
}

/// The 2-D head: `[T, bins]` → `[T, C · F']`, channel-major.
struct Head {
    first: CpuConv2d,
    stages: Vec<Residual>,
    last: CpuConv2d,
    channels: usize,
}

struct Residual {
    conv1: CpuConv2d,
    conv2: CpuConv2d,
    shortcut: Option<CpuConv2d>,
}

/// A batch norm as it is applied: `x · scale + shift`.
struct ScaleShift {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

struct DenseLayer {
    norm: ScaleShift,
    bottleneck: CpuLinear,
    bottleneck_width: usize,
    local: CpuConv1d,
    local_geom: ConvGeom,
    growth: usize,
    /// The context mask's two layers.
    squeeze: CpuLinear,
    squeeze_width: usize,
    excite: CpuLinear,
}

struct Transition {
    norm: ScaleShift,
    linear: CpuLinear,
    width: usize,
}

impl SpeakerEncoder {
    /// Reads the weights below `scope`, which is the root of `campplus.onnx`. Missing ones are noted there.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn load(cpu: &Cpu, scope: &Scope<'_>, config: &SpeakerConfig) -> Result<Self> {
        let head = Head::load(cpu, &scope.at("head"), config)?;
        let strides = config.head_strides.iter().flatten();
        let freqs = strides.fold(config.feat_dim, |f, s| f.div_ceil(*s));
        let freqs = freqs.div_ceil(config.head_out_stride);
        let xvector = scope.at("xvector");
        let tdnn_scope = xvector.at("tdnn.linear");
        let [mut width, _, tdnn_kernel] = dims(&tdnn_scope, "weight");
        let tdnn = cpu.pack_conv1d(
            &tdnn_scope.weight("weight", &[width, head.channels * freqs, tdnn_kernel]),
            tdnn_scope.optional("bias", &[width]).as_ref(),
            1,
            Fidelity::Usual,
        )?;
        let mut blocks = Vec::new();
        for (i, block) in config.blocks.iter().enumerate() {
            let at = xvector.at(format!("block{}", i + 1));
            let mut layers = Vec::new();
            for l in 1..=block.layers {
                let layer = at.at(format!("tdnnd{l}"));
                layers.push(DenseLayer::load(
                    cpu,
                    &layer,
                    width,
                    block.dilation,
                    config.norm_eps,
                )?);
                width += layers[l - 1].growth;
            }
            let transit = xvector.at(format!("transit{}", i + 1));
            let transit = Transition::load(cpu, &transit, width, config.norm_eps)?;
            width = transit.width;
            blocks.push((layers, transit));
        }
        let size = config.embedding;
        let dense = xvector.at("dense");
        Ok(Self {
            head,
            tdnn,
            tdnn_geom: ConvGeom {
                stride: config.tdnn_stride,
                ..ConvGeom::same(tdnn_kernel, 1)
            },
            tdnn_kernel,
            blocks,
            dense: pointwise(cpu, &dense.at("linear"), size, 2 * width)?,
            out_norm: ScaleShift::load(&dense.at("nonlinear.batchnorm"), size, config.norm_eps),
            config: config.clone(),
        })
    }

    /// Dimensions of the encoder.
    pub fn config(&self) -> &SpeakerConfig {
        &self.config
    }

    /// The embedding `[E]` of one recording's features.
    ///
    /// # Errors
    /// When memory runs out.
    ///
    /// # Panics
    /// When the features have another number of bins than the encoder reads, or fewer than two rows remain to pool.
    pub fn encode(&self, cpu: &Cpu, features: &Features, trace: &Trace) -> Result<Vec<f32>> {
        assert_eq!(features.bins, self.config.feat_dim, "speaker encoder: bins");
        let x = cpu.tensor(features.rows, features.bins, &features.data)?;
        let x = self.head.forward(cpu, x)?;
        trace.record(cpu, "speaker.head", &x)?;
        let rows = self.tdnn_geom.output_rows(x.rows(), self.tdnn_kernel);
        let segments = Segments::new(cpu, &[rows])?;
        let first = self.blocks[0].0[0].norm.scale.len();
        let mut wide = cpu.alloc(rows, first)?;
        cpu.conv1d(
            &x,
            &Segments::new(cpu, &[x.rows()])?,
            &self.tdnn,
            self.tdnn_geom,
            None,
            Epilogue::Act(Act::Relu),
            &mut wide,
            &segments,
        )?;
        for (layers, transit) in &self.blocks {
            let full = transit.norm.scale.len();
            let mut grown = cpu.alloc(rows, full)?;
            paste(&wide, &mut grown, 0);
            let mut width = wide.cols();
            for layer in layers {
                let y = layer.forward(cpu, &self.config, &grown, &segments)?;
                paste(&y, &mut grown, width);
                width += layer.growth;
            }
            let mut normed = cpu.alloc(rows, full)?;
            cpu.scale_shift_relu(
                &grown,
                &transit.norm.scale,
                &transit.norm.shift,
                &mut normed,
            );
            wide = cpu.alloc(rows, transit.width)?;
            cpu.linear(&normed, &transit.linear, Epilogue::None, &mut wide)?;
        }
        wide.data_mut().iter_mut().for_each(|v| *v = v.max(0.0));
        trace.record(cpu, "speaker.frames", &wide)?;
        self.embed(cpu, &wide)
    }

    /// Mean and unbiased deviation over time, then the linear layer and its batch norm.
    fn embed(&self, cpu: &Cpu, x: &Tensor<Cpu>) -> Result<Vec<f32>> {
        assert!(x.rows() >= 2, "speaker encoder: {} rows to pool", x.rows());
        let (rows, cols) = x.shape();
        let mut stats = vec![0.0f32; 2 * cols];
        for c in 0..cols {
            let column = || x.data().iter().skip(c).step_by(cols).map(|&v| f64::from(v));
            let mean = column().sum::<f64>() / rows as f64;
            let squares = column().map(|v| (v - mean).powi(2)).sum::<f64>();
            stats[c] = mean as f32;
            stats[cols + c] = (squares / (rows - 1) as f64).sqrt() as f32;
        }
        let stats = cpu.tensor(1, 2 * cols, &stats)?;
        let mut out = cpu.alloc(1, self.config.embedding)?;
        cpu.linear(&stats, &self.dense, Epilogue::None, &mut out)?;
        let ScaleShift { scale, shift } = &self.out_norm;
        Ok((out.data().iter().zip(scale).zip(shift))
            .map(|((v, a), b)| v * a + b)
            .collect())
    }
}

impl Head {
    fn load(cpu: &Cpu, scope: &Scope<'_>, config: &SpeakerConfig) -> Result<Self> {
        let conv = |scope: &Scope<'_>, inputs: usize, stride: usize| {
            let [out, _, kf, kt] = dims(scope, "weight");
            let weight = scope.weight("weight", &[out, inputs, kf, kt]);
            let bias = scope.optional("bias", &[out]);
            Ok::<_, crate::backend::BackendError>((
                cpu.pack_conv2d(&weight, bias.as_ref(), stride)?,
                out,
            ))
        };
        let (first, mut channels) = conv(&scope.at("conv1"), 1, 1)?;
        let mut stages = Vec::new();
        for (i, strides) in config.head_strides.iter().enumerate() {
            for (j, &stride) in strides.iter().enumerate() {
                let at = scope.at(format!("layer{}", i + 1)).at(j);
                let (conv1, width) = conv(&at.at("conv1"), channels, stride)?;
                let (conv2, out) = conv(&at.at("conv2"), width, 1)?;
                let shortcut = at.at("shortcut.0");
                let shortcut = match shortcut.has("weight") {
                    true => Some(conv(&shortcut, channels, stride)?.0),
                    false => None,
                };
                channels = out;
                stages.push(Residual {
                    conv1,
                    conv2,
                    shortcut,
                });
            }
        }
        let (last, channels) = conv(&scope.at("conv2"), channels, config.head_out_stride)?;
        Ok(Self {
            first,
            stages,
            last,
            channels,
        })
    }

    fn forward(&self, cpu: &Cpu, x: Tensor<Cpu>) -> Result<Tensor<Cpu>> {
        let relu = |v: &mut f32| *v = v.max(0.0);
        let conv = |x: &Tensor<Cpu>, w: &CpuConv2d, act: fn(&mut f32)| {
            let mut out = cpu.alloc(x.rows(), w.output_cols(x.cols()))?;
            cpu.conv2d(x, w, act, &mut out)?;
            Ok::<_, crate::backend::BackendError>(out)
        };
        let mut x = conv(&x, &self.first, relu)?;
        for block in &self.stages {
            let y = conv(&x, &block.conv1, relu)?;
            let mut y = conv(&y, &block.conv2, |_| ())?;
            let skip = match &block.shortcut {
                Some(shortcut) => conv(&x, shortcut, |_| ())?,
                None => x,
            };
            cpu.axpby(1.0, &skip, 1.0, &mut y)?;
            y.data_mut().iter_mut().for_each(relu);
            x = y;
        }
        let x = conv(&x, &self.last, relu)?;
        // The weights that follow count frequencies inside channels.
        let (rows, cols) = x.shape();
        let freqs = cols / self.channels;
        let mut out = cpu.alloc(rows, cols)?;
        let pairs = out.data_mut().chunks_exact_mut(cols).zip(0..rows);
        for (to, t) in pairs {
            let from = &x.data()[t * cols..(t + 1) * cols];
            for (i, v) in to.iter_mut().enumerate() {
                *v = from[i % freqs * self.channels + i / freqs];
            }
        }
        Ok(out)
    }
}

impl DenseLayer {
    fn load(cpu: &Cpu, scope: &Scope<'_>, width: usize, dilation: usize, eps: f32) -> Result<Self> {
        let [bottleneck_width, ..] = dims::<3>(&scope.at("linear1"), "weight");
        let cam = scope.at("cam_layer");
        let [growth, _, kernel] = dims(&cam, "linear_local.weight");
        let [squeeze_width, ..] = dims::<3>(&cam, "linear1.weight");
        let local = cam.weight("linear_local.weight", &[growth, bottleneck_width, kernel]);
        Ok(Self {
            norm: ScaleShift::load(&scope.at("nonlinear1.batchnorm"), width, eps),
            bottleneck: pointwise(cpu, &scope.at("linear1"), bottleneck_width, width)?,
            bottleneck_width,
            local: cpu.pack_conv1d(
                &local,
                cam.optional("linear_local.bias", &[growth]).as_ref(),
                1,
                Fidelity::Usual,
            )?,
            local_geom: ConvGeom::same(kernel, dilation),
            growth,
            squeeze: pointwise(cpu, &cam.at("linear1"), squeeze_width, bottleneck_width)?,
            squeeze_width,
            excite: pointwise(cpu, &cam.at("linear2"), growth, squeeze_width)?,
        })
    }

    /// The new channels `[T, growth]` from the columns that there are so far.
    fn forward(
        &self,
        cpu: &Cpu,
        config: &SpeakerConfig,
        x: &Tensor<Cpu>,
        segments: &Segments<Cpu>,
    ) -> Result<Tensor<Cpu>> {
        let rows = x.rows();
        let mut normed = cpu.alloc(rows, self.norm.scale.len())?;
        cpu.scale_shift_relu(x, &self.norm.scale, &self.norm.shift, &mut normed);
        let mut h = cpu.alloc(rows, self.bottleneck_width)?;
        cpu.linear(&normed, &self.bottleneck, Epilogue::Act(Act::Relu), &mut h)?;
        let mut y = cpu.alloc(rows, self.growth)?;
        cpu.conv1d(
            &h,
            segments,
            &self.local,
            self.local_geom,
            None,
            Epilogue::None,
            &mut y,
            segments,
        )?;
        let context = context(&h, config.segment, config.count_include_pad);
        let count = context.len() / self.bottleneck_width;
        let context = cpu.tensor(count, self.bottleneck_width, &context)?;
        let mut squeezed = cpu.alloc(count, self.squeeze_width)?;
        cpu.linear(
            &context,
            &self.squeeze,
            Epilogue::Act(Act::Relu),
            &mut squeezed,
        )?;
        let mut mask = cpu.alloc(count, self.growth)?;
        cpu.linear(
            &squeezed,
            &self.excite,
            Epilogue::Act(Act::Sigmoid),
            &mut mask,
        )?;
        let masks = mask.data().chunks_exact(self.growth);
        let segments = y.data_mut().chunks_mut(config.segment * self.growth);
        for (segment, mask) in segments.zip(masks) {
            for row in segment.chunks_exact_mut(self.growth) {
                row.iter_mut().zip(mask).for_each(|(v, m)| *v *= m);
            }
        }
        Ok(y)
    }
}

/// Mean over all rows plus mean over each segment, one row per segment. PyTorch divides the sum of the shorter last segment by
/// its own length; onnxruntime divides by the full one where the graph counts padding.
fn context(x: &Tensor<Cpu>, segment: usize, count_include_pad: bool) -> Vec<f32> {
    let (rows, cols) = x.shape();
    let sums: Vec<(usize, Vec<f64>)> = x
        .data()
        .chunks(segment * cols)
        .map(|part| {
            let mut sum = vec![0.0; cols];
            for row in part.chunks_exact(cols) {
                sum.iter_mut()
                    .zip(row)
                    .for_each(|(s, &v)| *s += f64::from(v));
            }
            (part.len() / cols, sum)
        })
        .collect();
    let mean = |c: usize| sums.iter().map(|(_, s)| s[c]).sum::<f64>() / rows as f64;
    let mean: Vec<f64> = (0..cols).map(mean).collect();
    let mut out = Vec::with_capacity(sums.len() * cols);
    for (length, sum) in &sums {
        let count = if count_include_pad { segment } else { *length };
        let row = sum.iter().zip(&mean);
        out.extend(row.map(|(s, m)| (s / count as f64 + m) as f32));
    }
    out
}

impl Transition {
    fn load(cpu: &Cpu, scope: &Scope<'_>, inputs: usize, eps: f32) -> Result<Self> {
        let [width, ..] = dims::<3>(&scope.at("linear"), "weight");
        Ok(Self {
            norm: ScaleShift::load(&scope.at("nonlinear.batchnorm"), inputs, eps),
            linear: pointwise(cpu, &scope.at("linear"), width, inputs)?,
            width,
        })
    }
}

impl ScaleShift {
    fn load(scope: &Scope<'_>, size: usize, eps: f32) -> Self {
        let mean = scope.weight("running_mean", &[size]);
        let var = scope.weight("running_var", &[size]);
        let affine = |name: &str| {
            scope
                .optional(name, &[size])
                .map(|w| w.to_f32().into_owned())
        };
        let (weight, bias) = (affine("weight"), affine("bias"));
        let (mut scale, mut shift) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for (c, (m, v)) in mean.to_f32().iter().zip(var.to_f32().iter()).enumerate() {
            let w = weight.as_ref().map_or(1.0, |w| w[c]);
            let a = w / (v + eps).sqrt();
            scale.push(a);
            shift.push(bias.as_ref().map_or(0.0, |b| b[c]) - m * a);
        }
        Self { scale, shift }
    }
}

/// A convolution of kernel 1 as a linear layer.
fn pointwise(cpu: &Cpu, scope: &Scope<'_>, out: usize, inputs: usize) -> Result<CpuLinear> {
    let mut weight = scope.weight("weight", &[out, inputs, 1]);
    weight.shape.truncate(2);
    cpu.pack_linear(&weight, scope.optional("bias", &[out]).as_ref())
}

/// Writes `x` into the columns of `out` from `first` on.
fn paste(x: &Tensor<Cpu>, out: &mut Tensor<Cpu>, first: usize) {
    let (cols, width) = (out.cols(), x.cols());
    let rows = x.data().chunks_exact(width);
    for (to, from) in out.data_mut().chunks_exact_mut(cols).zip(rows) {
        to[first..first + width].copy_from_slice(from);
    }
}

/// Shape of a weight; ones where it is missing or of another rank, which loading then reports.
fn dims<const N: usize>(scope: &Scope<'_>, name: &str) -> [usize; N] {
    let shape = scope.shape(name).unwrap_or_default();
    <[usize; N]>::try_from(shape).map_or([1; N], |s| s.map(|d| d.max(1)))
}
