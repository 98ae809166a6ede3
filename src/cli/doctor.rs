//! `doctor`: what this machine and model offer, and what would be used.

use std::io::Write;

use super::model::{ModelArgs, resolve_model_dir};
use crate::checkpoint::Checkpoint;
use crate::cpu::Isa;
use crate::engine::Device;

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "cosyvoice  {}", env!("CARGO_PKG_VERSION"))?;
    cpu(&mut out)?;
    writeln!(out, "gpu        {}", crate::cuda::describe())?;
    writeln!(out, "kernels    {}", crate::cuda::BUILD_INFO)?;
    device(&args.model.device, &mut out)?;
    match resolve_model_dir(args.model.model.as_deref()) {
        Ok(dir) => match Checkpoint::open(&dir) {
            Ok(checkpoint) => {
                let config = checkpoint.config();
                writeln!(
                    out,
                    "model      {}: LLM {} x {}, flow {} channels, {} Hz",
                    dir.display(),
                    config.llm.num_layers,
                    config.llm.hidden_size,
                    config.flow.estimator.channels.first().unwrap_or(&0),
                    config.sample_rate
                )?;
            }
            Err(error) => writeln!(out, "model      {}: unusable: {error}", dir.display())?,
        },
        Err(error) => writeln!(out, "model      none: {error}")?,
    }
    Ok(())
}

fn cpu(out: &mut impl Write) -> std::io::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    writeln!(
        out,
        "cpu        {cores} cores, kernels: {}, features: {}",
        Isa::detect().name(),
        cpu_features().join(" ")
    )
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! check {
        ($($name:tt)*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
    }
    check!("avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vnni" "avx512bf16");
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

/// Where the models would run with these flags, and why.
fn device(asked: &Device, out: &mut impl Write) -> std::io::Result<()> {
    let (chosen, reason) = asked.resolve();
    let reason = match reason {
        Some(reason) => format!(": {reason}"),
        None if chosen == *asked => " as asked for".to_owned(),
        None => ": the first GPU that works".to_owned(),
    };
    writeln!(out, "device     {chosen}{reason}")
}
