//! The vocoder: one utterance from mel to samples.

use std::io::Write;

use super::{Bench, cost};
use crate::backend::{Backend, SourceNoise};
use crate::model::vocoder::{Hift, HiftWorkspace};
use crate::tensor::{Segments, Trace};

/// Prints a line per number of utterances; seconds of the first.
pub(super) fn run<B: Backend>(bench: &Bench<'_, B>, out: &mut impl Write) -> anyhow::Result<f64> {
    let config = &bench.checkpoint.config().hift;
    let backend = bench.backend;
    let hift = Hift::load(backend, &bench.checkpoint.hift(), config)?;
    let samples = bench.args.seconds * f64::from(hift.sample_rate_hz());
    let frames = (samples / hift.samples_per_frame() as f64).ceil() as usize;
    let mut ws = HiftWorkspace::new(backend)?;
    let off = Trace::off();
    let mut first = None;
    for &count in &bench.args.utterances {
        let values: Vec<f32> = (0..count * frames * config.in_channels)
            .map(|i| (i as f32 * 0.37).sin() * 3.0 - 3.0)
            .collect();
        let mel = backend.tensor(count * frames, config.in_channels, &values)?;
        let segments = Segments::new(backend, &vec![frames; count])?;
        let seeds: Vec<u64> = (0..count as u64).collect();
        let first_samples = vec![0; count];
        let flop = cost::flop(&cost::vocoder(config, count, frames));
        let (seconds, share) = bench.seconds_and_share((bench.args.rounds, flop), || {
            let noise = SourceNoise::Philox {
                seeds: &seeds,
                first_samples: &first_samples,
            };
            hift.run(backend, &mel, &segments, &[], noise, &mut ws, &off)
        })?;
        writeln!(
            out,
            "vocoder {count} x {frames} frames {:6.1} ms  {:.0} GFLOP/s = {:.0} % of multiply-adds, {share}",
            seconds * 1e3,
            flop / seconds / 1e9,
            100.0 * flop / seconds / bench.limits.flops_per_s,
        )?;
        first.get_or_insert(seconds);
    }
    Ok(first.unwrap_or(f64::NAN))
}
