//! Every tensor of a safetensors file that opens can be read.
#![no_main]

use cosyvoice::checkpoint::{Bytes, safetensors};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = safetensors::read("m.safetensors", Bytes::Owned(bytes.to_vec())) {
        for name in file.entries().keys() {
            let _ = (file.peek(name), file.integers(name));
        }
    }
});
