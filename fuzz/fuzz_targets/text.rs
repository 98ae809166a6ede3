//! Any text through the front end, in every mode: markup, SSML, normaliser, splitter.
#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use cosyvoice::text::{Frontend, FrontendOptions, Normalization, TextOptions, Tokenizer};

static FRONTEND: LazyLock<Frontend> = LazyLock::new(|| {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/micro-kit/micro");
    Frontend::new(
        Arc::new(Tokenizer::load(&model).expect("tokenizer")),
        FrontendOptions::default(),
    )
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for normalization in [
        Normalization::Auto,
        Normalization::On,
        Normalization::Off,
        Normalization::Official,
    ] {
        let options = TextOptions {
            normalization,
            ..TextOptions::default()
        };
        let _ = FRONTEND.prepare(text, &options);
        let _ = FRONTEND.prepare(&format!("<speak>{text}</speak>"), &options);
        let _ = FRONTEND.prepare_prompt(text, &options);
    }
});
