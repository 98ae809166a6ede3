//! The vocoder: one utterance from mel to samples.

use std::io::Write;

use super::{Bench, median_seconds};
use crate::backend::{Memory, SourceNoise};
use crate::model::config::HiftConfig;
use crate::model::vocoder::{Hift, HiftWorkspace};
use crate::tensor::{Segments, Trace};

/// Prints one line; seconds of the utterance.
pub(super) fn run(bench: &Bench<'_>, out: &mut impl Write) -> anyhow::Result<f64> {
    let config = &bench.checkpoint.config().hift;
    let backend = bench.backend;
    let hift = Hift::load(backend, &bench.checkpoint.hift(), config)?;
    let samples = bench.args.seconds * f64::from(hift.sample_rate_hz());
    let frames = (samples / hift.samples_per_frame() as f64).ceil() as usize;
    let values: Vec<f32> = (0..frames * config.in_channels)
        .map(|i| (i as f32 * 0.37).sin() * 3.0 - 3.0)
        .collect();
    let mel = backend.tensor(frames, config.in_channels, &values)?;
    let segments = Segments::new(backend, &[frames])?;
    let mut ws = HiftWorkspace::new(backend)?;
    let off = Trace::off();
    let seconds = median_seconds(bench.args.rounds, || {
        let noise = SourceNoise::Philox {
            seeds: &[1],
            first_samples: &[0],
        };
        hift.run(backend, &mel, &segments, &[], noise, &mut ws, &off)
    })?;
    let flop = 2.0 * (frames * multiply_adds_per_frame(config)) as f64;
    writeln!(
        out,
        "vocoder {frames} frames {:6.1} ms  {:.0} GFLOP/s = {:.0} % of multiply-adds",
        seconds * 1e3,
        flop / seconds / 1e9,
        100.0 * flop / seconds / bench.peaks.f32_flops_per_s,
    )?;
    Ok(seconds)
}

/// Multiply-adds of all convolutions per mel frame.
fn multiply_adds_per_frame(c: &HiftConfig) -> usize {
    const OUTER_KERNEL: usize = 7;
    const F0_KERNEL: usize = 3;
    let f0 = &c.f0_predictor;
    let f0_layers = f0.in_channels + f0.num_layers.saturating_sub(1) * f0.cond_channels;
    let mut total = F0_KERNEL * f0_layers * f0.cond_channels;
    total += OUTER_KERNEL * c.in_channels * c.base_channels;
    let (mut rows, mut channels) = (1, c.base_channels);
    let bins = c.istft_n_fft + 2;
    // Three dilations, two convolutions each, in a residual block.
    let block =
        |kernel: usize, dilations: usize, width: usize| 2 * dilations * kernel * width * width;
    for (i, (&rate, &kernel)) in c
        .upsample_rates
        .iter()
        .zip(&c.upsample_kernel_sizes)
        .enumerate()
    {
        let half = channels / 2;
        total += rows * kernel * channels * half;
        rows *= rate;
        channels = half;
        let source = c
            .source_resblock_kernel_sizes
            .iter()
            .zip(&c.source_resblock_dilation_sizes)
            .nth(i);
        let blocks = c
            .resblock_kernel_sizes
            .iter()
            .zip(&c.resblock_dilation_sizes);
        for (&kernel, dilations) in blocks.chain(source) {
            total += rows * block(kernel, dilations.len(), channels);
        }
    }
    total + rows * OUTER_KERNEL * channels * bins
}
