//! Linear layers by themselves, at the dims of a checkpoint: seconds of a call, and what it reaches of the device's limits.
//!
//! Every call multiplies by another copy of the weight, of which there are more than caches hold: as in a decode step, weights come
//! from memory.

use std::io::Write;

use super::{Bench, median_seconds};
use crate::backend::{Backend, Epilogue, Weight};
use crate::model::config::ModelConfig;
use crate::tensor::Tensor;

/// More than the caches of any device.
const CACHED_BYTES: usize = 128 << 20;
/// Calls between two waits for the device, at least.
const CALLS: usize = 16;
const MOST_CALLS: usize = 256;
/// Positions of a prompt.
const PREFILL: usize = 256;

/// A weight `[m, k]`, of which the two halves gate each other where `gated`.
struct Layer {
    name: &'static str,
    m: usize,
    k: usize,
    gated: bool,
}

/// Values in `[-1, 1)` that look random.
fn values(count: usize) -> Vec<f32> {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

fn llm_layers(config: &ModelConfig) -> [Layer; 5] {
    let c = &config.llm;
    let (d, q, kv) = (
        c.hidden_size,
        c.num_heads * c.head_dim,
        c.num_kv_heads * c.head_dim,
    );
    let layer = |name, m, k, gated| Layer { name, m, k, gated };
    [
        layer("llm qkv", q + 2 * kv, d, false),
        layer("llm attention out", d, q, false),
        layer("llm gate and up", c.intermediate_size, d, true),
        layer("llm down", d, c.intermediate_size, false),
        layer("llm head", c.speech_vocab_size, d, false),
    ]
}

fn flow_layers(config: &ModelConfig) -> [Layer; 4] {
    let e = &config.flow.estimator;
    let c = e.channels.first().copied().unwrap_or(1);
    let inner = e.num_heads * e.attention_head_dim;
    let layer = |name, m, k| Layer {
        name,
        m,
        k,
        gated: false,
    };
    [
        layer("flow qkv", 3 * inner, c),
        layer("flow attention out", c, inner),
        layer("flow up", 4 * c, c),
        layer("flow down", c, 4 * c),
    ]
}

/// Prints a table: the language model's layers for every `--batch` and a prompt, the flow estimator's for every `--utterances`.
pub(super) fn run<B: Backend>(bench: &Bench<'_, B>, out: &mut impl Write) -> anyhow::Result<()> {
    let config = bench.checkpoint.config();
    writeln!(
        out,
        "\n| linear layer | rows | m | k | µs | GB/s | % of reads | TFLOP/s | % of products |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    let mut rows = bench.args.batch.clone();
    rows.push(PREFILL);
    for layer in llm_layers(config) {
        measure(bench, &layer, &rows, out)?;
    }
    // Rows of both halves of the guidance.
    let rate = (config.token_mel_ratio * config.token_frame_rate) as f64;
    let frames = (bench.args.seconds * rate).ceil() as usize;
    let rows: Vec<usize> = (bench.args.utterances.iter())
        .map(|n| 2 * n * frames)
        .collect();
    for layer in flow_layers(config) {
        measure(bench, &layer, &rows, out)?;
    }
    Ok(())
}

fn pack<B: Backend>(backend: &B, layer: &Layer, w: &[f32]) -> anyhow::Result<B::Linear> {
    let w = Weight::f32(&[layer.m, layer.k], w);
    Ok(match layer.gated {
        true => backend.pack_gate_up(&w, &w)?,
        false => backend.pack_linear(&w, None)?,
    })
}

fn measure<B: Backend>(
    bench: &Bench<'_, B>,
    layer: &Layer,
    rows: &[usize],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (backend, parameters) = (
        bench.backend,
        layer.m * layer.k * (1 + usize::from(layer.gated)),
    );
    let weight_bytes = parameters * bench.bytes_per_weight;
    let calls = CACHED_BYTES.div_ceil(weight_bytes).clamp(CALLS, MOST_CALLS);
    let w = values(layer.m * layer.k);
    let copies = (0..calls)
        .map(|_| pack(backend, layer, &w))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for &n in rows {
        let mut x = backend.alloc(n, layer.k)?;
        backend.upload(&values(n * layer.k), &mut x)?;
        let mut y: Tensor<B> = backend.alloc(n, layer.m)?;
        let seconds = median_seconds(backend, bench.args.rounds, || {
            copies.iter().try_for_each(|w| {
                let ep = match layer.gated {
                    true => Epilogue::SiluMul,
                    false => Epilogue::None,
                };
                backend.linear(&x, w, ep, &mut y)
            })
        })? / calls as f64;
        let flop = 2.0 * (n * parameters) as f64;
        let bytes = (weight_bytes + n * (layer.k + layer.m) * bench.bytes_per_weight) as f64;
        writeln!(
            out,
            "| {} | {n} | {} | {} | {:.1} | {:.0} | {:.0} | {:.2} | {:.0} |",
            layer.name,
            layer.m * (1 + usize::from(layer.gated)),
            layer.k,
            seconds * 1e6,
            bytes / seconds / 1e9,
            100.0 * bytes / seconds / bench.limits.read_bytes_per_s,
            flop / seconds / 1e12,
            100.0 * flop / seconds / bench.limits.product_flops_per_s,
        )?;
    }
    Ok(())
}
