//! Opus in Ogg (RFC 7845), decoded at 48 kHz.

use std::io::Cursor;

use ogg::PacketReader;
use opus_rs::OpusDecoder;

use super::{Limits, MonoSink, undecodable};
use crate::audio::{Audio, AudioError};

const RATE_HZ: u32 = 48_000;
/// A packet holds at most 120 ms.
const MAX_FRAMES: usize = RATE_HZ as usize * 120 / 1000;

/// Whether the first page of an Ogg stream announces Opus.
pub(super) fn is_ogg_opus(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(512)];
    head.starts_with(b"OggS") && head.windows(8).any(|w| w == b"OpusHead")
}

/// The identification header.
struct Head {
    channels: usize,
    /// Samples to drop at the start.
    pre_skip: usize,
    /// Linear output gain.
    gain: f32,
}

impl Head {
    fn parse(packet: &[u8]) -> Result<Self, AudioError> {
        let [b'O', b'p', b'u', b's', b'H', b'e', b'a', b'd', rest @ ..] = packet else {
            return Err(undecodable("the Opus header is missing"));
        };
        let &[
            version,
            channels,
            skip_low,
            skip_high,
            _,
            _,
            _,
            _,
            gain_low,
            gain_high,
            family,
            ..,
        ] = rest
        else {
            return Err(undecodable("the Opus header is cut short"));
        };
        if version >> 4 != 0 {
            return Err(undecodable(format!("Opus version {version} is unknown")));
        }
        if family != 0 || !(1..=2).contains(&channels) {
            return Err(undecodable("surround Opus is not supported"));
        }
        let gain_db = f32::from(i16::from_le_bytes([gain_low, gain_high])) / 256.0;
        Ok(Self {
            channels: usize::from(channels),
            pre_skip: usize::from(u16::from_le_bytes([skip_low, skip_high])),
            gain: 10f32.powf(gain_db / 20.0),
        })
    }
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Audio, AudioError> {
    let mut reader = PacketReader::new(Cursor::new(bytes));
    let first = reader
        .read_packet_expected()
        .map_err(|e| undecodable(e.to_string()))?;
    let serial = first.stream_serial();
    let head = Head::parse(&first.data)?;
    let mut sink = MonoSink::new(RATE_HZ, head.channels, limits)?;
    // Samples that are dropped at the start, and those behind the end, do not count against the limit.
    sink.max_samples += head.pre_skip + MAX_FRAMES;
    let mut decoder =
        OpusDecoder::new(RATE_HZ as i32, head.channels).map_err(|e| undecodable(e.to_owned()))?;
    let mut pcm = vec![0.0; MAX_FRAMES * head.channels];
    let (mut sound, mut broken) = (0usize, 0usize);
    let mut packets = 0usize;
    let mut end = None;
    while let Ok(Some(packet)) = reader.read_packet() {
        if packet.stream_serial() != serial {
            continue;
        }
        packets += 1;
        // The second packet is the comment header.
        if packets == 1 && packet.data.starts_with(b"OpusTags") {
            continue;
        }
        match decoder.decode(&packet.data, MAX_FRAMES, &mut pcm) {
            Ok(frames) => {
                sound += 1;
                sink.push(
                    &pcm[..frames.min(MAX_FRAMES) * head.channels],
                    head.channels,
                )?;
            }
            Err(_) => broken += 1,
        }
        if packet.last_in_stream() {
            end = usize::try_from(packet.absgp_page()).ok();
        }
    }
    if sound == 0 || broken > sound {
        return Err(undecodable("its Opus packets are damaged"));
    }
    trim(&mut sink, &head, end);
    sink.push(&[], head.channels)?;
    sink.finish()
}

/// Applies pre-skip, the end that the last page gives, and the gain.
fn trim(sink: &mut MonoSink, head: &Head, end: Option<usize>) {
    sink.max_samples -= head.pre_skip + MAX_FRAMES;
    if let Some(end) = end
        && end > head.pre_skip
    {
        sink.samples.truncate(end);
    }
    sink.samples.drain(..head.pre_skip.min(sink.samples.len()));
    for s in &mut sink.samples {
        *s *= head.gain;
    }
}
