//! A whole voice from a recording, as `CosyVoice.add_zero_shot_spk` stores it, and the file that it stores.

use cosyvoice::audio::Audio;
use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::model::voice::{Voice, VoiceDims, VoiceEncoder};
use cosyvoice::tensor::Trace;

use crate::support::golden::{self, Golden};
use crate::support::metrics::{cosine, max_abs};

fn encoder(checkpoint: &Checkpoint) -> VoiceEncoder {
    let config = checkpoint.config();
    let (speaker, tokens) = (checkpoint.speaker(), checkpoint.speech_tokens());
    let encoder = VoiceEncoder::load(
        0,
        (
            &speaker.expect("campplus.onnx"),
            config.speaker.as_ref().expect("config"),
        ),
        (
            &tokens.expect("speech_tokenizer_v2.onnx"),
            config.speech_tokens.as_ref().expect("config"),
        ),
        &config.feat_extractor,
        config.token_mel_ratio,
    )
    .expect("load");
    checkpoint.finish().expect("every weight has its place");
    encoder
}

fn dims(checkpoint: &Checkpoint) -> VoiceDims {
    let config = checkpoint.config();
    VoiceDims {
        embedding: config.flow.spk_embed_dim,
        mels: config.feat_extractor.num_mels,
        ratio: config.token_mel_ratio,
        speech_vocabulary: config.llm.speech_token_size,
        text_vocabulary: config.llm.text_vocab_size,
    }
}

fn assert_same(voice: &Voice, golden: &Golden, what: &str, mel_tolerance: f32) {
    assert_eq!(
        voice.speech_tokens,
        golden.i32("flow_prompt_speech_token"),
        "{what}: speech tokens"
    );
    assert_eq!(
        voice.prompt_text,
        golden.i32("prompt_text"),
        "{what}: prompt text"
    );
    let similarity = cosine(&voice.embedding, &golden.f32("flow_embedding"));
    assert!(similarity >= 0.99999, "{what}: embedding {similarity}");
    let mel = golden.f32("prompt_speech_feat");
    let peak = mel.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = max_abs(&voice.mel, &mel) / peak;
    println!(
        "{what}: 1 - cosine {:.1e}, mel {error:.1e} of peak",
        1.0 - similarity
    );
    assert!(error <= mel_tolerance, "{what}: mel {error:e}");
}

#[test]
fn voice_of_a_recording() {
    let Some(golden) = golden::open("spk2info_zero_shot.safetensors") else {
        return;
    };
    let checkpoint = Checkpoint::open(golden::model_dir()).expect("checkpoint");
    let encoder = encoder(&checkpoint);
    let bytes = std::fs::read(golden::kit().join("golden/prompt.wav")).expect("prompt");
    let text = golden.i32("prompt_text");
    let voice = encoder
        .encode_bytes(&bytes, 50 << 20, text, &Trace::off())
        .expect("encode");
    assert_same(&voice, &golden, "encoded", 1e-4);
    voice.check(&dims(&checkpoint)).expect("a sound voice");

    let mels = checkpoint.config().feat_extractor.num_mels;
    let file = voice.to_bytes(mels).expect("write");
    assert_eq!(Voice::from_bytes(&file).expect("read"), voice);
}

/// Tokens and mel are cut to the shorter of both.
#[test]
fn trimming() {
    let Some(golden) = golden::open("audio_prompt_odd.safetensors") else {
        return;
    };
    let checkpoint = Checkpoint::open(golden::model_dir()).expect("checkpoint");
    let encoder = encoder(&checkpoint);
    let audio = Audio {
        samples: golden.f32("waveform"),
        rate_hz: golden.i32("sample_rate")[0] as u32,
    };
    let voice = encoder
        .encode(&audio, Vec::new(), &Trace::off())
        .expect("encode");
    assert_eq!(voice.speech_tokens, golden.i32("zs_speech_token"));
    assert_eq!(voice.mel.len(), golden.f32("zs_speech_feat").len());
    let all = encoder
        .speech_tokens(&audio, &Trace::off())
        .expect("tokens");
    assert_eq!(all, golden.i32("speech_token"));
}

#[test]
fn stored_speakers() {
    let stored = golden::kit().join("golden/spk2info_zero_shot.pt");
    let Some(golden) = golden::open("spk2info_zero_shot.safetensors") else {
        return;
    };
    let dir = golden::model_with("spk2info.pt", &stored);
    let checkpoint = Checkpoint::open(dir.path()).expect("checkpoint");
    let voices = checkpoint.voices().expect("voices");
    let mut zero_shot = 0;
    for (name, voice) in &voices {
        voice.check(&dims(&checkpoint)).expect("a sound voice");
        if !voice.speech_tokens.is_empty() {
            assert_same(voice, &golden, name, 0.0);
            zero_shot += 1;
        }
    }
    assert_eq!(zero_shot, 1, "{:?}", voices.keys());
}
