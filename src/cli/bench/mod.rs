//! `bench`: tokens per second and real-time factors of a checkpoint, or of the official dims with random weights, beside
//! the machine's own limits measured in the same run.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use super::model::{Weights, resolve_model_dir};
use crate::backend::{Backend, Result};
use crate::checkpoint::Checkpoint;
use crate::cpu::{Cpu, CpuOptions, Peaks};
use crate::cuda::{Cuda, CudaOptions, PeakWork};
use crate::engine::{self, Device, EngineOptions};
use crate::model::config::ModelConfig;
use crate::tensor::Trace;

mod cost;
mod flow;
mod llm;
pub mod ops;
mod pipeline;
mod products;
mod roofline;
mod vocoder;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder.
    #[arg(long, env = "MODEL_DIR", value_name = "DIR")]
    model: Option<PathBuf>,
    /// Random weights of known dims instead of a checkpoint: cosyvoice2-0.5b.
    #[arg(long, value_name = "PRESET", conflicts_with = "model")]
    random: Option<String>,
    /// `cpu`, or one GPU: `cuda` or `cuda:N`.
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Only measure the machine: memory reads, and multiply-adds per precision.
    #[arg(long)]
    peaks: bool,
    /// Only compute what every stage costs at least on a GPU: launches, bytes, operations, and the time they take on an H100.
    #[arg(long)]
    roofline: bool,
    /// Linear layers by themselves instead of whole stages.
    #[arg(long)]
    products: bool,
    /// Single operations other than linear layers instead of whole stages.
    #[arg(long, conflicts_with = "products")]
    ops: bool,
    /// Whole utterances through the engine instead of single stages: offline (`--batch`), streamed (`--streams`), arriving at random (`--arrivals`).
    #[arg(long)]
    pipeline: bool,
    /// CPU threads; 0 = one per core.
    #[arg(long, env = "THREADS", default_value_t = 0)]
    threads: usize,
    /// Precisions of the weights to measure on the CPU; with `--pipeline` the first.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Weights::F32, Weights::Bf16, Weights::Int8])]
    weights: Vec<Weights>,
    /// Sequences that decode together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    batch: Vec<usize>,
    /// Utterances that flow and vocoder work on together.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    utterances: Vec<usize>,
    /// Streaming clients of `--pipeline`.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4])]
    streams: Vec<usize>,
    /// Requests per second of `--pipeline` that arrive at random.
    #[arg(long, value_delimiter = ',')]
    arrivals: Vec<f64>,
    /// For how many seconds they arrive.
    #[arg(long, default_value_t = 20.0)]
    arrival_seconds: f64,
    /// Seconds of audio of an utterance.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What the machine can do at most.
#[derive(Clone, Copy)]
struct Limits {
    read_bytes_per_s: f64,
    flops_per_s: f64,
    /// Of linear layers with weights as they are stored.
    product_flops_per_s: f64,
}

/// Limits measured anew beside what is timed.
#[derive(Clone, Copy)]
struct Now<'a> {
    read_bytes_per_s: &'a dyn Fn() -> f64,
    /// Of linear layers with weights as they are stored.
    product_flops_per_s: &'a dyn Fn() -> f64,
}

/// What every stage's benchmark needs.
struct Bench<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    backend: &'a B,
    limits: Limits,
    /// Of a stored weight of a linear layer, of a stored activation, and of a number in the language model's cache.
    bytes_per_weight: usize,
    bytes_per_value: usize,
    bytes_per_cached: usize,
    /// The limits as they are now, where what else the host does changes them from minute to minute.
    now: Option<Now<'a>>,
    args: &'a Args,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    check(&args)?;
    let mut out = std::io::stdout().lock();
    if args.roofline {
        roofline::run(open(&args)?.config(), args.seconds, &mut out)?;
        return Ok(());
    }
    match &args.device {
        Device::Cpu => on_cpu(&args, &mut out),
        Device::Cuda(ordinals) if ordinals.len() == 1 => on_cuda(&args, ordinals[0], &mut out),
        other => anyhow::bail!("--device: {other} is not cpu or one GPU"),
    }
}

fn check(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.rounds > 0, "--rounds must be at least 1");
    let counts = [
        ("--batch", &args.batch),
        ("--utterances", &args.utterances),
        ("--streams", &args.streams),
    ];
    for (name, list) in counts {
        anyhow::ensure!(list.iter().all(|&n| n > 0), "{name} must be at least 1");
    }
    anyhow::ensure!(!args.weights.is_empty(), "--weights needs a precision");
    let sound = |s: f64| s.is_finite() && (0.1..=120.0).contains(&s);
    anyhow::ensure!(sound(args.seconds), "--seconds must be 0.1 to 120");
    anyhow::ensure!(
        sound(args.arrival_seconds),
        "--arrival-seconds must be 0.1 to 120"
    );
    Ok(())
}

fn on_cpu(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let machine = Cpu::new(options(args, Weights::F32));
    let peaks = machine.measure_peaks()?;
    print_peaks(out, &machine, &peaks)?;
    if args.peaks {
        return Ok(());
    }
    if args.pipeline {
        let options = options(args, args.weights[0]);
        return pipeline(args, move || Cpu::new(options), out);
    }
    let checkpoint = open(args)?;
    let reads = machine.reads()?;
    for &weights in &args.weights {
        let backend = Cpu::new(options(args, weights));
        writeln!(out, "\nweights in {weights:?}")?;
        let bench = Bench {
            checkpoint: &checkpoint,
            backend: &backend,
            limits: Limits {
                read_bytes_per_s: peaks.read_bytes_per_s,
                flops_per_s: peaks.f32_flops_per_s,
                product_flops_per_s: match weights {
                    Weights::F32 => peaks.f32_flops_per_s,
                    Weights::Bf16 => peaks.bf16_flops_per_s,
                    Weights::Int8 => peaks.int8_flops_per_s,
                },
            },
            bytes_per_weight: weights.bytes(),
            bytes_per_value: size_of::<f32>(),
            bytes_per_cached: backend.options().weights.bytes_of_cached(),
            now: Some(Now {
                read_bytes_per_s: &|| reads.bytes_per_s(),
                product_flops_per_s: &|| machine.product_flops_per_s(weights.into()),
            }),
            args,
        };
        stages(&bench, out)?;
    }
    Ok(())
}

fn on_cuda(args: &Args, ordinal: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let options = CudaOptions {
        ordinal,
        ..CudaOptions::default()
    };
    let backend = Cuda::open(options)?;
    let peaks = backend.measure_peaks(PeakWork::default())?;
    writeln!(
        out,
        "{}: reads {:.0} GB/s; bf16 products by mma.sync {:.0} TFLOP/s",
        backend.describe()?,
        peaks.read_bytes_per_s / 1e9,
        peaks.mma_flops_per_s / 1e12,
    )?;
    if args.peaks {
        return Ok(());
    }
    if args.pipeline {
        return pipeline(args, move || backend, out);
    }
    let bench = Bench {
        checkpoint: &open(args)?,
        backend: &backend,
        limits: Limits {
            read_bytes_per_s: peaks.read_bytes_per_s,
            flops_per_s: peaks.mma_flops_per_s,
            product_flops_per_s: peaks.mma_flops_per_s,
        },
        bytes_per_weight: Weights::Bf16.bytes(),
        bytes_per_value: Weights::Bf16.bytes(),
        bytes_per_cached: Weights::Bf16.bytes(),
        now: None,
        args,
    };
    stages(&bench, out)
}

/// Every stage by itself.
fn stages<B: Backend>(bench: &Bench<'_, B>, out: &mut impl Write) -> anyhow::Result<()> {
    if bench.args.products {
        return products::run(bench, out);
    }
    if bench.args.ops {
        return ops::run(bench, out);
    }
    let tokens_per_s = llm::run(bench, out)?;
    let flow_s = flow::run(bench, out)?;
    let vocoder_s = vocoder::run(bench, out)?;
    let seconds = bench.args.seconds;
    let llm_s = seconds * bench.checkpoint.config().token_frame_rate as f64 / tokens_per_s;
    let total = llm_s + flow_s + vocoder_s;
    writeln!(
        out,
        "one stream, {seconds:.1} s of audio: llm {llm_s:.3} s + flow {flow_s:.3} s + vocoder {vocoder_s:.3} s = {total:.3} s, {:.2}x real time",
        seconds / total
    )?;
    Ok(())
}

/// Whole utterances.
fn pipeline<B: Backend>(
    args: &Args,
    make: impl FnOnce() -> B + Send + 'static,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let checkpoint = open(args)?;
    let config = checkpoint.config().clone();
    let options = EngineOptions {
        kv_positions: 64 * 1024,
        ..EngineOptions::default()
    };
    let engine = engine::start(checkpoint, make, options, Arc::new(Trace::off()))?;
    pipeline::run(&engine, &config, args, out)
}

fn options(args: &Args, weights: Weights) -> CpuOptions {
    CpuOptions {
        threads: args.threads,
        weights: weights.into(),
    }
}

fn open(args: &Args) -> anyhow::Result<Checkpoint> {
    match &args.random {
        Some(preset) => {
            let config = ModelConfig::preset(preset)
                .with_context(|| format!("--random: there is no preset '{preset}'"))?;
            Ok(Checkpoint::random(config, 7))
        }
        None => Ok(Checkpoint::open(resolve_model_dir(args.model.as_deref())?)?),
    }
}

fn print_peaks(out: &mut impl Write, cpu: &Cpu, peaks: &Peaks) -> std::io::Result<()> {
    writeln!(
        out,
        "{} threads: reads {:.1} GB/s; multiply-adds f32 {:.0}, bf16 {:.0}, int8 {:.0} GFLOP/s",
        cpu.options().threads,
        peaks.read_bytes_per_s / 1e9,
        peaks.f32_flops_per_s / 1e9,
        peaks.bf16_flops_per_s / 1e9,
        peaks.int8_flops_per_s / 1e9,
    )
}

impl<B: Backend> Bench<'_, B> {
    /// Median seconds of one call, and what share of the products' limit so many operations in that time are, as text: of the limit at the start, and of that
    /// measured between the calls.
    fn seconds_and_share(
        &self,
        (rounds, flop): (usize, f64),
        call: impl FnMut() -> Result<()>,
    ) -> Result<(f64, String)> {
        let mut rates = Vec::new();
        let measure = || rates.extend(self.now.map(|now| (now.product_flops_per_s)()));
        let seconds = median_seconds_between(self.backend, rounds, call, measure)?;
        Ok((seconds, self.share_of_products(flop / seconds, rates)))
    }

    fn share_of_products(&self, flops_per_s: f64, between: Vec<f64>) -> String {
        let of = |limit: f64| 100.0 * flops_per_s / limit;
        let share = format!("{:.0} % of products", of(self.limits.product_flops_per_s));
        match between.is_empty() {
            true => share,
            false => format!("{share}, {:.0} % of those between", of(median(between))),
        }
    }
}

/// Median seconds of one call, after one that is not counted.
fn median_seconds<B: Backend>(
    backend: &B,
    rounds: usize,
    call: impl FnMut() -> Result<()>,
) -> Result<f64> {
    median_seconds_between(backend, rounds, call, || ())
}

/// The same with something else, which is not counted, before each call.
fn median_seconds_between<B: Backend>(
    backend: &B,
    rounds: usize,
    mut call: impl FnMut() -> Result<()>,
    mut before: impl FnMut(),
) -> Result<f64> {
    let mut call = || {
        call()?;
        backend.synchronize()
    };
    call()?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        before();
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
