//! Prompt audio: decoding, resampling and features, within 1e-4 of the peak of the official values.

use cosyvoice::audio::features::{
    FbankParams, Features, MelParams, WhisperParams, kaldi_fbank, kaldi_filterbank,
    mel_spectrogram, slaney_filterbank, subtract_mean, whisper_log_mel,
};
use cosyvoice::audio::{Limits, decode, prompt, resample, stream::CrossFade};

use crate::support::golden::{self, Golden};
use crate::support::metrics::max_abs;

const TOLERANCE: f32 = 1e-4;

fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    let peak = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let error = max_abs(actual, expected) / peak;
    println!("{what}: {error:.1e} of peak");
    assert!(error <= TOLERANCE, "{what}: {error:e} of the peak {peak}");
}

/// `feat_extractor` of the kit's yaml, read by name so that this test does not lean on the code under test.
fn mel_params() -> MelParams {
    let text = std::fs::read_to_string(golden::model_dir().join("cosyvoice2.yaml")).expect("yaml");
    let sample_rate = scalar(&text, "\nsample_rate:").expect("sample_rate");
    let section = text.split("\nfeat_extractor:").nth(1).expect("section");
    let get = |key: &str| scalar(section, &format!("\n    {key}:"));
    MelParams {
        n_fft: get("n_fft").expect("n_fft") as usize,
        num_mels: get("num_mels").expect("num_mels") as usize,
        rate_hz: get("sampling_rate").unwrap_or(sample_rate) as u32,
        hop: get("hop_size").expect("hop_size") as usize,
        window: get("win_size").expect("win_size") as usize,
        min_hz: get("fmin").unwrap_or(0.0),
        max_hz: get("fmax"),
    }
}

fn scalar(text: &str, key: &str) -> Option<f64> {
    let rest = text.split(key).nth(1)?;
    rest.lines().next()?.trim().parse().ok()
}

fn features_match(golden: &Golden, name: &str, features: &Features, what: &str) {
    let shape = golden.shape(name);
    let (rows, bins) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    assert_eq!((features.rows, features.bins), (rows, bins), "{what}");
    assert_close(what, &features.data, &golden.f32(name));
}

/// Golden features are `[.., bins, T]` here.
fn transposed_match(golden: &Golden, name: &str, features: &Features, what: &str) {
    let shape = golden.shape(name);
    let (bins, rows) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    assert_eq!((features.rows, features.bins), (rows, bins), "{what}");
    assert_close(what, &features.data, &golden.time_last(name));
}

fn check_prompt(golden: &Golden, wav: &str) {
    let bytes = std::fs::read(golden::kit().join("golden").join(wav)).expect("prompt");
    let audio = prompt::read(&bytes, 50 << 20).expect("a sound prompt");
    assert_eq!(audio.rate_hz, golden.i32("sample_rate")[0] as u32);
    let waveform = golden.f32("waveform");
    let shape = golden.shape("waveform");
    if shape[0] == 1 {
        assert_eq!(audio.samples, waveform, "{wav}: samples");
    }
    let at_24k = prompt::at_rate(&audio, 24_000);
    let at_16k = prompt::at_rate(&audio, 16_000);
    assert_close(&format!("{wav} 24 kHz"), &at_24k, &golden.f32("wav_24k"));
    assert_close(&format!("{wav} 16 kHz"), &at_16k, &golden.f32("wav_16k"));

    let mel = mel_spectrogram(&at_24k, &mel_params()).expect("mel");
    features_match(golden, "mel_24k", &mel, &format!("{wav} mel"));
    let bins = golden.shape("whisper_logmel")[1];
    let log_mel = whisper_log_mel(&at_16k, &WhisperParams::standard(bins)).expect("log-mel");
    transposed_match(
        golden,
        "whisper_logmel",
        &log_mel,
        &format!("{wav} log-mel"),
    );
    let bins = golden.shape("kaldi_fbank")[1];
    let mut fbank = kaldi_fbank(&at_16k, &FbankParams::standard(bins)).expect("fbank");
    features_match(golden, "kaldi_fbank", &fbank, &format!("{wav} fbank"));
    subtract_mean(&mut fbank);
    features_match(
        golden,
        "kaldi_fbank_meannorm",
        &fbank,
        &format!("{wav} fbank without mean"),
    );
}

#[test]
fn prompt_features() {
    for name in ["prompt", "prompt_odd"] {
        if let Some(golden) = golden::open(&format!("audio_{name}.safetensors")) {
            check_prompt(&golden, &format!("{name}.wav"));
        }
    }
}

#[test]
fn resampling() {
    let Some(golden) = golden::open("resample.safetensors") else {
        return;
    };
    let mut cases = 0;
    for name in golden.names() {
        let Some(rates) = name.strip_prefix("in_") else {
            continue;
        };
        let (from, to) = rates.split_once('_').expect("two rates");
        let (from, to) = (from.parse().expect("rate"), to.parse().expect("rate"));
        let out = resample(&golden.f32(name), from, to);
        assert_close(
            &format!("{from} to {to} Hz"),
            &out,
            &golden.f32(&format!("out_{rates}")),
        );
        cases += 1;
    }
    assert!(cases > 0, "no resampling case");
}

#[test]
fn stereo_is_mixed_before_resampling() {
    let Some(golden) = golden::open("resample.safetensors") else {
        return;
    };
    let path = golden::kit().join("golden/stereo.wav");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIPPED: {} is not in this kit", path.display());
        return;
    };
    let audio = decode(&bytes, &Limits::default()).expect("stereo");
    let raw = golden.f32("stereo_raw");
    let (left, right) = raw.split_at(raw.len() / 2);
    let mono: Vec<f32> = left.iter().zip(right).map(|(l, r)| (l + r) / 2.0).collect();
    assert_eq!(audio.samples, mono);
    for (rate, name) in [(16_000, "stereo_16k"), (24_000, "stereo_24k")] {
        assert_close(name, &prompt::at_rate(&audio, rate), &golden.f32(name));
    }
}

#[test]
fn digital_silence() {
    let Some(golden) = golden::open("resample.safetensors") else {
        return;
    };
    let x = golden.f32("silence_in");
    let mel = mel_spectrogram(&x, &mel_params()).expect("mel");
    transposed_match(&golden, "silence_mel24", &mel, "silence mel");
    let bins = golden.shape("silence_whisper_logmel")[1];
    let log_mel = whisper_log_mel(&x, &WhisperParams::standard(bins)).expect("log-mel");
    transposed_match(
        &golden,
        "silence_whisper_logmel",
        &log_mel,
        "silence log-mel",
    );
    let bins = golden.shape("silence_fbank")[1];
    let fbank = kaldi_fbank(&x, &FbankParams::standard(bins)).expect("fbank");
    features_match(&golden, "silence_fbank", &fbank, "silence fbank");
}

#[test]
fn filterbanks() {
    let Some(golden) = golden::open("audio_tables.safetensors") else {
        return;
    };
    let p = mel_params();
    let matcha = slaney_filterbank(
        p.rate_hz,
        p.n_fft,
        p.num_mels,
        p.min_hz,
        p.max_hz.unwrap_or(f64::from(p.rate_hz) / 2.0),
    );
    let whisper = slaney_filterbank(16_000, 400, 128, 0.0, 8000.0);
    let kaldi = kaldi_filterbank(16_000, 512, 80, 20.0, 8000.0);
    for (name, bank) in [
        ("matcha_mel_basis_24k_80", matcha),
        ("whisper_mel_filters_128", whisper),
        ("kaldi_mel_banks_80", kaldi),
    ] {
        assert_close(name, &bank.dense(), &golden.f32(name));
    }
}

#[test]
fn streamed_chunks_are_blended() {
    let Some(golden) = golden::open("stream_vc.safetensors") else {
        return;
    };
    let window = golden.f64("speech_window");
    let fade = CrossFade::new(window.len() / 2);
    for (a, b) in fade.window().iter().zip(&window) {
        assert!((a - b).abs() < 1e-12);
    }
    let overlap = fade.overlap();
    let calls = golden.shape("flow_calls")[0];
    let mut tail: Option<Vec<f32>> = None;
    for i in 0..calls {
        let mut chunk = golden.f32(&format!("hift_wav_{i}"));
        if let Some(before) = &tail {
            fade.blend(before, &mut chunk);
        }
        let last = i + 1 == calls;
        if !last {
            tail = Some(chunk.split_off(chunk.len() - overlap));
        }
        assert_eq!(chunk, golden.f32(&format!("chunk_{i}")), "chunk {i}");
    }
}
