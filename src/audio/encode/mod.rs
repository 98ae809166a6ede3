//! Writing of synthesised samples: whole files ([`encode`]) and streams ([`StreamEncoder`]).
//!
//! In: mono samples, nominally in [−1, 1]; out: bytes of one of the [`Format`]s. Lossy rates are chosen for speech at 24 kHz.
//! Every format is checked against an independent decoder in the tests.

#[cfg(feature = "aac")]
mod aac;
mod flac;
mod mp3;
mod opus;
mod wav;

use super::AudioError;

pub use wav::{STREAM_HEADER_BYTES, set_lengths as set_wav_lengths, stream_header};

/// A format of synthesised audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 16-bit RIFF.
    Wav,
    /// 16-bit FLAC.
    Flac,
    /// MPEG layer III, constant bit rate.
    Mp3,
    /// Opus in Ogg.
    Opus,
    /// AAC-LC in ADTS frames.
    Aac,
    /// AAC-LC in MP4.
    M4a,
    /// Bare 16-bit little-endian samples.
    Pcm,
}

impl Format {
    /// Every format, whether this build can write it or not.
    pub const ALL: [Format; 7] = [
        Format::Wav,
        Format::Flac,
        Format::Mp3,
        Format::Opus,
        Format::Aac,
        Format::M4a,
        Format::Pcm,
    ];

    /// The word that requests use, which is the file extension too.
    pub fn name(self) -> &'static str {
        match self {
            Format::Wav => "wav",
            Format::Flac => "flac",
            Format::Mp3 => "mp3",
            Format::Opus => "opus",
            Format::Aac => "aac",
            Format::M4a => "m4a",
            Format::Pcm => "pcm",
        }
    }

    /// The media type of `Content-Type`. Bare samples carry their geometry in it (RFC 2586 names big-endian L16 only).
    pub fn content_type(self, rate_hz: u32) -> String {
        match self {
            Format::Wav => "audio/wav".into(),
            Format::Flac => "audio/flac".into(),
            Format::Mp3 => "audio/mpeg".into(),
            Format::Opus => "audio/ogg; codecs=opus".into(),
            Format::Aac => "audio/aac".into(),
            Format::M4a => "audio/mp4".into(),
            Format::Pcm => format!("audio/pcm; rate={rate_hz}; channels=1; encoding=s16le"),
        }
    }

    /// Whether this build can write it.
    pub fn is_available(self) -> bool {
        cfg!(feature = "aac") || !matches!(self, Format::Aac | Format::M4a)
    }

    /// The formats that this build can write.
    pub fn available() -> impl Iterator<Item = Format> {
        Self::ALL.into_iter().filter(|f| f.is_available())
    }

    fn error(self, reason: impl ToString) -> AudioError {
        AudioError::Encode {
            format: self.name(),
            reason: reason.to_string(),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = AudioError;

    /// Reads a format's name; those that this build cannot write are unknown to it.
    fn from_str(s: &str) -> Result<Self, AudioError> {
        let wanted = s.trim();
        Self::available()
            .find(|f| f.name().eq_ignore_ascii_case(wanted))
            .ok_or_else(|| AudioError::UnknownFormat {
                format: wanted.chars().take(32).collect(),
                known: Self::available()
                    .map(Self::name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

/// Writes a whole file of mono samples.
///
/// # Errors
/// A rate that the format does not know, or a format that this build cannot write.
pub fn encode(format: Format, samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, AudioError> {
    match format {
        Format::Wav => wav::encode(samples, rate_hz),
        Format::Flac => flac::encode(samples, rate_hz),
        Format::Mp3 => mp3::encode(samples, rate_hz),
        Format::Opus => opus::encode(samples, rate_hz),
        #[cfg(feature = "aac")]
        Format::Aac => aac::encode_adts(samples, rate_hz),
        #[cfg(feature = "aac")]
        Format::M4a => aac::encode_m4a(samples, rate_hz),
        #[cfg(not(feature = "aac"))]
        Format::Aac | Format::M4a => Err(format.error("this build is without the `aac` feature")),
        Format::Pcm => Ok(pcm16_bytes(samples)),
    }
}

/// Writes a format piece by piece, while the samples are made. What `push` and `finish` give, joined, is one valid stream
/// of unknown length. MP4 cannot be streamed: its bytes all come from `finish`.
pub struct StreamEncoder {
    kind: Kind,
}

enum Kind {
    Pcm {
        header: Vec<u8>,
    },
    Flac(Box<flac::Stream>),
    Mp3(Box<mp3::Stream>),
    Opus(Box<opus::Stream>),
    #[cfg(feature = "aac")]
    Aac(Box<aac::Stream>),
    Whole {
        format: Format,
        samples: Vec<f32>,
        rate_hz: u32,
    },
}

impl StreamEncoder {
    /// A stream of mono samples at `rate_hz`.
    ///
    /// # Errors
    /// A rate that the format does not know, or a format that this build cannot write.
    pub fn new(format: Format, rate_hz: u32) -> Result<Self, AudioError> {
        let kind = match format {
            Format::Wav => Kind::Pcm {
                header: stream_header(rate_hz).to_vec(),
            },
            Format::Pcm => Kind::Pcm { header: Vec::new() },
            Format::Flac => Kind::Flac(Box::new(flac::Stream::new(rate_hz)?)),
            Format::Mp3 => Kind::Mp3(Box::new(mp3::Stream::new(rate_hz)?)),
            Format::Opus => Kind::Opus(Box::new(opus::Stream::new(rate_hz)?)),
            #[cfg(feature = "aac")]
            Format::Aac => Kind::Aac(Box::new(aac::Stream::new(rate_hz)?)),
            _ if format.is_available() => Kind::Whole {
                format,
                samples: Vec::new(),
                rate_hz,
            },
            _ => return Err(format.error("this build is without the `aac` feature")),
        };
        Ok(Self { kind })
    }

    /// Takes more samples and gives the bytes that are ready.
    ///
    /// # Errors
    /// When the encoder fails; the stream cannot go on.
    pub fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, AudioError> {
        match &mut self.kind {
            Kind::Pcm { header } => {
                let mut out = std::mem::take(header);
                out.extend(pcm16_bytes(samples));
                Ok(out)
            }
            Kind::Flac(stream) => stream.push(samples),
            Kind::Mp3(stream) => stream.push(samples),
            Kind::Opus(stream) => stream.push(samples),
            #[cfg(feature = "aac")]
            Kind::Aac(stream) => stream.push(samples),
            Kind::Whole { samples: held, .. } => {
                held.extend_from_slice(samples);
                Ok(Vec::new())
            }
        }
    }

    /// Ends the stream and gives the last bytes.
    ///
    /// # Errors
    /// When the encoder fails.
    pub fn finish(self) -> Result<Vec<u8>, AudioError> {
        match self.kind {
            Kind::Pcm { header } => Ok(header),
            Kind::Flac(stream) => stream.finish(),
            Kind::Mp3(stream) => stream.finish(),
            Kind::Opus(stream) => stream.finish(),
            #[cfg(feature = "aac")]
            Kind::Aac(stream) => stream.finish(),
            Kind::Whole {
                format,
                samples,
                rate_hz,
            } => encode(format, &samples, rate_hz),
        }
    }
}

/// A sample as 16-bit PCM; what is beyond full scale is clipped, and NaN is silence.
pub fn pcm16(x: f32) -> i16 {
    (x * 32768.0).round() as i16
}

/// Samples as 16-bit little-endian PCM.
pub fn pcm16_bytes(samples: &[f32]) -> Vec<u8> {
    samples
        .iter()
        .flat_map(|&x| pcm16(x).to_le_bytes())
        .collect()
}

/// Samples for encoders that refuse what is not in [−1, 1].
fn clipped(samples: &[f32]) -> Vec<f32> {
    samples
        .iter()
        .map(|&x| if x.is_nan() { 0.0 } else { x.clamp(-1.0, 1.0) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for format in Format::available() {
            assert_eq!(format.name().parse::<Format>(), Ok(format));
            assert_eq!(format.name().to_uppercase().parse::<Format>(), Ok(format));
        }
        assert!(matches!(
            "wma".parse::<Format>(),
            Err(AudioError::UnknownFormat { .. })
        ));
    }

    #[test]
    fn pcm_clips_and_rounds() {
        assert_eq!(pcm16(2.0), i16::MAX);
        assert_eq!(pcm16(-2.0), i16::MIN);
        assert_eq!(pcm16(f32::NAN), 0);
        assert_eq!(pcm16(-1234.0 / 32768.0), -1234);
    }
}
