//! Any bytes as a packed grammar, and a text through what is accepted.
#![no_main]

use cosyvoice::text::{Fst, Search};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(fst) = Fst::from_bytes(data) {
        let _ = Search::default().transduce(&fst, b"3 apples");
    }
});
