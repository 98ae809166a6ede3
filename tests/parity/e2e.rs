//! The whole pipeline through the engine, against recorded runs of the official `CosyVoice2` class.

use std::path::Path;
use std::sync::Arc;

use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::engine::{self, Draws, EngineHandle, EngineOptions, Event, Mode, Request, Segment};
use cosyvoice::model::voice::Voice;

use crate::support::golden::{self, Golden};
use crate::support::metrics::snr_db;

/// Two PyTorch versions differ by up to 2e-3 in these waveforms (the sine source amplifies rounding of f0), about 55 dB.
pub(crate) const MIN_SNR_DB: f64 = 50.0;

fn engine(dir: &Path) -> EngineHandle {
    let checkpoint = Checkpoint::open(dir).unwrap_or_else(|e| panic!("{e}"));
    let backend = || Cpu::new(CpuOptions::default());
    engine::start(
        checkpoint,
        backend,
        EngineOptions::default(),
        Arc::default(),
    )
    .unwrap_or_else(|e| panic!("{e}"))
}

fn draws(golden: &Golden, pool: &Golden) -> Draws {
    let harmonics = *pool.shape("pool").last().expect("a pool of rows");
    Draws {
        uniforms: if golden.has("uniforms") {
            golden.f64("uniforms")
        } else {
            Vec::new()
        },
        noise: pool.f32("pool"),
        harmonics,
        noise_offsets: golden
            .i32("noise_off")
            .into_iter()
            .map(|x| x as usize)
            .collect(),
    }
}

fn optional(golden: &Golden, name: &str) -> Vec<i32> {
    if golden.has(name) {
        golden.i32(name)
    } else {
        Vec::new()
    }
}

/// The recorded request: exactly the model inputs of the official front end.
fn request(golden: &Golden, pool: &Golden) -> Option<Request> {
    let speech_tokens = optional(golden, "in_flow_prompt_speech_token");
    let mel = if speech_tokens.is_empty() {
        Vec::new()
    } else {
        golden::open("audio_prompt.safetensors")?.f32("zs_speech_feat")
    };
    let prompt_text = optional(golden, "in_prompt_text");
    let mode = match golden.metadata["kind"].as_str() {
        "sft" => Mode::Sft,
        "zero_shot" => Mode::ZeroShot,
        "cross" => Mode::CrossLingual,
        "instruct2" => Mode::Instruct {
            instruction: prompt_text.clone(),
        },
        other => panic!("unknown kind {other}"),
    };
    Some(Request {
        segments: vec![Segment::Speech(golden.i32("in_text"))],
        mode,
        voice: Arc::new(Voice {
            embedding: golden.f32("in_flow_embedding"),
            prompt_text,
            speech_tokens,
            mel,
        }),
        speed: golden.f32("mel_speed")[0],
        seed: 0,
        stream: golden.metadata["stream"] == "True",
        client: String::new(),
        draws: Some(Arc::new(draws(golden, pool))),
    })
}

fn check(name: &str, engine: &EngineHandle, golden: &Golden, request: Request, min_snr_db: f64) {
    let mut job = engine.submit(request).expect("a free engine");
    let mut chunks = Vec::new();
    let summary = loop {
        match job.next_blocking().expect("a last event") {
            Event::Audio(samples) => chunks.push(samples),
            Event::Done(summary) => break summary,
            Event::Failed(error) => panic!("{name}: {error}"),
            Event::Started | Event::Progress { .. } => {}
        }
    };
    assert_eq!(
        summary.speech_tokens,
        golden.i32("tokens").len(),
        "{name}: speech tokens"
    );
    for (i, chunk) in chunks.iter().enumerate() {
        let expected = golden.f32(&format!("chunk_{i}"));
        assert_eq!(chunk.len(), expected.len(), "{name}: samples of chunk {i}");
        let snr = snr_db(chunk, &expected);
        assert!(
            snr >= min_snr_db,
            "{name}: chunk {i} has an SNR of {snr:.1} dB"
        );
        eprintln!("{name}: chunk {i}: {} samples, {snr:.1} dB", chunk.len());
    }
    assert!(
        !golden.has(&format!("chunk_{}", chunks.len())),
        "{name}: chunks are missing"
    );
}

#[test]
fn recorded_runs_sound_the_same() {
    check_runs(&engine(&golden::model_dir()), MIN_SNR_DB, usize::MAX);
}

/// The first `count` recorded runs.
pub(crate) fn check_runs(engine: &EngineHandle, min_snr_db: f64, count: usize) {
    let Some(pool) = golden::open("hift_noise.safetensors") else {
        return;
    };
    let dir = std::fs::read_dir(golden::kit().join("golden")).expect("a kit");
    let mut names: Vec<String> = dir
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.starts_with("e2e_"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "the kit has no recorded runs");
    for name in names.into_iter().take(count) {
        let golden = golden::open(&name).expect("it was listed");
        if let Some(request) = request(&golden, &pool) {
            check(&name, engine, &golden, request, min_snr_db);
        }
    }
}

#[test]
fn recorded_voice_conversion_sounds_the_same() {
    let name = "stream_vc.safetensors";
    let Some(golden) = golden::open(name) else {
        return;
    };
    let Some(pool) = golden::open("hift_noise.safetensors") else {
        return;
    };
    let request = Request {
        segments: vec![Segment::SpeechTokens(golden.i32("source_speech_token"))],
        mode: Mode::ZeroShot,
        voice: Arc::new(Voice {
            embedding: golden.f32("embedding"),
            prompt_text: Vec::new(),
            speech_tokens: golden.i32("prompt_token"),
            mel: golden.f32("prompt_feat"),
        }),
        speed: 1.0,
        seed: 0,
        stream: true,
        client: String::new(),
        draws: Some(Arc::new(draws(&golden, &pool))),
    };
    let engine = engine(&golden::model_dir());
    check(name, &engine, &golden, request, MIN_SNR_DB);
}
