//! `bench --pipeline`: whole utterances through the engine: many at once, streamed side by side, and arriving at random.
//!
//! With random weights the language model hardly ever draws the end token, so that utterances end at the longest length that their text may
//! have (twenty speech tokens per text token): lengths are the same from run to run. The audio that came out is what is counted.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Args;
use crate::backend::philox::{Stream, philox, uniform_f64};
use crate::engine::{EngineHandle, Event, Mode, Request, Segment};
use crate::model::config::ModelConfig;
use crate::model::voice::Voice;

/// Speech tokens that one text token may become at most, as the reference has it.
const LONGEST_RATIO: usize = 20;
/// Utterances that each streaming client asks for, one after the other.
const STREAMED_EACH: usize = 3;

/// How one utterance went.
struct Utterance {
    audio_s: f64,
    first_audio_s: f64,
    total_s: f64,
}

/// Prints a markdown table.
pub(super) fn run(
    engine: &EngineHandle,
    config: &ModelConfig,
    args: &Args,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let load = Load {
        engine,
        text_tokens: ((args.seconds * config.token_frame_rate as f64) as usize)
            .div_ceil(LONGEST_RATIO)
            .max(1),
        voice: Arc::new(Voice {
            embedding: vec![1.0; config.flow.spk_embed_dim],
            ..Voice::default()
        }),
    };
    load.utterance(0, false)?;
    writeln!(
        out,
        "| load | audio, s | wall, s | x real time | first audio p50 / p95, ms | whole p50 / p95, ms |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for &count in &args.batch {
        let (wall, done) = timed(|| load.side_by_side(count, 1, false))?;
        report(out, &format!("offline, {count} at once"), wall, &done)?;
    }
    for &count in &args.streams {
        let (wall, done) = timed(|| load.side_by_side(count, STREAMED_EACH, true))?;
        report(out, &format!("{count} streams"), wall, &done)?;
    }
    for &rate in &args.arrivals {
        anyhow::ensure!(rate.is_finite() && rate > 0.0, "--arrivals must be above 0");
        let (wall, done) = timed(|| load.arrivals(rate, args.arrival_seconds))?;
        report(out, &format!("{rate} requests/s at random"), wall, &done)?;
    }
    Ok(())
}

fn timed(
    run: impl FnOnce() -> anyhow::Result<Vec<Utterance>>,
) -> anyhow::Result<(f64, Vec<Utterance>)> {
    let start = Instant::now();
    let done = run()?;
    Ok((start.elapsed().as_secs_f64(), done))
}

fn report(out: &mut impl Write, name: &str, wall: f64, done: &[Utterance]) -> std::io::Result<()> {
    let audio: f64 = done.iter().map(|u| u.audio_s).sum();
    let [first_50, first_95] = quantiles(done.iter().map(|u| u.first_audio_s));
    let [total_50, total_95] = quantiles(done.iter().map(|u| u.total_s));
    writeln!(
        out,
        "| {name} | {audio:.1} | {wall:.2} | {:.2} | {first_50:.0} / {first_95:.0} | {total_50:.0} / {total_95:.0} |",
        audio / wall,
    )
}

/// Median and 95th percentile in milliseconds.
fn quantiles(seconds: impl Iterator<Item = f64>) -> [f64; 2] {
    let mut sorted: Vec<f64> = seconds.map(|s| s * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).copied()
    };
    [0.5, 0.95].map(|share| at(share).unwrap_or(f64::NAN))
}

struct Load<'a> {
    engine: &'a EngineHandle,
    text_tokens: usize,
    voice: Arc<Voice>,
}

impl Load<'_> {
    /// One utterance, from its submission to its last sample.
    fn utterance(&self, seed: u64, stream: bool) -> anyhow::Result<Utterance> {
        let text = (0..self.text_tokens as i32).map(|i| 100 + 7 * i).collect();
        let start = Instant::now();
        let mut job = self.engine.submit(Request {
            segments: vec![Segment::Speech(text)],
            mode: Mode::Sft,
            voice: self.voice.clone(),
            speed: 1.0,
            seed,
            stream,
            client: String::new(),
            draws: None,
        })?;
        let mut first = None;
        while let Some(event) = job.next_blocking() {
            match event {
                Event::Audio(_) => _ = first.get_or_insert_with(|| start.elapsed()),
                Event::Done(summary) => {
                    let total = start.elapsed();
                    return Ok(Utterance {
                        audio_s: summary.samples as f64 / f64::from(summary.sample_rate_hz),
                        first_audio_s: first.unwrap_or(total).as_secs_f64(),
                        total_s: total.as_secs_f64(),
                    });
                }
                Event::Failed(error) => return Err(error.into()),
                Event::Started | Event::Progress { .. } => {}
            }
        }
        anyhow::bail!("the engine stopped")
    }

    /// So many clients at once, each asking for `each` utterances in a row.
    fn side_by_side(
        &self,
        clients: usize,
        each: usize,
        stream: bool,
    ) -> anyhow::Result<Vec<Utterance>> {
        let results: Vec<_> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..clients)
                .map(|c| {
                    scope.spawn(move || {
                        (0..each)
                            .map(|i| self.utterance((c * each + i) as u64, stream))
                            .collect::<anyhow::Result<Vec<_>>>()
                    })
                })
                .collect();
            clients.into_iter().map(joined).collect()
        });
        Ok(results
            .into_iter()
            .collect::<anyhow::Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// Requests that arrive independently of each other and of what is done, `rate` per second on average, for so many seconds.
    fn arrivals(&self, rate: f64, seconds: f64) -> anyhow::Result<Vec<Utterance>> {
        std::thread::scope(|scope| {
            let start = Instant::now();
            let (mut at, mut clients) = (0.0, Vec::new());
            for i in 0.. {
                // Exponential gaps: a Poisson process.
                let [a, b, ..] = philox(1, Stream::Sampling, i, 1);
                at -= (1.0 - uniform_f64(a, b)).ln() / rate;
                if at > seconds {
                    break;
                }
                let wait = Duration::from_secs_f64(at).saturating_sub(start.elapsed());
                std::thread::sleep(wait);
                clients.push(scope.spawn(move || self.utterance(i, true)));
            }
            clients.into_iter().map(joined).collect()
        })
    }
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("a client's thread panicked")))
}
