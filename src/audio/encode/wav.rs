//! 16-bit mono RIFF.

use std::io::Cursor;

use super::{Format, pcm16};
use crate::audio::AudioError;

/// Length of [`stream_header`].
pub const STREAM_HEADER_BYTES: usize = 44;

pub(super) fn encode(samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, AudioError> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: rate_hz,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let failed = |e: hound::Error| Format::Wav.error(e);
    let mut out = Cursor::new(Vec::with_capacity(samples.len() * 2 + STREAM_HEADER_BYTES));
    let mut writer = hound::WavWriter::new(&mut out, spec).map_err(failed)?;
    for &x in samples {
        writer.write_sample(pcm16(x)).map_err(failed)?;
    }
    writer.finalize().map_err(failed)?;
    Ok(out.into_inner())
}

/// Writes the lengths that [`stream_header`] had to leave open, once the file is complete. Leaves the position at its end.
///
/// # Errors
/// What the file reports.
pub fn set_lengths(file: &mut (impl std::io::Write + std::io::Seek)) -> std::io::Result<()> {
    use std::io::SeekFrom;
    const RIFF_BEGINS: u64 = 8;
    let length = file.seek(SeekFrom::End(0))?;
    for (at, before) in [(4, RIFF_BEGINS), (40, STREAM_HEADER_BYTES as u64)] {
        let rest = u32::try_from(length.saturating_sub(before)).unwrap_or(u32::MAX);
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&rest.to_le_bytes())?;
    }
    file.seek(SeekFrom::End(0)).map(|_| ())
}

/// The header of a 16-bit mono file whose length is not known yet: both sizes are the largest number, which players take
/// as "until the end".
pub fn stream_header(rate_hz: u32) -> [u8; STREAM_HEADER_BYTES] {
    const UNKNOWN: [u8; 4] = u32::MAX.to_le_bytes();
    let mut header = [0; STREAM_HEADER_BYTES];
    let fields: [(usize, &[u8]); 12] = [
        (0, b"RIFF"),
        (4, &UNKNOWN),
        (8, b"WAVEfmt "),
        (16, &16u32.to_le_bytes()),
        (20, &1u16.to_le_bytes()),
        (22, &1u16.to_le_bytes()),
        (24, &rate_hz.to_le_bytes()),
        (28, &rate_hz.saturating_mul(2).to_le_bytes()),
        (32, &2u16.to_le_bytes()),
        (34, &16u16.to_le_bytes()),
        (36, b"data"),
        (40, &UNKNOWN),
    ];
    for (at, bytes) in fields {
        header[at..at + bytes.len()].copy_from_slice(bytes);
    }
    header
}
