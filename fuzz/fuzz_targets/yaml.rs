//! Any text is a document or an error, and so is every look-up in it.
#![no_main]

use cosyvoice::checkpoint::yaml::Document;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(document) = Document::parse(text) {
        for path in ["a", "a.b", "a.0.b", "b.c.0", "llm.speech_token_size"] {
            let _ = (document.get(path), document.len(path), document.class(path));
        }
    }
});
