//! AAC-LC: ADTS frames, or an MP4 file. Some countries still know patents on AAC; building without the `aac` feature leaves
//! both out.

use syom::{EncodeOptions, Encoder};

use super::{Format, clipped};
use crate::audio::{AudioError, resample};

/// Bit rate of mono speech.
const BITS_PER_SECOND: u32 = 96_000;
/// The rates of the AAC table that carry this bit rate.
const RATES_HZ: [u32; 8] = [
    16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000,
];

fn with_rate(options: EncodeOptions, rate_hz: u32) -> EncodeOptions {
    // A frame of 1024 samples holds at most 6144 bits per channel.
    options.with_bitrate_bps(BITS_PER_SECOND.min(rate_hz * 5))
}

pub(super) fn encode_adts(samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, AudioError> {
    whole(Format::Aac, EncodeOptions::adts(), samples, rate_hz)
}

pub(super) fn encode_m4a(samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, AudioError> {
    whole(Format::M4a, EncodeOptions::m4a(), samples, rate_hz)
}

/// Rates that AAC does not know are resampled to 48 kHz.
fn whole(
    format: Format,
    options: EncodeOptions,
    samples: &[f32],
    rate_hz: u32,
) -> Result<Vec<u8>, AudioError> {
    if !RATES_HZ.contains(&rate_hz) {
        return whole(format, options, &resample(samples, rate_hz, 48_000), 48_000);
    }
    syom::encode_with(&[clipped(samples)], rate_hz, &with_rate(options, rate_hz))
        .map_err(|e| format.error(e))
}

/// ADTS frames as they are made.
pub(super) struct Stream {
    encoder: Encoder,
    empty: bool,
}

impl Stream {
    pub(super) fn new(rate_hz: u32) -> Result<Self, AudioError> {
        let options = with_rate(EncodeOptions::adts(), rate_hz);
        let encoder = Encoder::new(rate_hz, 1, &options).map_err(|e| Format::Aac.error(e))?;
        Ok(Self {
            encoder,
            empty: true,
        })
    }

    pub(super) fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, AudioError> {
        self.empty &= samples.is_empty();
        let mut out = Vec::new();
        self.encoder
            .feed(&[&clipped(samples)], |frame| {
                out.extend_from_slice(frame.au);
                Ok(())
            })
            .map_err(|e| Format::Aac.error(e))?;
        Ok(out)
    }

    pub(super) fn finish(mut self) -> Result<Vec<u8>, AudioError> {
        let mut out = Vec::new();
        if self.empty {
            return Ok(out);
        }
        self.encoder
            .finish(|frame| {
                out.extend_from_slice(frame.au);
                Ok(())
            })
            .map_err(|e| Format::Aac.error(e))?;
        Ok(out)
    }
}
