//! `cosyvoice convert`: the official files → one folder of safetensors and one `config.json`.

use std::path::PathBuf;

use crate::checkpoint::{Checkpoint, Target, convert};
use crate::error::Result;

/// Convert a checkpoint to one folder of safetensors files.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the checkpoint, official or converted
    #[arg(long, value_name = "DIR", env = "MODEL_DIR")]
    pub model: PathBuf,
    /// Folder to write; files of an earlier conversion are replaced
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How to store the large weights of the language model and the flow
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    pub dtype: Dtype,
}

/// Types of the large weights.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Dtype {
    F32,
    Bf16,
    Int8,
}

/// Converts; memory stays small whatever the size of the checkpoint.
///
/// # Errors
/// When the checkpoint cannot be used, or a file cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let target = match args.dtype {
        Dtype::F32 => Target::F32,
        Dtype::Bf16 => Target::Bf16,
        Dtype::Int8 => Target::Int8,
    };
    convert(&checkpoint, target, &args.out)?;
    Ok(())
}
