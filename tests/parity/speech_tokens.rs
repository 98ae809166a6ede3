//! Speech tokenizer v2: every token equal.

use cosyvoice::audio::features::{Features, WhisperParams, whisper_log_mel};
use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::model::speech_tokens::SpeechTokenizer;
use cosyvoice::tensor::Trace;

use crate::support::golden::{self, Golden};
use crate::support::metrics::{max_abs, nmse};

fn tokens(cpu: &Cpu, tokenizer: &SpeechTokenizer, features: &Features, golden: &Golden) {
    let trace = Trace::on();
    let tokens = tokenizer.encode(cpu, features, &trace).expect("encode");
    let traced = trace.into_tensors();
    let hidden = nmse(
        &traced["speech_tokens.hidden"].data,
        &golden.f32("s3_encoder_hidden"),
    );
    let digits = max_abs(
        &traced["speech_tokens.pre_round"].data,
        &golden.f32("s3_fsq_pre_round"),
    );
    println!("speech tokens: hidden NMSE {hidden:.1e}, digits max abs {digits:.1e}");
    assert!(hidden <= 1e-7, "{hidden:e}");
    assert!(digits <= 1e-3, "{digits:e}");
    assert_eq!(tokens, golden.i32("speech_token"));
    let limit = tokenizer.vocabulary() as i32;
    assert!(tokens.iter().all(|&t| (0..limit).contains(&t)));
}

#[test]
fn speech_tokens() {
    let checkpoint = Checkpoint::open(golden::model_dir()).expect("checkpoint");
    let config = checkpoint.config().speech_tokens.clone().expect("config");
    let cpu = Cpu::new(CpuOptions::default());
    let scope = checkpoint.speech_tokens().expect("weights");
    let tokenizer = SpeechTokenizer::load(&cpu, &scope, &config).expect("load");
    checkpoint.finish().expect("every weight has its place");
    for name in ["audio_prompt", "audio_prompt_odd"] {
        let Some(golden) = golden::open(&format!("{name}.safetensors")) else {
            continue;
        };
        // From the golden features, then from our own.
        let shape = golden.shape("whisper_logmel").to_vec();
        let features = Features {
            rows: shape[2],
            bins: shape[1],
            data: golden.time_last("whisper_logmel"),
        };
        tokens(&cpu, &tokenizer, &features, &golden);
        let wav = golden.f32("wav_16k");
        let params = WhisperParams::standard(config.num_mels);
        let features = whisper_log_mel(&wav, &params).expect("features");
        tokens(&cpu, &tokenizer, &features, &golden);
    }
}
