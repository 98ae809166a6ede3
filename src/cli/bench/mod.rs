//! `bench`: tokens per second and real-time factors of a checkpoint, or of the official dims with random weights, beside
//! the machine's own limits measured in the same run.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;

use super::model::{Weights, resolve_model_dir};
use crate::backend::{Backend, Result};
use crate::checkpoint::Checkpoint;
use crate::cpu::{Cpu, CpuOptions, Peaks};
use crate::model::config::ModelConfig;

mod cost;
mod flow;
mod llm;
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
    /// Only measure the machine: memory reads, and multiply-adds per precision.
    #[arg(long)]
    peaks: bool,
    /// Only compute what every stage costs at least on a GPU: launches, bytes, operations, and the time they take on an H100.
    #[arg(long)]
    roofline: bool,
    /// CPU threads; 0 = one per core.
    #[arg(long, env = "THREADS", default_value_t = 0)]
    threads: usize,
    /// Precisions of the weights to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Weights::F32, Weights::Bf16, Weights::Int8])]
    weights: Vec<Weights>,
    /// Sequences that decode together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    batch: Vec<usize>,
    /// Seconds of audio of flow and vocoder.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What every stage's benchmark needs.
struct Bench<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    backend: &'a B,
    peaks: Peaks,
    /// Of a stored weight of a linear layer.
    bytes_per_weight: usize,
    args: &'a Args,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.rounds > 0, "--rounds must be at least 1");
    anyhow::ensure!(
        args.batch.iter().all(|&b| b > 0),
        "--batch must be at least 1"
    );
    let sound = args.seconds.is_finite() && (0.1..=120.0).contains(&args.seconds);
    anyhow::ensure!(sound, "--seconds must be 0.1 to 120");
    let mut out = std::io::stdout().lock();
    if args.roofline {
        roofline::run(open(&args)?.config(), args.seconds, &mut out)?;
        return Ok(());
    }
    let machine = Cpu::new(options(&args, Weights::F32));
    let peaks = machine.measure_peaks()?;
    print_peaks(&mut out, &machine, &peaks)?;
    if args.peaks {
        return Ok(());
    }
    let checkpoint = open(&args)?;
    for &weights in &args.weights {
        let backend = Cpu::new(options(&args, weights));
        writeln!(out, "\nweights in {weights:?}")?;
        let bench = Bench {
            checkpoint: &checkpoint,
            backend: &backend,
            peaks,
            bytes_per_weight: weights.bytes(),
            args: &args,
        };
        let tokens_per_s = llm::run(&bench, &mut out)?;
        let flow_s = flow::run(&bench, &mut out)?;
        let vocoder_s = vocoder::run(&bench, &mut out)?;
        let llm_s = args.seconds * checkpoint.config().token_frame_rate as f64 / tokens_per_s;
        let total = llm_s + flow_s + vocoder_s;
        writeln!(
            out,
            "one stream, {:.1} s of audio: llm {llm_s:.2} s + flow {flow_s:.2} s + vocoder {vocoder_s:.2} s = {total:.2} s, {:.2}x real time",
            args.seconds,
            args.seconds / total
        )?;
    }
    Ok(())
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

/// Median seconds of one call, after one that is not counted.
fn median_seconds(rounds: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
