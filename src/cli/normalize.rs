//! `cosyvoice normalize`: how a text is read — language, spoken form, segments and their numbers of tokens.
//!
//! In: a text, a file, or standard input, one text per line. Out: one report per line, as text or as JSON lines.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};

use super::model::resolve_model_dir;
use super::text::TextArgs;
use crate::checkpoint::Checkpoint;
use crate::text::{Frontend, FrontendOptions, Language, Part, Prepared, Tokenizer};

/// Show how texts are read: language, spoken form, segments and token counts.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The text; without it and without --file, lines of standard input
    #[arg(conflicts_with = "file")]
    pub(super) text: Option<String>,
    /// A file with one text per line
    #[arg(long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Folder of the checkpoint, whose tokenizer counts; without it the bundled one
    #[arg(long, value_name = "DIR", env = "MODEL_DIR")]
    pub(super) model: Option<PathBuf>,
    #[command(flatten)]
    text_args: TextArgs,
    /// One JSON object per line
    #[arg(long)]
    pub(super) json: bool,
}

/// Writes the reports to standard output.
///
/// # Errors
/// When a file cannot be read; and at the end when a text could not be prepared, after all others were.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(resolve_model_dir(args.model.as_deref())?)?;
    let tokenizer = Tokenizer::load(&checkpoint.tokenizer_dir())?;
    let frontend = Frontend::new(Arc::new(tokenizer), FrontendOptions::default());
    let options = args.text_args.options()?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut refused = 0;
    for line in lines(args)? {
        let line = line.context("reading the texts")?;
        let prepared = frontend.prepare(&line, &options);
        refused += usize::from(prepared.is_err());
        let written = match (&prepared, args.json) {
            (Ok(prepared), true) => writeln!(out, "{}", report(&line, prepared)),
            (Ok(prepared), false) => table(&mut out, prepared),
            (Err(error), true) => writeln!(
                out,
                "{}",
                json!({ "text": line, "error": error.to_string() })
            ),
            (Err(error), false) => writeln!(out, "error       {error}\n"),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("standard output")?,
        }
    }
    out.flush().context("standard output")?;
    anyhow::ensure!(refused == 0, "{refused} of the texts cannot be spoken");
    Ok(())
}

type Lines = Box<dyn Iterator<Item = io::Result<String>>>;

fn lines(args: &Args) -> anyhow::Result<Lines> {
    let not_blank =
        |line: &io::Result<String>| line.as_ref().map_or(true, |l| !l.trim().is_empty());
    Ok(match (&args.text, &args.file) {
        (Some(text), _) => Box::new(std::iter::once(Ok(text.clone()))),
        (None, Some(path)) => {
            let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
            Box::new(io::BufReader::new(file).lines().filter(not_blank))
        }
        (None, None) => Box::new(io::stdin().lines().filter(not_blank)),
    })
}

/// The language that most of the tokens are in.
fn language(prepared: &Prepared) -> Option<Language> {
    let speech = prepared.parts.iter().filter_map(|part| match part {
        Part::Speech {
            tokens, language, ..
        } => Some((tokens.len(), *language)),
        Part::Pause { .. } => None,
    });
    speech
        .max_by_key(|&(tokens, _)| tokens)
        .map(|(_, language)| language)
}

fn report(text: &str, prepared: &Prepared) -> Value {
    let parts: Vec<Value> = prepared
        .parts
        .iter()
        .map(|part| match part {
            Part::Speech {
                text,
                tokens,
                language,
            } => {
                json!({ "text": text, "language": language.code(), "tokens": tokens.len() })
            }
            Part::Pause { duration } => json!({ "pause_ms": duration.as_secs_f64() * 1e3 }),
        })
        .collect();
    json!({
        "text": text,
        "language": language(prepared).map(Language::code),
        "normalized_text": prepared.normalized_text,
        "tokens": prepared.token_count(),
        "segments": parts,
    })
}

fn table(out: &mut impl Write, prepared: &Prepared) -> io::Result<()> {
    let code = language(prepared).map_or("und", Language::code);
    writeln!(out, "language    {code}")?;
    writeln!(out, "normalized  {}", prepared.normalized_text)?;
    for part in &prepared.parts {
        match part {
            Part::Speech {
                text,
                tokens,
                language,
            } => {
                writeln!(
                    out,
                    "segment     {language} {:>4} tokens  {text}",
                    tokens.len()
                )?;
            }
            Part::Pause { duration } => {
                writeln!(out, "pause       {} ms", duration.as_secs_f64() * 1e3)?
            }
        }
    }
    writeln!(out)
}
