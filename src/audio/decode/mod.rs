//! Decoding of recordings: wav, mp3, flac, ogg (Vorbis, Opus), m4a and aac, told apart by their first bytes.
//!
//! In: bytes that nobody has checked; out: mono samples at the file's own rate (the mean of the channels), or why not.
//! Headers are never believed: memory grows only with samples that were really decoded, and those are bounded.

#[cfg(feature = "aac")]
mod aac;
mod opus;
mod packets;
mod wav;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Audio, AudioError};

/// Bounds on what is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub max_bytes: usize,
    pub max_seconds: f64,
    pub max_channels: usize,
    pub min_rate_hz: u32,
    pub max_rate_hz: u32,
}

impl Default for Limits {
    /// 50 MiB, 30 s, 8 channels, 8 to 384 kHz.
    fn default() -> Self {
        Self {
            max_bytes: 50 << 20,
            max_seconds: 30.0,
            max_channels: 8,
            min_rate_hz: 8_000,
            max_rate_hz: 384_000,
        }
    }
}

/// Decodes a whole recording.
///
/// # Errors
/// Bytes that are no known audio, or audio beyond the limits. A file that breaks off in the middle gives what was
/// there, as long as more of its packets were sound than broken.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Audio, AudioError> {
    if bytes.is_empty() {
        return Err(AudioError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(AudioError::TooLarge {
            bytes: bytes.len(),
            limit: limits.max_bytes,
        });
    }
    // The decoders are other people's code fed with hostile bytes: a panic there is one more way to be undecodable.
    catch_unwind(AssertUnwindSafe(|| decode_by_kind(bytes, limits)))
        .unwrap_or_else(|_| Err(undecodable("the decoder gave up on malformed data")))
}

fn decode_by_kind(bytes: &[u8], limits: &Limits) -> Result<Audio, AudioError> {
    if wav::is_wav(bytes)
        && let Some(result) = wav::decode(bytes, limits)
    {
        return result;
    }
    if opus::is_ogg_opus(bytes) {
        return opus::decode(bytes, limits);
    }
    #[cfg(feature = "aac")]
    if aac::is_aac(bytes)
        && let Some(result) = aac::decode(bytes, limits)
    {
        return result;
    }
    packets::decode(bytes, limits)
}

fn undecodable(reason: impl Into<String>) -> AudioError {
    AudioError::Undecodable {
        reason: reason.into(),
    }
}

/// Collects decoded frames as mono, within the limits.
struct MonoSink {
    samples: Vec<f32>,
    rate_hz: u32,
    max_samples: usize,
    limits: Limits,
}

impl MonoSink {
    fn new(rate_hz: u32, channels: usize, limits: &Limits) -> Result<Self, AudioError> {
        if rate_hz < limits.min_rate_hz || rate_hz > limits.max_rate_hz {
            return Err(AudioError::Rate {
                rate_hz,
                min_hz: limits.min_rate_hz,
                max_hz: limits.max_rate_hz,
            });
        }
        check_channels(channels, limits)?;
        Ok(Self {
            samples: Vec::new(),
            rate_hz,
            max_samples: (limits.max_seconds * f64::from(rate_hz)) as usize,
            limits: *limits,
        })
    }

    /// Adds interleaved frames, each the mean of its channels.
    fn push(&mut self, interleaved: &[f32], channels: usize) -> Result<(), AudioError> {
        check_channels(channels, &self.limits)?;
        let count = channels as f32;
        let frames = interleaved.chunks_exact(channels);
        if self.samples.len() + frames.len() > self.max_samples {
            return Err(AudioError::TooLong {
                limit_seconds: self.limits.max_seconds,
            });
        }
        self.samples
            .extend(frames.map(|f| f.iter().sum::<f32>() / count));
        Ok(())
    }

    fn finish(self) -> Result<Audio, AudioError> {
        if self.samples.is_empty() {
            return Err(undecodable("it holds no samples"));
        }
        if self.samples.iter().any(|x| !x.is_finite()) {
            return Err(AudioError::NotFinite);
        }
        Ok(Audio {
            samples: self.samples,
            rate_hz: self.rate_hz,
        })
    }
}

fn check_channels(channels: usize, limits: &Limits) -> Result<(), AudioError> {
    if channels == 0 {
        return Err(undecodable("it has no channels"));
    }
    if channels > limits.max_channels {
        return Err(AudioError::TooManyChannels {
            channels,
            limit: limits.max_channels,
        });
    }
    Ok(())
}
