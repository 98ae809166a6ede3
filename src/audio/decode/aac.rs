//! AAC in m4a or ADTS through `syom`, which also knows HE-AAC and trims encoder delay.

use syom::{AacError, DecodeOptions};

use super::{Limits, MonoSink, undecodable};
use crate::audio::{Audio, AudioError};

/// Decoded samples of all channels together: 30 s of eight channels at 96 kHz.
const MAX_OUTPUT_BYTES: u64 = 30 * 8 * 96_000 * 4;

/// Whether the bytes look like an MP4 file or an ADTS stream.
pub(super) fn is_aac(bytes: &[u8]) -> bool {
    let mp4 = bytes.get(4..8) == Some(b"ftyp");
    // Twelve sync bits, then a layer of 0, which no MPEG audio but AAC has.
    let adts = matches!(bytes, [0xff, b, ..] if b & 0xf6 == 0xf0);
    mp4 || adts
}

/// `None` when `syom` does not take the file to be AAC at all; another codec may sit in the same container.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Option<Result<Audio, AudioError>> {
    let mut options = DecodeOptions::audio()
        .with_max_duration_secs(limits.max_seconds)
        .with_max_sample_rate(limits.max_rate_hz.min(96_000));
    options.memory.max_input_bytes = limits.max_bytes as u64;
    options.memory.max_channels = limits.max_channels as u32;
    options.memory.max_output_bytes = MAX_OUTPUT_BYTES;
    match syom::decode_with(bytes, &options) {
        Ok(audio) => Some(mix(audio.sample_rate, &audio.channels, limits)),
        Err(AacError::TooLong { .. }) => Some(Err(AudioError::TooLong {
            limit_seconds: limits.max_seconds,
        })),
        Err(AacError::NotAac | AacError::Unsupported(_)) => None,
        Err(e) => Some(Err(undecodable(e.to_string()))),
    }
}

fn mix(rate_hz: u32, planes: &[Vec<f32>], limits: &Limits) -> Result<Audio, AudioError> {
    let mut sink = MonoSink::new(rate_hz, planes.len(), limits)?;
    let frames = planes.iter().map(Vec::len).min().unwrap_or(0);
    let interleaved: Vec<f32> = (0..frames)
        .flat_map(|t| planes.iter().map(move |p| p[t]))
        .collect();
    sink.push(&interleaved, planes.len())?;
    sink.finish()
}
