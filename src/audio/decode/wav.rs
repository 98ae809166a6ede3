//! RIFF WAVE: integer PCM of 8 to 32 bits, floats of 32 and 64, A-law, µ-law.
//!
//! Own code because recordings with wrong sizes in their headers are common (streams, recorders that were cut off) and
//! must be read as far as they go.

use super::{Limits, MonoSink, undecodable};
use crate::audio::{Audio, AudioError};

const PCM: u16 = 1;
const FLOAT: u16 = 3;
const A_LAW: u16 = 6;
const MU_LAW: u16 = 7;
/// The format is in the first bytes of a GUID further on.
const EXTENSIBLE: u16 = 0xfffe;

/// Frames that are converted at once.
const FRAMES: usize = 4096;

/// Whether the bytes start as a WAVE file.
pub(super) fn is_wav(bytes: &[u8]) -> bool {
    let riff = bytes.starts_with(b"RIFF") || bytes.starts_with(b"RF64");
    riff && bytes.get(8..12) == Some(b"WAVE")
}

/// The `fmt ` chunk.
struct Layout {
    tag: u16,
    channels: usize,
    rate_hz: u32,
    /// Bytes of a sample.
    width: usize,
    /// Bytes of a frame, as the file says.
    align: usize,
}

impl Layout {
    fn parse(chunk: &[u8]) -> Result<Self, AudioError> {
        let word = |at: usize| Some(u16::from_le_bytes(*chunk.get(at..)?.first_chunk()?));
        let short = || undecodable("the wav header is cut short");
        let mut tag = word(0).ok_or_else(short)?;
        let (channels, align) = (word(2).ok_or_else(short)?, word(12).ok_or_else(short)?);
        let rate = chunk.get(4..8).and_then(|b| b.first_chunk());
        let bits = word(14).ok_or_else(short)?;
        if tag == EXTENSIBLE {
            tag = word(24).ok_or_else(short)?;
        }
        Ok(Self {
            tag,
            channels: usize::from(channels),
            rate_hz: u32::from_le_bytes(*rate.ok_or_else(short)?),
            width: usize::from(bits).div_ceil(8),
            align: usize::from(align),
        })
    }

    /// The converter of one sample.
    fn converter(&self) -> Option<fn(&[u8]) -> f32> {
        Some(match (self.tag, self.width) {
            (PCM, 1) => |b| (f32::from(b[0]) - 128.0) / 128.0,
            (PCM, 2) => |b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0,
            (PCM, 3) => |b| (i32::from_le_bytes([0, b[0], b[1], b[2]]) >> 8) as f32 / 8_388_608.0,
            (PCM, 4) => |b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32 / 2_147_483_648.0,
            (FLOAT, 4) => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            (FLOAT, 8) => {
                |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32
            }
            (A_LAW, 1) => |b| f32::from(a_law(b[0])) / 32_768.0,
            (MU_LAW, 1) => |b| f32::from(mu_law(b[0])) / 32_768.0,
            _ => return None,
        })
    }
}

/// `None` when the file holds another codec than those here.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Option<Result<Audio, AudioError>> {
    let (layout, data) = match chunks(bytes) {
        Ok(found) => found,
        Err(e) => return Some(Err(e)),
    };
    let convert = layout.converter()?;
    Some(read(&layout, convert, data, limits))
}

/// The layout and the samples' bytes: as many as the file says, or as it has.
fn chunks(bytes: &[u8]) -> Result<(Layout, &[u8]), AudioError> {
    let mut layout = None;
    let mut rest = &bytes[12..];
    while let Some((header, body)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, size @ ..] = *header;
        let size = (u32::from_le_bytes(size) as usize).min(body.len());
        let chunk = &body[..size];
        match &[a, b, c, d] {
            b"fmt " => layout = Some(Layout::parse(chunk)?),
            b"data" => {
                let layout = layout.ok_or_else(|| undecodable("the wav has no format"))?;
                return Ok((layout, chunk));
            }
            _ => {}
        }
        // Chunks start at even offsets.
        rest = body.get(size + size % 2..).unwrap_or_default();
    }
    Err(undecodable("the wav holds no samples"))
}

fn read(
    layout: &Layout,
    convert: fn(&[u8]) -> f32,
    data: &[u8],
    limits: &Limits,
) -> Result<Audio, AudioError> {
    let mut sink = MonoSink::new(layout.rate_hz, layout.channels, limits)?;
    let frame = layout.channels * layout.width;
    if layout.align != frame {
        return Err(undecodable("the wav header contradicts itself"));
    }
    let mut samples = Vec::new();
    for part in data.chunks(FRAMES * frame) {
        samples.clear();
        samples.extend(part.chunks_exact(layout.width).map(convert));
        sink.push(&samples, layout.channels)?;
    }
    sink.finish()
}

/// ITU-T G.711 A-law to 16-bit.
fn a_law(code: u8) -> i16 {
    let code = code ^ 0x55;
    let (exponent, mantissa) = ((code >> 4) & 7, i16::from(code & 15));
    let magnitude = match exponent {
        0 => (mantissa << 4) + 8,
        e => ((mantissa << 4) + 0x108) << (e - 1),
    };
    if code & 0x80 == 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// ITU-T G.711 µ-law to 16-bit.
fn mu_law(code: u8) -> i16 {
    const BIAS: i16 = 0x84;
    let code = !code;
    let (exponent, mantissa) = ((code >> 4) & 7, i16::from(code & 15));
    let magnitude = (((mantissa << 3) + BIAS) << exponent) - BIAS;
    if code & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wav(tag: u16, bits: u16, channels: u16, data: &[u8]) -> Vec<u8> {
        let align = channels * bits.div_ceil(8);
        let mut out = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
        out.extend(tag.to_le_bytes());
        out.extend(channels.to_le_bytes());
        out.extend(16_000u32.to_le_bytes());
        out.extend((16_000 * u32::from(align)).to_le_bytes());
        out.extend(align.to_le_bytes());
        out.extend(bits.to_le_bytes());
        // A chunk of odd size before the data.
        out.extend(b"LIST\x03\0\0\0abc\0data");
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
        out
    }

    fn samples(tag: u16, bits: u16, channels: u16, data: &[u8]) -> Vec<f32> {
        let bytes = wav(tag, bits, channels, data);
        assert!(is_wav(&bytes));
        decode(&bytes, &Limits::default())
            .expect("a codec of ours")
            .expect("samples")
            .samples
    }

    #[test]
    fn every_sample_type() {
        assert_eq!(samples(PCM, 8, 1, &[0, 128, 192]), [-1.0, 0.0, 0.5]);
        assert_eq!(samples(PCM, 16, 1, &[0, 0x80, 0, 0x40]), [-1.0, 0.5]);
        assert_eq!(samples(PCM, 24, 1, &[0, 0, 0x80, 0, 0, 0x40]), [-1.0, 0.5]);
        assert_eq!(samples(PCM, 32, 1, &[0, 0, 0, 0xc0]), [-0.5]);
        assert_eq!(samples(FLOAT, 32, 1, &0.25f32.to_le_bytes()), [0.25]);
        assert_eq!(samples(FLOAT, 64, 1, &0.25f64.to_le_bytes()), [0.25]);
        assert_eq!(samples(PCM, 16, 2, &[0, 0x80, 0, 0x40]), [-0.25]);
        // Extremes and the smallest steps of G.711.
        assert_eq!([a_law(0xd5), a_law(0x55), a_law(0xaa)], [8, -8, 32_256]);
        assert_eq!(
            [mu_law(0xff), mu_law(0x80), mu_law(0)],
            [0, 32_124, -32_124]
        );
        assert_eq!(samples(MU_LAW, 8, 1, &[0xff]), [0.0]);
    }

    #[test]
    fn other_codecs_are_left_to_others() {
        let mut adpcm = wav(2, 4, 1, &[0; 8]);
        adpcm[32] = 0;
        adpcm[33] = 4;
        assert!(decode(&adpcm, &Limits::default()).is_none());
    }
}
