//! The vocoder at the official dims with seeded random weights, per batch: `cargo bench --bench vocoder [-- FILTER]`.
//! Throughput is in samples; 24,000 of them are a second of audio.

use std::time::Duration;

use cosyvoice::backend::{Memory, SourceNoise};
use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::model::config::ModelConfig;
use cosyvoice::model::vocoder::{Hift, HiftWorkspace};
use cosyvoice::tensor::{Segments, Trace};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn bench(criterion: &mut Criterion) {
    let config = ModelConfig::preset("cosyvoice2-0.5b").expect("preset");
    let checkpoint = Checkpoint::random(config, 7);
    let config = &checkpoint.config().hift;
    let backend = Cpu::new(CpuOptions::default());
    let hift = Hift::load(&backend, &checkpoint.hift(), config).expect("load");
    let mut group = criterion.benchmark_group("vocoder");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    // (utterances, frames of each): a first chunk, five seconds, a batch of chunks.
    for (batch, frames) in [(1, 50), (1, 250), (8, 50)] {
        let mels = config.in_channels;
        let values: Vec<f32> = (0..batch * frames * mels)
            .map(|i| (i as f32 * 0.37).sin() * 3.0 - 3.0)
            .collect();
        let mel = backend.tensor(batch * frames, mels, &values).expect("mel");
        let segments = Segments::new(&backend, &vec![frames; batch]).expect("segments");
        let mut ws = HiftWorkspace::new(&backend).expect("workspace");
        let (seeds, first_samples) = (vec![1; batch], vec![0; batch]);
        let off = Trace::off();
        let name = format!("{batch}x{frames}");
        group.throughput(Throughput::Elements(
            (batch * frames * hift.samples_per_frame()) as u64,
        ));
        group.bench_function(BenchmarkId::new("f0", &name), |b| {
            b.iter(|| hift.predict_f0(&backend, &mel, &segments, &mut ws, &off));
        });
        group.bench_function(BenchmarkId::new("whole", &name), |b| {
            b.iter(|| {
                let noise = SourceNoise::Philox {
                    seeds: &seeds,
                    first_samples: &first_samples,
                };
                hift.run(&backend, &mel, &segments, &[], noise, &mut ws, &off)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
