//! `batch`: many texts to many files, several at a time, resumable.
//!
//! Input is JSONL (one object a line: `text`, and optionally `id`, `voice`, `prompt_audio`, `prompt_text`, `instruct`, `mode`, `speed`, `seed`) or TSV
//! (`id`, tab, text). Each line becomes `<id>.<format>` in the output folder; without an id, the line's number. A file that is
//! there already is not made again, and none appears before it is whole.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Context as _;
use serde::Deserialize;

use super::model::{ModelArgs, VoiceArgs};
use super::output::Output;
use super::text::TextArgs;
use crate::audio::{Format, encode};
use crate::engine::Synthesizer;
use crate::text::TextOptions;

/// Arguments of `batch`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// JSONL (`{"id": …, "text": …}` a line) or TSV (id, tab, text).
    input: PathBuf,
    /// Folder of the results; made when missing.
    #[arg(short, long, default_value = "out")]
    output_dir: PathBuf,
    /// Texts in synthesis at the same time.
    #[arg(short, long, default_value_t = 8)]
    jobs: usize,
    /// wav, flac, mp3, opus, aac, m4a or pcm.
    #[arg(long, default_value = "wav")]
    format: String,
    #[command(flatten)]
    voice: VoiceArgs,
    #[command(flatten)]
    reading: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// One line of the input; what it leaves out comes from the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<String>,
    text: String,
    voice: Option<String>,
    prompt_audio: Option<PathBuf>,
    prompt_text: Option<String>,
    instruct: Option<String>,
    mode: Option<String>,
    speed: Option<f32>,
    seed: Option<u64>,
}

/// Figures of a run.
#[derive(Default)]
struct Totals {
    done: usize,
    skipped: usize,
    failed: usize,
    audio_seconds: f64,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.jobs > 0, "--jobs must be at least 1");
    let format: Format = args
        .format
        .parse()
        .map_err(|e| anyhow::anyhow!("--format: {e}"))?;
    let lines = read_lines(&args.input)?;
    std::fs::create_dir_all(&args.output_dir)
        .with_context(|| format!("cannot make {}", args.output_dir.display()))?;
    let (todo, skipped): (Vec<_>, Vec<_>) = lines
        .into_iter()
        .map(|(name, line)| {
            (
                args.output_dir.join(format!("{name}.{}", format.name())),
                line,
            )
        })
        .partition(|(path, _)| !path.exists());
    let totals = Mutex::new(Totals {
        skipped: skipped.len(),
        ..Totals::default()
    });
    let started = Instant::now();
    if !todo.is_empty() {
        let reading = args.reading.options()?;
        let synthesizer = args.model.open(args.jobs, false)?;
        let queue = Mutex::new(todo.into_iter());
        std::thread::scope(|scope| {
            for _ in 0..args.jobs {
                scope.spawn(|| {
                    while let Some((path, line)) = lock(&queue).next() {
                        let result =
                            speak(&synthesizer, (&args.voice, &reading), &line, &path, format);
                        note(&mut lock(&totals), &path, result);
                    }
                });
            }
        });
    }
    report(&lock(&totals), started)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// All lines with their file stems, checked before any work is done.
fn read_lines(path: &Path) -> anyhow::Result<Vec<(String, Line)>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let tsv = path.extension().is_some_and(|e| e == "tsv");
    let mut names = HashSet::new();
    let mut lines = Vec::new();
    for (number, raw) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if raw.trim().is_empty() {
            continue;
        }
        let at = || format!("{}:{number}", path.display());
        let line: Line = if tsv {
            let (id, text) = raw
                .split_once('\t')
                .with_context(|| format!("{}: no tab", at()))?;
            Line {
                id: Some(id.to_owned()),
                text: text.to_owned(),
                ..Line::default()
            }
        } else {
            serde_json::from_str(raw).with_context(at)?
        };
        let name = line.id.clone().unwrap_or_else(|| format!("{number:05}"));
        anyhow::ensure!(
            !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']),
            "{}: the id '{name}' cannot name a file",
            at()
        );
        anyhow::ensure!(
            names.insert(name.clone()),
            "{}: the id '{name}' occurs twice",
            at()
        );
        lines.push((name, line));
    }
    Ok(lines)
}

/// Synthesises one line; returns the seconds of audio.
fn speak(
    synthesizer: &Synthesizer,
    (defaults, reading): (&VoiceArgs, &TextOptions),
    line: &Line,
    path: &Path,
    format: Format,
) -> anyhow::Result<f64> {
    let voice = defaults.overridden(
        line.voice.clone(),
        line.prompt_audio.clone(),
        line.prompt_text.clone(),
        line.instruct.clone(),
        line.mode.as_deref(),
        line.speed,
        line.seed,
    )?;
    let mut utterance = voice.utterance(synthesizer)?;
    utterance.text.clone_from(&line.text);
    utterance.text_options = reading.clone();
    let job = synthesizer.submit(synthesizer.prepare(&utterance)?.request)?;
    let (samples, _) = job.collect()?;
    let rate_hz = synthesizer.sample_rate_hz();
    let mut output = Output::create(path)?;
    output.write_all(&encode(format, &samples, rate_hz)?)?;
    output.finish()?;
    Ok(samples.len() as f64 / f64::from(rate_hz))
}

fn note(totals: &mut Totals, path: &Path, result: anyhow::Result<f64>) {
    match result {
        Ok(seconds) => {
            totals.done += 1;
            totals.audio_seconds += seconds;
        }
        Err(error) => {
            totals.failed += 1;
            eprintln!("{}: {error:#}", path.display());
        }
    }
}

fn report(totals: &Totals, started: Instant) -> anyhow::Result<()> {
    let elapsed = started.elapsed().as_secs_f64();
    if std::io::stderr().is_terminal() || totals.failed > 0 {
        eprintln!(
            "{} made, {} there already, {} failed: {:.1} s of audio in {elapsed:.1} s ({:.2}x real time)",
            totals.done,
            totals.skipped,
            totals.failed,
            totals.audio_seconds,
            totals.audio_seconds / elapsed.max(1e-9),
        );
    }
    anyhow::ensure!(totals.failed == 0, "{} lines failed", totals.failed);
    Ok(())
}
