//! `voices`: encode a prompt once, keep it, use it by name.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;

use super::model::ModelArgs;

/// Arguments of `voices`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Subcommand)]
enum Action {
    /// Encode a recording and keep it under a name.
    Add {
        name: String,
        /// The recording (wav, mp3, flac, ogg, m4a; up to 30 s).
        #[arg(long, value_name = "FILE")]
        prompt_audio: PathBuf,
        /// What is said in it.
        #[arg(long, default_value = "")]
        prompt_text: String,
    },
    /// Print all voices, one a line.
    List,
    /// Forget a voice that was added.
    Remove { name: String },
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let synthesizer = args.model.open(1, false)?;
    match args.action {
        Action::Add {
            name,
            prompt_audio,
            prompt_text,
        } => {
            let audio = std::fs::read(&prompt_audio)
                .with_context(|| format!("--prompt-audio {}", prompt_audio.display()))?;
            let voice = synthesizer.encode_voice(&audio, &prompt_text)?;
            synthesizer.voices().add(&name, voice)?;
        }
        Action::List => {
            let mut out = std::io::stdout().lock();
            for name in synthesizer.voices().names() {
                writeln!(out, "{name}")?;
            }
        }
        Action::Remove { name } => synthesizer.voices().remove(&name)?,
    }
    Ok(())
}
