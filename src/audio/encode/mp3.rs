//! MPEG layer III at a constant rate.

use rusty_mp3::{Error, Mp3Encoder, Mp3EncoderConfig};

use super::{Format, clipped};
use crate::audio::{AudioError, resample};

/// Bit rate of mono speech: transparent at 24 kHz.
const KBPS: u32 = 128;
/// The rates of MPEG 1, 2 and 2.5.
const RATES_HZ: [u32; 9] = [
    8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000,
];

fn encoder() -> Mp3Encoder {
    Mp3Encoder::new(Mp3EncoderConfig {
        bitrate_kbps: KBPS,
        vbr_quality: None,
    })
}

/// Whole file, with the Info tag that makes it gapless. Rates that MPEG does not know are resampled to 48 kHz.
pub(super) fn encode(samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, AudioError> {
    if !RATES_HZ.contains(&rate_hz) {
        return encode(&resample(samples, rate_hz, 48_000), 48_000);
    }
    let mut encoder = encoder();
    encoder
        .push_pcm_f32(&clipped(samples), 1, rate_hz)
        .map_err(|e| Format::Mp3.error(e))?;
    encoder.finish();
    drain(&mut encoder, &mut 0)
}

fn drain(encoder: &mut Mp3Encoder, skip: &mut usize) -> Result<Vec<u8>, AudioError> {
    let mut out = Vec::new();
    loop {
        match encoder.next_packet() {
            Ok(_) if *skip > 0 => *skip -= 1,
            Ok(packet) => out.extend(packet),
            Err(Error::Again | Error::Eof) => return Ok(out),
            Err(e) => return Err(Format::Mp3.error(e)),
        }
    }
}

/// Frames as they are made. The Info tag, which would have to be rewritten at the end, is left out.
pub(super) struct Stream {
    encoder: Mp3Encoder,
    rate_hz: u32,
    skip: usize,
}

impl Stream {
    pub(super) fn new(rate_hz: u32) -> Result<Self, AudioError> {
        if !RATES_HZ.contains(&rate_hz) {
            return Err(Format::Mp3.error(format!("no rate of {rate_hz} Hz")));
        }
        Ok(Self {
            encoder: encoder(),
            rate_hz,
            skip: 1,
        })
    }

    pub(super) fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, AudioError> {
        self.encoder
            .push_pcm_f32(&clipped(samples), 1, self.rate_hz)
            .map_err(|e| Format::Mp3.error(e))?;
        drain(&mut self.encoder, &mut self.skip)
    }

    pub(super) fn finish(mut self) -> Result<Vec<u8>, AudioError> {
        self.encoder.finish();
        drain(&mut self.encoder, &mut self.skip)
    }
}
