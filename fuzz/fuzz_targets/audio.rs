//! Any bytes are audio within the limits or an error, and the features of what passes as a prompt can be computed. Panics of a
//! decoder count only when they escape: `decode` turns them into errors.
#![no_main]

use cosyvoice::audio::features::{FbankParams, WhisperParams, kaldi_fbank, whisper_log_mel};
use cosyvoice::audio::{Limits, decode, prompt};

libfuzzer_sys::fuzz_target!(
    // The fuzzer's own hook would abort before the decoder's guard sees the panic.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| {
        let limits = Limits::default();
        let Ok(audio) = decode(bytes, &limits) else {
            return;
        };
        assert!(audio.seconds() <= limits.max_seconds);
        assert!(audio.samples.iter().all(|v| v.is_finite()));
        if prompt::check(&audio).is_ok() {
            let x = prompt::at_rate(&audio, 16_000);
            whisper_log_mel(&x, &WhisperParams::standard(128)).expect("a prompt is long enough");
            kaldi_fbank(&x, &FbankParams::standard(80)).expect("a prompt is long enough");
        }
    }
);
