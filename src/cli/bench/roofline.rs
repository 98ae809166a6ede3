//! `bench --roofline`: what every stage costs at least on a GPU, and what to expect of kernels that are good but not perfect.
//!
//! The floor of a launch is the longer of its bytes at the memory's attainable rate and its operations at the tensor cores' attainable rate
//! (Williams, Waterman, Patterson, "Roofline", CACM 2009); a stage's floor is the sum. The expectation adds what keeps kernels from it:
//! the gap between two launches of a graph, tiles that do not fill all multiprocessors, and a share of the peak that well-made kernels reach.

use std::io::Write;

use super::cost::{self, Op};
use crate::model::config::ModelConfig;

/// Rates of a device.
struct Device {
    name: &'static str,
    /// Attainable by a copy, bytes per second.
    memory: f64,
    /// Attainable by a large product of bf16 with f32 sums, operations per second.
    tensor: f64,
    multiprocessors: f64,
    /// Seconds between two kernels of a graph.
    gap: f64,
}

/// An H100 SXM. Published and reported rates, not measurements of this project: copies of 3.0 TB/s (datasheet 3.35), products of
/// 790 TFLOP/s on random data (datasheet 989), 1.3 µs between kernels of a graph.
const H100: Device = Device {
    name: "H100 SXM",
    memory: 3.0e12,
    tensor: 790e12,
    multiprocessors: 132.0,
    gap: 1.3e-6,
};

/// Share of the attainable memory rate that a kernel of a few microseconds reaches.
const MEMORY_SHARE: f64 = 0.8;
/// Share of the attainable tensor rate inside a full wave of tiles.
const TENSOR_SHARE: f64 = 0.7;

impl Device {
    fn floor(&self, op: &Op) -> f64 {
        (op.bytes / self.memory).max(op.flop / self.tensor)
    }

    fn expected(&self, op: &Op) -> f64 {
        let waves = op.tiles / self.multiprocessors;
        let filled = if op.tiles > 0.0 {
            waves / waves.ceil()
        } else {
            1.0
        };
        // Products of few rows stream their weights over all multiprocessors: splitting the sums fills them.
        let compute = op.flop / (self.tensor * TENSOR_SHARE * filled.max(0.25));
        (op.bytes / (self.memory * MEMORY_SHARE)).max(compute) + self.gap
    }
}

/// Writes one markdown table.
pub(super) fn run(config: &ModelConfig, seconds: f64, out: &mut impl Write) -> std::io::Result<()> {
    let device = &H100;
    let tokens = (seconds * config.token_frame_rate as f64).ceil() as usize;
    let frames = tokens * config.token_mel_ratio;
    writeln!(
        out,
        "{}: memory {:.2} TB/s, bf16 {:.0} TFLOP/s, {:.1} us a launch; {seconds} s of audio = {tokens} tokens = {frames} frames\n",
        device.name,
        device.memory / 1e12,
        device.tensor / 1e12,
        device.gap * 1e6
    )?;
    writeln!(
        out,
        "| stage | launches | GB | TFLOP | floor, ms | expected, ms | bound by |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    let mut row = |name: String, ops: &[Op], repeat: usize| {
        let times = repeat as f64;
        let floor: f64 = ops.iter().map(|op| device.floor(op)).sum::<f64>() * times;
        let expected: f64 = ops.iter().map(|op| device.expected(op)).sum::<f64>() * times;
        writeln!(
            out,
            "| {name} | {} | {:.3} | {:.4} | {:.3} | {:.3} | {} |",
            ops.len() * repeat,
            ops.iter().map(|op| op.bytes).sum::<f64>() * times / 1e9,
            cost::flop(ops) * times / 1e12,
            floor * 1e3,
            expected * 1e3,
            bound(device, ops),
        )?;
        Ok::<f64, std::io::Error>(expected)
    };
    for batch in [1, 4, 16, 64] {
        row(
            format!("LLM decode step, {batch} x 400 positions"),
            &cost::llm_step(&config.llm, batch, 1, 400),
            1,
        )?;
    }
    row(
        "LLM prefill of 150".to_owned(),
        &cost::llm_step(&config.llm, 1, 150, 0),
        1,
    )?;
    let steps = config.flow.cfm.n_timesteps;
    let mut pipeline = Vec::new();
    for batch in [1, 8, 32] {
        let encoder = row(
            format!("flow encoder, {batch} utterances"),
            &cost::flow_encoder(&config.flow, batch, tokens),
            1,
        )?;
        let euler = row(
            format!("flow, {steps} Euler steps, {batch} utterances"),
            &cost::euler_step(&config.flow, batch, frames),
            steps,
        )?;
        let vocoder = row(
            format!("vocoder, {batch} utterances"),
            &cost::vocoder(&config.hift, batch, frames),
            1,
        )?;
        pipeline.push((batch, encoder + euler + vocoder));
    }
    let mut offline = Vec::new();
    for (batch, rest) in pipeline {
        let decode: f64 = (cost::llm_step(&config.llm, batch, 1, 150 + tokens).iter())
            .map(|op| device.expected(op))
            .sum();
        let prefill: f64 = cost::llm_step(&config.llm, batch, 150, 0)
            .iter()
            .map(|op| device.expected(op))
            .sum();
        offline.push((batch, prefill + decode * tokens as f64 + rest));
    }
    for (batch, total) in offline {
        writeln!(
            out,
            "\n{batch} at once, stages one after the other: {:.0} ms for {:.0} s of audio, {:.0} times real time",
            total * 1e3,
            batch as f64 * seconds,
            batch as f64 * seconds / total
        )?;
    }
    Ok(())
}

/// What most of the expected time goes to.
fn bound(device: &Device, ops: &[Op]) -> &'static str {
    let (mut memory, mut compute) = (0.0, 0.0);
    for op in ops {
        let by_memory = op.bytes / device.memory;
        let by_compute = op.flop / device.tensor;
        *(if by_memory > by_compute {
            &mut memory
        } else {
            &mut compute
        }) += by_memory.max(by_compute);
    }
    let gaps = ops.len() as f64 * device.gap;
    if gaps > memory + compute {
        "launches"
    } else if memory > compute {
        "memory"
    } else {
        "tensor cores"
    }
}
