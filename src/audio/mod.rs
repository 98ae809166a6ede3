//! Audio in and out: decoding, resampling, spectral features, encoding.
//!
//! In: bytes of a prompt recording ([`mod@decode`]) → mono samples → the rates of the models ([`mod@resample`]) → the three
//! feature kinds ([`features`]). Out: samples of a synthesis → a file or a stream of a [`Format`] ([`mod@encode`]),
//! with the overlap of streamed chunks blended by [`stream`]. [`prompt`] says which recordings can serve as a voice.

pub mod decode;
pub mod encode;
pub mod features;
pub mod prompt;
pub mod resample;
pub mod stream;

pub use decode::{Limits, decode};
pub use encode::{Format, StreamEncoder, encode};
pub use resample::resample;

/// A mono recording. Samples are in [−1, 1] unless a floating-point file went beyond.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    pub samples: Vec<f32>,
    pub rate_hz: u32,
}

impl Audio {
    /// Duration in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.rate_hz.max(1))
    }
}

/// Why a recording cannot be read or used, or samples cannot be written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AudioError {
    #[error("the audio is empty")]
    Empty,
    #[error("the audio has {bytes} bytes, more than the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the audio cannot be decoded: {reason}")]
    Undecodable { reason: String },
    #[error("the audio has {channels} channels, more than the limit of {limit}")]
    TooManyChannels { channels: usize, limit: usize },
    #[error("a sample rate of {rate_hz} Hz is outside {min_hz} to {max_hz} Hz")]
    Rate {
        rate_hz: u32,
        min_hz: u32,
        max_hz: u32,
    },
    #[error("the audio is longer than the limit of {limit_seconds} s")]
    TooLong { limit_seconds: f64 },
    #[error("the audio lasts {seconds:.2} s; at least {needed_seconds} s are needed")]
    TooShort { seconds: f64, needed_seconds: f64 },
    #[error("the audio is silent: its peak is {peak:.1e} of full scale")]
    Silent { peak: f32 },
    #[error("the audio holds samples that are not finite numbers")]
    NotFinite,
    #[error("audio format {format:?} is unknown; use one of {known}")]
    UnknownFormat { format: String, known: String },
    #[error("{format} cannot be written: {reason}")]
    Encode {
        format: &'static str,
        reason: String,
    },
}
