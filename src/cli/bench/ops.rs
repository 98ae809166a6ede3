//! Single operations at the dims of a checkpoint, other than linear layers (see `products`): what each has to read, write and compute.
//!
//! The cases are the launches that take most of the time of each stage, and those that stream activations. Bytes are the least that memory has to
//! move: every operand once.

use std::io::Write;

use super::{Bench, median_seconds};
use crate::backend::{
    Act, AttnPlan, Backend, ConvGeom, Epilogue, Fidelity, Mask, Masks, PlanSequence, Result,
    SampleRow, SineSource, SourceNoise, Uniforms, Weight,
};
use crate::model::config::{HiftConfig, LlmConfig, ModelConfig};
use crate::tensor::{Segments, Tensor};

/// Positions that a decoding sequence looks back on: ten seconds of speech and their text.
const CONTEXT: usize = 400;
/// Positions of a prompt.
const PROMPT: usize = 150;
const PAGE_SIZE: usize = 16;
/// Mel frames of an utterance: five seconds.
const FRAMES: usize = 250;
const SEQUENCES: [usize; 3] = [1, 16, 64];
const UTTERANCES: [usize; 2] = [1, 8];
/// Calls between two waits for the device.
const CALLS: usize = 10;

/// One operation, ready to run again and again.
pub struct Case<'a> {
    pub name: String,
    /// Multiply-adds count two.
    pub flop: f64,
    /// Read and written.
    pub bytes: f64,
    pub run: &'a mut dyn FnMut() -> Result<()>,
}

/// Where cases are made, and who gets them.
struct Maker<'a, B: Backend> {
    backend: &'a B,
    /// Bytes of a stored activation, and of a number in the language model's cache.
    value: f64,
    cached: f64,
    visit: &'a mut dyn FnMut(Case<'_>) -> anyhow::Result<()>,
}

/// Makes every case, one after the other. `value_bytes` are those of a stored activation, `cached_bytes` those of a number in the language model's cache.
///
/// # Errors
/// Those of `visit`, or what the device reports.
pub fn each<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    (value_bytes, cached_bytes): (usize, usize),
    visit: &mut dyn FnMut(Case<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut maker = Maker {
        backend,
        value: value_bytes as f64,
        cached: cached_bytes as f64,
        visit,
    };
    for n in SEQUENCES {
        maker.paged_attention(&config.llm, n, CONTEXT, 1)?;
    }
    maker.paged_attention(&config.llm, 1, 0, PROMPT)?;
    for n in SEQUENCES {
        maker.rms_norm(&config.llm, n)?;
        maker.sampling(&config.llm, n)?;
    }
    for n in UTTERANCES {
        maker.flow(config, n)?;
    }
    for n in UTTERANCES {
        maker.resblocks(&config.hift, n)?;
        maker.upsampling(&config.hift, n)?;
        maker.transforms(&config.hift, n)?;
    }
    Ok(())
}

/// Prints a table.
pub(super) fn run<B: Backend>(bench: &Bench<'_, B>, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "\n| operation | µs | GB/s | % of reads | TFLOP/s | % of products |\n|---|---:|---:|---:|---:|---:|"
    )?;
    let (backend, config) = (bench.backend, bench.checkpoint.config());
    let bytes = (bench.bytes_per_value, bench.bytes_per_cached);
    each(backend, config, bytes, &mut |case| {
        let seconds = median_seconds(backend, bench.args.rounds, || {
            (0..CALLS).try_for_each(|_| (case.run)())
        })? / CALLS as f64;
        writeln!(
            out,
            "| {} | {:.1} | {:.0} | {:.0} | {:.2} | {:.0} |",
            case.name,
            seconds * 1e6,
            case.bytes / seconds / 1e9,
            100.0 * case.bytes / seconds / bench.limits.read_bytes_per_s,
            case.flop / seconds / 1e12,
            100.0 * case.flop / seconds / bench.limits.flops_per_s,
        )?;
        Ok(())
    })
}

/// Values in `[-1, 1)` that look random.
fn values(count: usize) -> Vec<f32> {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

impl<B: Backend> Maker<'_, B> {
    /// An activation with values.
    fn filled(&self, rows: usize, cols: usize) -> Result<Tensor<B>> {
        let mut t = self.backend.alloc(rows, cols)?;
        self.backend.upload(&values(rows * cols), &mut t)?;
        Ok(t)
    }

    fn signal(&self, rows: usize, cols: usize) -> Result<Tensor<B>> {
        let mut t = self.backend.alloc_signal(rows, cols)?;
        self.backend.upload(&values(rows * cols), &mut t)?;
        Ok(t)
    }

    fn case(
        &mut self,
        name: String,
        flop: f64,
        bytes: f64,
        run: &mut dyn FnMut() -> Result<()>,
    ) -> anyhow::Result<()> {
        (self.visit)(Case {
            name,
            flop,
            bytes,
            run,
        })
    }

    /// Rotation and storing, then attention, of `n` sequences.
    fn paged_attention(
        &mut self,
        c: &LlmConfig,
        n: usize,
        context: usize,
        new: usize,
    ) -> anyhow::Result<()> {
        let b = self.backend;
        let each = (context + new).div_ceil(PAGE_SIZE);
        let shape = crate::backend::KvShape {
            layers: 1,
            pages: n * each,
            page_size: PAGE_SIZE,
            kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
        };
        let mut kv = b.alloc_kv(shape)?;
        let pages: Vec<u32> = (0..shape.pages as u32).collect();
        let sequences: Vec<_> = pages
            .chunks(each)
            .map(|pages| PlanSequence {
                context,
                new,
                pages,
            })
            .collect();
        let plan = AttnPlan::new(b, PAGE_SIZE, &sequences)?;
        let (q_cols, kv_cols) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        let rows = n * new;
        let qkv = self.filled(rows, q_cols + 2 * kv_cols)?;
        let (mut q, mut out) = (b.alloc(rows, q_cols)?, b.alloc(rows, q_cols)?);
        let what = format!("{n} x {new} rows after {context}");
        let moved = (2 * rows * (q_cols + kv_cols)) as f64 * self.value
            + (2 * rows * kv_cols) as f64 * self.cached;
        self.case(format!("rope, kv store, {what}"), 0.0, moved, &mut || {
            b.rope_store_kv(&qkv, &plan, c.rope_theta, &mut kv, 0, &mut q)
        })?;
        // A row sees what came before it and itself.
        let seen = (n * (new * context + new * (new + 1) / 2)) as f64;
        let kept = (n * (context + new) * 2 * kv_cols) as f64 * self.cached;
        self.case(
            format!("paged attention, {what}"),
            4.0 * seen * q_cols as f64,
            kept + (2 * rows * q_cols) as f64 * self.value,
            &mut || b.paged_attention(&q, &kv, 0, &plan, &mut out),
        )
    }

    fn rms_norm(&mut self, c: &LlmConfig, n: usize) -> anyhow::Result<()> {
        let (b, d) = (self.backend, c.hidden_size);
        let x = b.tensor(n, d, &values(n * d))?;
        let w = b.tensor(1, d, &values(d))?;
        let mut out = b.alloc(n, d)?;
        let bytes = (n * d) as f64 * (4.0 + self.value);
        self.case(format!("rms norm, {n} x {d}"), 0.0, bytes, &mut || {
            b.rms_norm(&x, None, &w, c.rms_norm_eps, &mut out)
        })
    }

    fn sampling(&mut self, c: &LlmConfig, n: usize) -> anyhow::Result<()> {
        let (b, v) = (self.backend, c.speech_vocab_size);
        let logits: Vec<f32> = values(n * v).iter().map(|x| 8.0 * x).collect();
        let logits = b.tensor(n, v, &logits)?;
        let history = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let rows: Vec<_> = (0..n as u64)
            .map(|seed| SampleRow {
                params: c.sampling,
                uniforms: Uniforms::Philox { seed, step: 0 },
                history: &history,
                ahead: false,
                forbidden: None,
            })
            .collect();
        let mut ids = b.ids(&vec![0; n])?;
        let bytes = (n * v * 4) as f64;
        self.case(
            format!("sampling with its read back, {n} x {v}"),
            0.0,
            bytes,
            &mut || b.sample(&logits, &rows, &mut ids).map(|_| ()),
        )
    }

    /// What the flow's estimator does beside linear layers, for both rows of the guidance of `n` utterances.
    fn flow(&mut self, config: &ModelConfig, n: usize) -> anyhow::Result<()> {
        let (b, e) = (self.backend, &config.flow.estimator);
        let c = e.channels.first().copied().unwrap_or(1);
        let inner = e.num_heads * e.attention_head_dim;
        let (sequences, rows) = (2 * n, 2 * n * FRAMES);
        let segments = Segments::new(b, &vec![FRAMES; sequences])?;
        let masks = Masks::uniform(b, Mask::Full, sequences)?;
        let qkv = self.filled(rows, 3 * inner)?;
        let mut attended = b.alloc(rows, inner)?;
        let pairs = (sequences * FRAMES * FRAMES) as f64;
        self.case(
            format!("flow attention, {sequences} x {FRAMES} rows"),
            4.0 * pairs * inner as f64,
            (rows * 4 * inner) as f64 * self.value,
            &mut || {
                let (heads, all) = (e.num_heads, &segments);
                b.attention(&qkv, heads, all, all, None, &masks, &mut attended)
            },
        )?;
        let x = self.filled(rows, c)?;
        let (w, bias) = (
            b.tensor(1, c, &values(c))?,
            b.tensor(1, c, &values(2 * c)[c..])?,
        );
        let mut out = b.alloc(rows, c)?;
        self.case(
            format!("layer norm and mish, {rows} x {c}"),
            0.0,
            (2 * rows * c) as f64 * self.value,
            &mut || b.layer_norm(&x, &w, &bias, 1e-5, 1.0, Some(Act::Mish), &mut out),
        )?;
        let weight = Weight::f32(&[c, c, 3], values(c * c * 3));
        let conv = b.pack_conv1d(&weight, None, 1, Fidelity::Usual)?;
        let geom = ConvGeom::causal(3, 1);
        self.case(
            format!("flow convolution of 3, {rows} x {c}"),
            (2 * rows * c * c * 3) as f64,
            (2 * rows * c + c * c * 3) as f64 * self.value,
            &mut || {
                let ep = Epilogue::None;
                b.conv1d(&x, &segments, &conv, geom, None, ep, &mut out, &segments)
            },
        )
    }

    /// The longest kernel of each stage's residual blocks.
    fn resblocks(&mut self, c: &HiftConfig, n: usize) -> anyhow::Result<()> {
        let b = self.backend;
        let Some((&kernel, dilations)) =
            (c.resblock_kernel_sizes.last()).zip(c.resblock_dilation_sizes.last())
        else {
            return Ok(());
        };
        let dilation = dilations.last().copied().unwrap_or(1);
        let mut frames = FRAMES;
        for (i, rate) in c.upsample_rates.iter().enumerate() {
            frames *= rate;
            let (rows, channels) = (n * frames, c.base_channels >> (i + 1));
            let segments = Segments::new(b, &vec![frames; n])?;
            let x = self.signal(rows, channels)?;
            let mut out = b.alloc_signal(rows, channels)?;
            let alpha = b.tensor(1, channels, &vec![1.0; channels])?;
            let weight = Weight::f32(
                &[channels, channels, kernel],
                values(channels * channels * kernel),
            );
            let conv = b.pack_conv1d(&weight, None, 1, Fidelity::Signal)?;
            let geom = ConvGeom::same(kernel, dilation);
            self.case(
                format!("vocoder convolution of {kernel}, snake before, {rows} x {channels}"),
                (2 * rows * channels * channels * kernel) as f64,
                (2 * rows * channels + channels * channels * kernel) as f64 * self.value,
                &mut || {
                    let pre = Some(Act::Snake(&alpha));
                    let ep = Epilogue::None;
                    b.conv1d(&x, &segments, &conv, geom, pre, ep, &mut out, &segments)
                },
            )?;
        }
        Ok(())
    }

    /// The first transposed convolution.
    fn upsampling(&mut self, c: &HiftConfig, n: usize) -> anyhow::Result<()> {
        let b = self.backend;
        let Some((&rate, &kernel)) =
            (c.upsample_rates.first()).zip(c.upsample_kernel_sizes.first())
        else {
            return Ok(());
        };
        let (input, output) = (c.base_channels, c.base_channels / 2);
        let weight = Weight::f32(&[input, output, kernel], values(input * output * kernel));
        let padding = (kernel - rate) / 2;
        let conv = b.pack_conv_transpose1d(&weight, None, rate, padding)?;
        let rows = |t: usize| (t - 1) * rate + kernel - 2 * padding;
        let (from, to) = (
            Segments::new(b, &vec![FRAMES; n])?,
            Segments::new(b, &vec![rows(FRAMES); n])?,
        );
        let x = self.signal(from.total(), input)?;
        let mut out = b.alloc_signal(to.total(), output)?;
        self.case(
            format!("vocoder upsampling by {rate}, {} x {input}", from.total()),
            (2 * from.total() * input * output * kernel) as f64,
            (from.total() * input + to.total() * output + input * output * kernel) as f64
                * self.value,
            &mut || {
                let pre = Some(Act::LeakyRelu(c.lrelu_slope));
                b.conv_transpose1d(&x, &from, &conv, pre, Epilogue::None, &mut out, &to)
            },
        )
    }

    /// Source, spectrum and waveform.
    fn transforms(&mut self, c: &HiftConfig, n: usize) -> anyhow::Result<()> {
        let (b, up, harmonics) = (self.backend, c.samples_per_frame(), c.nb_harmonics + 1);
        let (frames, samples) = (
            Segments::new(b, &vec![FRAMES; n])?,
            Segments::new(b, &vec![FRAMES * up; n])?,
        );
        let f0: Vec<f32> = values(n * FRAMES)
            .iter()
            .map(|v| 200.0 + 80.0 * v)
            .collect();
        let f0 = b.tensor(n * FRAMES, 1, &f0)?;
        let (w, bias) = (
            b.tensor(1, harmonics, &values(harmonics))?,
            b.tensor(1, 1, &[0.0])?,
        );
        let mut source = b.alloc_f32(samples.total(), 1)?;
        let params = SineSource {
            upsample: up,
            sample_rate_hz: c.sampling_rate as f32,
            harmonics,
            sine_amp: c.nsf_alpha,
            noise_std: c.nsf_sigma,
            voiced_threshold_hz: c.nsf_voiced_threshold,
        };
        let (seeds, first_samples) = (vec![1; n], vec![0; n]);
        let total = samples.total();
        self.case(
            format!("harmonic source, {total} samples"),
            0.0,
            (4 * total) as f64,
            &mut || {
                let noise = SourceNoise::Philox {
                    seeds: &seeds,
                    first_samples: &first_samples,
                };
                b.sine_source(&f0, &frames, &params, noise, &w, &bias, &mut source)
            },
        )?;
        let (n_fft, hop) = (c.istft_n_fft, c.istft_hop_len);
        let rows = Segments::new(b, &vec![FRAMES * up / hop + 1; n])?;
        let mut spectrum = b.alloc_signal(rows.total(), n_fft + 2)?;
        let bytes = (4 * total) as f64;
        let coefficients = (rows.total() * (n_fft + 2)) as f64;
        self.case(
            format!("stft, {total} samples"),
            0.0,
            bytes + coefficients * self.value,
            &mut || b.stft(&source, &samples, n_fft, hop, &mut spectrum, &rows),
        )?;
        let head = b.tensor(rows.total(), n_fft + 2, &values(rows.total() * (n_fft + 2)))?;
        let mut wave = b.alloc_f32(total, 1)?;
        self.case(
            format!("inverse stft, {total} samples"),
            0.0,
            bytes + coefficients * 4.0,
            &mut || {
                let limit = c.audio_limit;
                b.istft_head(&head, &rows, n_fft, hop, limit, &mut wave, &samples)
            },
        )
    }
}
