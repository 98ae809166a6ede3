//! Euler steps and the encoder of the flow at the official dims with seeded random weights, per batch and weight precision:
//! `cargo bench --bench flow_step [-- FILTER]`. Throughput is in floating-point operations of the dense layers and convolutions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cosyvoice::backend::philox::{Stream, normal_pair, philox};
use cosyvoice::checkpoint::{Bytes, Dtype, Entry, Fault, TensorFile};
use cosyvoice::cpu::{Cpu, CpuOptions, WeightPrecision};
use cosyvoice::model::config::{
    CfmConfig, EstimatorConfig, FlowConfig, FlowEncoderConfig, TimeSchedule,
};
use cosyvoice::model::flow::{Flow, FlowInput, FlowState, FlowWorkspace};
use cosyvoice::model::voice::Voice;
use cosyvoice::tensor::Trace;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// The dims of the official 0.5B checkpoint.
fn official() -> FlowConfig {
    FlowConfig {
        input_size: 512,
        output_size: 80,
        spk_embed_dim: 192,
        vocab_size: 6561,
        token_mel_ratio: 2,
        pre_lookahead_len: 3,
        encoder: FlowEncoderConfig {
            input_size: 512,
            output_size: 512,
            attention_heads: 8,
            linear_units: 2048,
            num_blocks: 6,
            num_up_blocks: 4,
            up_stride: 2,
            static_chunk_size: 25,
            block_norm_eps: 1e-12,
            norm_eps: 1e-5,
        },
        cfm: CfmConfig {
            t_scheduler: TimeSchedule::Cosine,
            inference_cfg_rate: 0.7,
            n_timesteps: 10,
            noise_len: 15_000,
        },
        estimator: EstimatorConfig {
            in_channels: 320,
            out_channels: 80,
            channels: vec![256],
            attention_head_dim: 64,
            n_blocks: 4,
            num_mid_blocks: 12,
            num_heads: 8,
            static_chunk_size: 50,
        },
    }
}

/// A file with everything that the flow asks for: an empty one is loaded first, and complains of each tensor.
fn random_file(config: &FlowConfig) -> TensorFile {
    let backend = Cpu::new(CpuOptions::default());
    let empty = TensorFile::new("flow", Bytes::Owned(Vec::new()), BTreeMap::new()).expect("empty");
    Flow::load(&backend, &empty.root(), config).expect("shapes");
    let (mut entries, mut values) = (BTreeMap::new(), Vec::<f32>::new());
    for problem in empty.problems() {
        if let Fault::TensorMissing { tensor, expected } = problem.what {
            let count: usize = expected.iter().product();
            let scale = (expected[0] as f32 / count as f32).sqrt();
            let entry = Entry::new(Dtype::F32, expected, 4 * values.len());
            entries.insert(tensor, entry);
            let first = values.len() as u64;
            for i in 0..count.div_ceil(2) as u64 {
                let word = philox(7, Stream::Sampling, first + i, 0);
                values.extend(normal_pair(word[0], word[1]).map(|v| v * scale));
            }
            values.truncate(first as usize + count);
        }
    }
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorFile::new("flow", Bytes::Owned(bytes), entries).expect("table")
}

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
    let config = official();
    let file = random_file(&config);
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
        let flow = Flow::load(&backend, &file.root(), &config).expect("load");
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
            let flop = batch as u64 * step_flop(&config, frames);
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
