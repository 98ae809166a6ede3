//! `cosyvoice convert`: the official files → one folder of safetensors and one `config.json`.

use std::path::PathBuf;

use super::model::resolve_model_dir;
use crate::checkpoint::{Checkpoint, Target, convert};

/// Arguments of `convert`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder, official or converted. Without it the bundled voice.
    #[arg(long, env = "MODEL_DIR", value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder to write; files of an earlier conversion are replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How to store the large weights of the language model and the flow
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: Dtype,
}

/// Types of the large weights.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Dtype {
    F32,
    Bf16,
    Int8,
}

/// Converts; memory stays small whatever the size of the checkpoint.
///
/// # Errors
/// When the checkpoint cannot be used, or a file cannot be written.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(resolve_model_dir(args.model.as_deref())?)?;
    let target = match args.dtype {
        Dtype::F32 => Target::F32,
        Dtype::Bf16 => Target::Bf16,
        Dtype::Int8 => Target::Int8,
    };
    convert(&checkpoint, target, &args.out)?;
    Ok(())
}
