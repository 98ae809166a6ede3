//! The flow: one utterance from tokens to mel, all Euler steps.

use std::io::Write;

use super::{Bench, cost, median_seconds};
use crate::backend::Backend;
use crate::model::flow::{Flow, FlowInput, FlowState, FlowWorkspace};
use crate::model::voice::Voice;
use crate::tensor::Trace;

/// Prints one line; seconds of the utterance.
pub(super) fn run<B: Backend>(bench: &Bench<'_, B>, out: &mut impl Write) -> anyhow::Result<f64> {
    let config = bench.checkpoint.config();
    let backend = bench.backend;
    let flow = Flow::load(backend, &bench.checkpoint.flow(), &config.flow)?;
    let voice = Voice {
        embedding: vec![1.0; config.flow.spk_embed_dim],
        ..Voice::default()
    };
    let count = (bench.args.seconds * config.token_frame_rate as f64).ceil() as usize;
    let tokens: Vec<i32> = (0..count)
        .map(|i| (i * 37 % config.flow.vocab_size) as i32)
        .collect();
    let input = FlowInput {
        voice: &voice,
        tokens: &tokens,
        streaming: false,
        finalize: true,
    };
    let frames = flow.check(&input)?;
    let mut state = FlowState::new(backend)?;
    let mut ws = FlowWorkspace::new(backend)?;
    let off = Trace::off();
    let seconds = median_seconds(bench.args.rounds.min(3), || {
        flow.encode(backend, &[input], &mut [&mut state], &mut ws, &off)?;
        while !state.is_done() {
            flow.euler_step(backend, &mut [&mut state], &mut ws, &off)?;
        }
        Ok(())
    })?;
    let flop = flow.steps() as f64 * cost::flop(&cost::euler_step(&config.flow, 1, frames));
    writeln!(
        out,
        "flow {frames} frames {:9.1} ms  {:.0} GFLOP/s = {:.0} % of multiply-adds",
        seconds * 1e3,
        flop / seconds / 1e9,
        100.0 * flop / seconds / bench.peaks.f32_flops_per_s,
    )?;
    Ok(seconds)
}
