//! `synth`: one text to one file.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::model::{ModelArgs, VoiceArgs};
use super::output::Output;
use super::text::TextArgs;
use crate::audio::{Format, StreamEncoder, encode};
use crate::engine::{Event, Job, Summary};

/// Segments of a long text that are synthesised side by side.
const PARALLEL_SEGMENTS: usize = 8;

/// Arguments of `synth`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// What to say; without it and without --text-file, standard input.
    text: Option<String>,
    /// Read the text from a file; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    text_file: Option<PathBuf>,
    /// Where to write; `-` is standard output.
    #[arg(short, long, default_value = "out.wav")]
    output: PathBuf,
    /// wav, flac, mp3, opus, aac, m4a or pcm; without it, by the output's extension.
    #[arg(long)]
    format: Option<String>,
    /// Write while synthesising, by the official streaming rules.
    #[arg(long)]
    stream: bool,
    /// Write every named intermediate tensor to a safetensors file, for comparison with PyTorch.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// No progress bar, no summary.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    voice: VoiceArgs,
    #[command(flatten)]
    reading: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let format = output_format(args.format.as_deref(), &args.output)?;
    let text = read_text(&args)?;
    let synthesizer = args.model.open(PARALLEL_SEGMENTS, args.trace.is_some())?;
    let mut utterance = args.voice.utterance(&synthesizer)?;
    utterance.text = text;
    utterance.text_options = args.reading.options()?;
    utterance.stream = args.stream;
    let prepared = synthesizer.prepare(&utterance)?;
    let output = Output::create(&args.output)?;
    let job = synthesizer.submit(prepared.request)?;
    let bar = progress_bar(args.quiet);
    let rate_hz = synthesizer.sample_rate_hz();
    let stream = match args.stream {
        true => Some(StreamEncoder::new(format, rate_hz)?),
        false => None,
    };
    let summary = write_audio(job, output, stream, format, rate_hz, &bar)?;
    bar.finish_and_clear();
    if let Some(path) = &args.trace {
        synthesizer
            .trace()
            .write(path)
            .with_context(|| format!("--trace {}", path.display()))?;
    }
    if !args.quiet && std::io::stderr().is_terminal() {
        eprintln!("{}", describe(&summary, &args.output));
    }
    Ok(())
}

fn output_format(given: Option<&str>, path: &std::path::Path) -> anyhow::Result<Format> {
    let name = match (given, path.extension().and_then(|e| e.to_str())) {
        (Some(name), _) => name,
        (None, Some(extension)) => extension,
        (None, None) => "wav",
    };
    name.parse::<Format>()
        .map_err(|e| anyhow::anyhow!("--format: {e}"))
}

fn read_text(args: &Args) -> anyhow::Result<String> {
    if let Some(text) = &args.text {
        return Ok(text.clone());
    }
    match &args.text_file {
        Some(path) if path.as_os_str() != "-" => {
            std::fs::read_to_string(path).with_context(|| format!("--text-file {}", path.display()))
        }
        _ => {
            anyhow::ensure!(
                args.text_file.is_some() || !std::io::stdin().is_terminal(),
                "nothing to say: give a text, --text-file FILE, or pipe one in"
            );
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input is not UTF-8 text")?;
            Ok(text)
        }
    }
}

/// Writes as the samples come when streaming, else one whole file with exact lengths in its header.
fn write_audio(
    mut job: Job,
    mut output: Output,
    stream: Option<StreamEncoder>,
    format: Format,
    rate_hz: u32,
    bar: &ProgressBar,
) -> anyhow::Result<Summary> {
    let mut stream = stream;
    let mut whole = Vec::new();
    let mut samples = 0usize;
    while let Some(event) = job.next_blocking() {
        match event {
            Event::Started => {}
            Event::Progress { stage, fraction } => {
                bar.set_position((fraction * 100.0) as u64);
                bar.set_message(stage.as_str());
            }
            Event::Audio(audio) => {
                samples += audio.len();
                bar.set_prefix(real_time(samples, rate_hz, bar.elapsed()));
                match &mut stream {
                    Some(encoder) => {
                        output.write_all(&encoder.push(&audio)?)?;
                        output.flush()?;
                    }
                    None => whole.extend(audio),
                }
            }
            Event::Done(summary) => {
                let streamed = stream.is_some();
                let rest = match stream {
                    Some(encoder) => encoder.finish()?,
                    None => encode(format, &whole, rate_hz)?,
                };
                output.write_all(&rest)?;
                if streamed && format == Format::Wav {
                    output.set_wav_lengths()?;
                }
                output.finish()?;
                return Ok(summary);
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("the engine has stopped")
}

fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos:>3}% {msg:8} {prefix}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(100).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn real_time(samples: usize, rate_hz: u32, elapsed: Duration) -> String {
    let audio = samples as f64 / f64::from(rate_hz);
    format!("{:.2}x real time", audio / elapsed.as_secs_f64().max(1e-9))
}

fn describe(summary: &Summary, path: &std::path::Path) -> String {
    format!(
        "{}: {:.2} s of audio in {:.2} s ({}), first audio after {:.0} ms",
        path.display(),
        summary.samples as f64 / f64::from(summary.sample_rate_hz),
        summary.synthesis_time.as_secs_f64(),
        real_time(
            summary.samples,
            summary.sample_rate_hz,
            summary.synthesis_time
        ),
        summary.first_audio.as_secs_f64() * 1e3,
    )
}
