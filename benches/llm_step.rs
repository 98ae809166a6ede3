//! Steps of the language model at the official dims with seeded random weights, per batch and weight precision:
//! `cargo bench --bench llm_step [-- FILTER]`. Throughput is in tokens (rows).

use std::time::Duration;

use cosyvoice::backend::Attention;
use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions, WeightPrecision};
use cosyvoice::model::config::ModelConfig;
use cosyvoice::model::llm::{InputToken, Llm, LlmWorkspace, StepSequence};
use cosyvoice::tensor::Trace;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const PAGE_SIZE: usize = 16;
/// Positions that a decoding sequence looks back on: ten seconds of speech and their text.
const CONTEXT: usize = 400;
/// Positions of a prompt.
const PROMPT: usize = 150;

fn bench(criterion: &mut Criterion) {
    let mut config = ModelConfig::preset("cosyvoice2-0.5b").expect("preset");
    // Single rows of it are read: its size does not matter.
    config.llm.text_vocab_size = 1000;
    let checkpoint = Checkpoint::random(config, 7);
    for weights in [
        WeightPrecision::F32,
        WeightPrecision::Bf16,
        WeightPrecision::Int8,
    ] {
        let backend = Cpu::new(CpuOptions {
            weights,
            ..CpuOptions::default()
        });
        let llm = Llm::load(&backend, &checkpoint.llm(), &checkpoint.config().llm).expect("load");
        let mut group = criterion.benchmark_group(format!("llm_step/{weights:?}"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(5));
        let cases = [1, 4, 16].map(|batch| ("decode", batch, CONTEXT, 1));
        for (what, batch, context, rows) in cases.into_iter().chain([("prefill", 1, 0, PROMPT)]) {
            let pages_each = (context + rows).div_ceil(PAGE_SIZE);
            let shape = llm.kv_shape(batch * pages_each, PAGE_SIZE);
            let mut kv = backend.alloc_kv(shape).expect("cache");
            let mut ws = LlmWorkspace::new(&backend).expect("workspace");
            let pages: Vec<u32> = (0..shape.pages as u32).collect();
            let inputs: Vec<InputToken> = (0..rows as i32).map(InputToken::Speech).collect();
            let sequences: Vec<_> = pages
                .chunks(pages_each)
                .map(|pages| StepSequence {
                    inputs: &inputs,
                    context,
                    pages,
                    logits: true,
                })
                .collect();
            group.throughput(Throughput::Elements((batch * rows) as u64));
            group.bench_function(BenchmarkId::new(what, batch * rows), |b| {
                b.iter(|| {
                    llm.step(
                        &backend,
                        PAGE_SIZE,
                        &sequences,
                        None,
                        &mut kv,
                        &mut ws,
                        &Trace::off(),
                    )
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
