//! Every tensor of a `.pt` file that opens can be read. The input is the pickle; the archive around it is sound.
#![no_main]

use std::io::{Cursor, Write};

use cosyvoice::checkpoint::{Bytes, torch};

libfuzzer_sys::fuzz_target!(|pickle: &[u8]| {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("m/data.pkl", pickle), ("m/data/0", &[0; 256]), ("m/data/1", &[1; 64])] {
        zip.start_file(name, stored).expect("a sound archive");
        zip.write_all(bytes).expect("a sound archive");
    }
    let archive = zip.finish().expect("a sound archive").into_inner();
    if let Ok(file) = torch::read("m.pt", Bytes::Owned(archive)) {
        for name in file.entries().keys() {
            let _ = (file.peek(name), file.integers(name));
        }
    }
});
