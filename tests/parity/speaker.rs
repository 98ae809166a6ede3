//! CAM++: cosine of the embedding with the official one, for both exports of its segment pooling.

use cosyvoice::audio::features::Features;
use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::model::config::SpeakerConfig;
use cosyvoice::model::speaker::SpeakerEncoder;
use cosyvoice::tensor::Trace;

use crate::support::golden::{self, Golden};
use crate::support::metrics::{cosine, max_abs};

/// A cosine of 0.99999 would be met by much larger errors than ours.
const MAX_ABS: f32 = 1e-3;

fn embedding(cpu: &Cpu, encoder: &SpeakerEncoder, golden: &Golden, expected: &str) {
    let shape = golden.shape("kaldi_fbank_meannorm").to_vec();
    let features = Features {
        rows: shape[0],
        bins: shape[1],
        data: golden.f32("kaldi_fbank_meannorm"),
    };
    let embedding = encoder
        .encode(cpu, &features, &Trace::off())
        .expect("encode");
    let expected_values = golden.f32(expected);
    let similarity = cosine(&embedding, &expected_values);
    let peak = expected_values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = max_abs(&embedding, &expected_values) / peak;
    println!(
        "{expected}: 1 - cosine {:.1e}, error {error:.1e} of peak",
        1.0 - similarity
    );
    assert!(similarity >= 0.99999, "{expected}: {similarity}");
    assert!(error < MAX_ABS, "{expected}: {error:e} of peak");
}

fn check(cpu: &Cpu, encoder: &SpeakerEncoder, expected: &str) {
    for name in ["audio_prompt", "audio_prompt_odd"] {
        if let Some(golden) = golden::open(&format!("{name}.safetensors")) {
            embedding(cpu, encoder, &golden, expected);
        }
    }
}

fn load(cpu: &Cpu, checkpoint: &Checkpoint, config: &SpeakerConfig) -> SpeakerEncoder {
    let scope = checkpoint.speaker().expect("weights");
    SpeakerEncoder::load(cpu, &scope, config).expect("load")
}

#[test]
fn speaker_embedding() {
    let cpu = Cpu::new(CpuOptions::default());
    let checkpoint = Checkpoint::open(golden::model_dir()).expect("checkpoint");
    let config = checkpoint.config().speaker.clone().expect("config");
    let encoder = load(&cpu, &checkpoint, &config);
    checkpoint.finish().expect("every weight has its place");
    check(&cpu, &encoder, "spk_embedding");
}

/// The same weights in a graph whose pooling counts padding: the official embeddings of that graph differ.
#[test]
fn speaker_embedding_with_counted_padding() {
    let variant = golden::kit().join("golden/campplus_cip1.onnx");
    if !variant.is_file() {
        eprintln!("SKIPPED: {} is not in this kit", variant.display());
        return;
    }
    let dir = golden::model_with("campplus.onnx", &variant);
    let cpu = Cpu::new(CpuOptions::default());
    let checkpoint = Checkpoint::open(dir.path()).expect("checkpoint");
    let config = checkpoint.config().speaker.clone().expect("config");
    let encoder = load(&cpu, &checkpoint, &config);
    check(&cpu, &encoder, "spk_embedding_cip1_ort");
}
