//! Whatever the zip reader finds lies inside the bytes.
#![no_main]

use cosyvoice::checkpoint::zip::entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for range in entries(bytes).unwrap_or_default().into_values() {
        let _ = &bytes[range];
    }
});
