//! Euler steps and the encoder of the flow at the official dims with seeded random weights, per batch and weight precision:
//! `cargo bench --bench flow_step [-- FILTER]`. Throughput is in floating-point operations of the dense layers and convolutions.

use std::time::{Duration, Instant};

use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions, WeightPrecision};
use cosyvoice::model::config::{FlowConfig, ModelConfig};
use cosyvoice::model::flow::{Flow, FlowInput, FlowState, FlowWorkspace};
use cosyvoice::model::voice::Voice;
use cosyvoice::tensor::Trace;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Operations of one Euler step over an utterance of `t` frames, full attention.
fn step_flop(config: &FlowConfig, t: usize) -> u64 {
    let e = &config.estimator;
    let (c, inner) = (e.channels[0], e.num_heads * e.attention_head_dim);
    let resnet = |input: usize| 3 * input * c + 3 * c * c + input * c;
    let transformer = 4 * inner * c + 8 * c * c + 2 * t * inner;
    let stages = e.num_mid_blocks + 2;
    let resnets = resnet(e.in_channels) + resnet(2 * c) + e.num_mid_blocks * resnet(c);
    let rest = 3 * 3 * c * c + c * e.out_channels;
    (4 * t * (resnets + stages * e.n_blocks * transformer + rest)) as u64
}

fn bench(criterion: &mut Criterion) {
    let config = ModelConfig::preset("cosyvoice2-0.5b").expect("preset");
    let checkpoint = Checkpoint::random(config, 7);
    let config = &checkpoint.config().flow;
    let voice = Voice {
        embedding: vec![1.0; config.spk_embed_dim],
        ..Voice::default()
    };
    for weights in [
        WeightPrecision::F32,
        WeightPrecision::Bf16,
        WeightPrecision::Int8,
    ] {
        let options = CpuOptions {
            weights,
            ..CpuOptions::default()
        };
        let backend = Cpu::new(options);
        let flow = Flow::load(&backend, &checkpoint.flow(), config).expect("load");
        let mut group = criterion.benchmark_group(format!("flow_step/{weights:?}"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(5));
        // (utterances, speech tokens of each): half a second alone, five seconds alone and together.
        for (batch, tokens) in [(1, 25), (1, 125), (4, 125)] {
            let tokens: Vec<i32> = (0..tokens).map(|i| i * 37 % 6561).collect();
            let input = FlowInput {
                voice: &voice,
                tokens: &tokens,
                streaming: false,
                finalize: true,
            };
            let frames = flow.check(&input).expect("input");
            let mut states: Vec<_> = (0..batch)
                .map(|_| FlowState::new(&backend).expect("state"))
                .collect();
            let mut states: Vec<&mut FlowState<Cpu>> = states.iter_mut().collect();
            let mut ws = FlowWorkspace::new(&backend).expect("workspace");
            let inputs = vec![input; batch];
            let off = Trace::off();
            let name = format!("{batch}x{frames}");
            group.bench_function(BenchmarkId::new("encode", &name), |b| {
                b.iter(|| flow.encode(&backend, &inputs, &mut states, &mut ws, &off));
            });
            let flop = batch as u64 * step_flop(config, frames);
            group.throughput(Throughput::Elements(flop));
            group.bench_function(BenchmarkId::new("euler", &name), |b| {
                b.iter_custom(|steps| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..steps {
                        if states[0].is_done() {
                            flow.encode(&backend, &inputs, &mut states, &mut ws, &off)
                                .expect("encode");
                        }
                        let start = Instant::now();
                        flow.euler_step(&backend, &mut states, &mut ws, &off)
                            .expect("step");
                        spent += start.elapsed();
                    }
                    spent
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
