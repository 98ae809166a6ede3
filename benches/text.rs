//! Reading texts: 1 MB of mixed Chinese, English and Japanese as one text, per normalisation mode, and the stages alone:
//! `cargo bench --bench text [-- FILTER]`. `MODEL_DIR` names another vocabulary than that of the tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cosyvoice::text::{
    Frontend, FrontendOptions, Normalization, TextOptions, Tokenizer, official_normalize,
};
use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};

const LENGTH: usize = 1_000_000;

/// Lines without anything to read out.
const PLAIN: [&str; 5] = [
    "Rain fell all night; the river rose, and nobody could cross the old wooden bridge until the morning.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps all day long.",
    "昨天下午我在图书馆里遇到了一位多年没有见面的老朋友，我们聊了很久很久。",
    "日本語のテストです。今日はとても良い天気ですね。",
    "这座城市的夜晚很安静，only a few windows are still lit，远处传来火车的声音。",
];

/// `LENGTH` bytes: three lines in five are plain; the others hold numbers, dates, money, units, addresses and the like.
fn mixed() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tables = ["readings.tsv", "wetextprocessing.tsv"];
    let tables = tables.map(|name| {
        let path = root.join("tests/fixtures/text").join(name);
        std::fs::read_to_string(path).expect("table of readings")
    });
    let written: Vec<&str> = tables[0]
        .lines()
        .filter_map(|l| l.split('\t').nth(1))
        .chain(tables[1].lines().filter_map(|l| l.split('\t').nth(2)))
        .collect();
    let mut text = String::with_capacity(LENGTH + 200);
    let mut state = 1u64;
    while text.len() < LENGTH {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        let (kind, line) = ((state >> 33) % 5, (state >> 40) as usize);
        text.push_str(match kind {
            0..3 => PLAIN[line % PLAIN.len()],
            _ => written[line % written.len()],
        });
        text.push('\n');
    }
    text
}

fn model_dir() -> PathBuf {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/micro-kit/micro");
    std::env::var_os("MODEL_DIR").map_or(bundled, PathBuf::from)
}

fn bench(criterion: &mut Criterion) {
    let tokenizer = Arc::new(Tokenizer::load(&model_dir()).expect("tokenizer"));
    let frontend = Frontend::new(Arc::clone(&tokenizer), FrontendOptions::default());
    let text = mixed();
    let english: String = text
        .lines()
        .filter(|l| l.is_ascii())
        .collect::<Vec<_>>()
        .join("\n");
    let mut group = criterion.benchmark_group("text");
    group
        .sample_size(10)
        .sampling_mode(SamplingMode::Flat)
        .measurement_time(Duration::from_secs(5))
        .throughput(Throughput::Bytes(text.len() as u64));
    for (name, normalization) in [
        ("auto", Normalization::Auto),
        ("off", Normalization::Off),
        ("official", Normalization::Official),
    ] {
        let options = TextOptions {
            normalization,
            ..TextOptions::default()
        };
        group.bench_function(BenchmarkId::new("prepare", name), |b| {
            b.iter(|| {
                frontend
                    .prepare(&text, &options)
                    .expect("prepared")
                    .parts
                    .len()
            });
        });
    }
    group.bench_function("tokens", |b| b.iter(|| tokenizer.count(&text)));
    group.throughput(Throughput::Bytes(english.len() as u64));
    group.bench_function("official grammar/en", |b| {
        b.iter(|| official_normalize(&english).expect("read").len());
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
