//! The flow: one utterance from tokens to mel, all Euler steps.

use std::io::Write;

use super::{Bench, cost};
use crate::backend::Backend;
use crate::model::flow::{Flow, FlowInput, FlowState, FlowWorkspace};
use crate::model::voice::Voice;
use crate::tensor::Trace;

/// Prints a line per number of utterances; seconds of the first.
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
    let mut ws = FlowWorkspace::new(backend)?;
    let off = Trace::off();
    let mut first = None;
    for &count in &bench.args.utterances {
        let mut states = Vec::new();
        for _ in 0..count {
            states.push(FlowState::new(backend)?);
        }
        let inputs = vec![input; count];
        let steps =
            flow.steps() as f64 * cost::flop(&cost::euler_step(&config.flow, count, frames));
        let flop = cost::flop(&cost::flow_encoder(&config.flow, count, tokens.len())) + steps;
        let rounds = bench.args.rounds.min(3);
        let (seconds, share) = bench.seconds_and_share((rounds, flop), || {
            let mut states: Vec<_> = states.iter_mut().collect();
            flow.encode(backend, &inputs, &mut states, &mut ws, &off)?;
            while !states[0].is_done() {
                flow.euler_step(backend, &mut states, &mut ws, &off)?;
            }
            Ok(())
        })?;
        writeln!(
            out,
            "flow {count} x {frames} frames {:9.1} ms  {:.0} GFLOP/s = {:.0} % of multiply-adds, {share}",
            seconds * 1e3,
            flop / seconds / 1e9,
            100.0 * flop / seconds / bench.limits.flops_per_s,
        )?;
        first.get_or_insert(seconds);
    }
    Ok(first.unwrap_or(f64::NAN))
}
