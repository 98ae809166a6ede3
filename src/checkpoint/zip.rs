//! Stored entries of a zip archive as byte ranges: what `torch.save` writes since PyTorch 1.6.
//!
//! Nothing is inflated and nothing is copied: a compressed or encrypted entry is an error.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::error::Fault;

/// Entries of the archive: where each one's bytes lie.
///
/// # Errors
/// When the bytes are not a zip archive, are cut off, or hold an entry that is not simply stored.
pub fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>, Fault> {
    let broken = |e| Fault::format(format!("not a complete zip archive: {e}"));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    let mut entries = BTreeMap::new();
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(broken)?;
        let name = file.name().map_err(broken)?.into_owned();
        if file.compression() != CompressionMethod::Stored || file.encrypted() {
            let message = format!("zip entry {name} is compressed or encrypted");
            return Err(Fault::format(message));
        }
        let range = file
            .data_start()
            .and_then(|start| usize::try_from(start).ok())
            .zip(usize::try_from(file.size()).ok())
            .and_then(|(start, size)| Some(start..start.checked_add(size)?))
            .filter(|range| range.end <= bytes.len())
            .ok_or_else(|| Fault::format(format!("zip entry {name} reaches beyond the archive")))?;
        entries.insert(name, range);
    }
    Ok(entries)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// An archive of stored entries.
    pub(in super::super) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, bytes) in files {
            zip.start_file(*name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn finds_the_bytes_of_stored_entries() {
        let bytes = archive(&[("a/data.pkl", b"abc"), ("a/data/0", b"0123456789")]);
        let found = entries(&bytes).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(&bytes[found["a/data/0"].clone()], b"0123456789");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = archive(&[("a/data.pkl", b"abc"), ("a/data/0", b"0123456789")]);
        for len in 0..bytes.len() {
            assert!(entries(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn other_compression_is_refused() {
        let mut bytes = archive(&[("x", b"abc")]);
        // The method field of the local and of the central header.
        let central = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        bytes[8] = 8;
        bytes[central + 10] = 8;
        let error = entries(&bytes).unwrap_err();
        assert!(error.to_string().contains("compressed"), "{error}");
    }
}
