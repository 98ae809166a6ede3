//! The commands, one file each.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::settings::Flags;

mod batch;
pub mod bench;
mod convert;
mod doctor;
mod inspect;
mod model;
mod normalize;
mod output;
mod serve;
mod synth;
mod text;
mod voices;

/// CosyVoice2 text to speech: one binary, CPU or GPU.
#[derive(Parser)]
#[command(name = "cosyvoice", version, arg_required_else_help = true)]
struct Cli {
    /// What to log: error, warn, info, debug, trace, or a tracing filter.
    /// Without it LOG_LEVEL, else warn; `serve` says info.
    #[arg(long, global = true)]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the HTTP API and the web page.
    Serve(Flags),
    /// Speak a text into a file.
    Synth(synth::Args),
    /// Speak many texts of a JSONL or TSV file, several at a time.
    Batch(batch::Args),
    /// Add, list and remove voices.
    Voices(voices::Args),
    /// Show the modules, shapes, types and parameters of a checkpoint.
    Inspect(inspect::Args),
    /// Convert a checkpoint to one folder of safetensors files.
    Convert(convert::Args),
    /// Measure tokens per second and real-time factors, beside the machine's own limits.
    Bench(bench::Args),
    /// Show how texts are read: language, spoken form, segments and token counts.
    Normalize(normalize::Args),
    /// Say what this machine and model offer, and what would be used.
    Doctor(doctor::Args),
}

/// Parses the command line and runs the command.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let serves = matches!(cli.command, Command::Serve(_));
    // The server starts its own logs, once it has read its settings.
    if !serves && let Err(error) = init_logs(cli.log_level.as_deref()) {
        return fail(&error);
    }
    let result = match cli.command {
        Command::Serve(flags) => serve::run(flags, cli.log_level),
        Command::Synth(args) => synth::run(args),
        Command::Batch(args) => batch::run(args),
        Command::Voices(args) => voices::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Normalize(args) => normalize::run(&args),
        Command::Doctor(args) => doctor::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn init_logs(level: Option<&str>) -> anyhow::Result<()> {
    let env = std::env::var("LOG_LEVEL").ok();
    let level = level.or(env.as_deref()).unwrap_or("warn");
    let filter = EnvFilter::try_new(level)
        .map_err(|e| anyhow::anyhow!("--log-level (LOG_LEVEL) '{level}': {e}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
