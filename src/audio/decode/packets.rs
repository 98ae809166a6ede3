//! Containers and codecs of symphonia: wav, mp3, flac, Ogg Vorbis, m4a, ADTS.

use std::io::Cursor;

use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::common::Limit;
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

use super::{Limits, MonoSink, check_channels, undecodable};
use crate::audio::{Audio, AudioError};

/// Tags and pictures beyond this are skipped, not kept.
const MAX_TAG_BYTES: usize = 1 << 20;

/// What can be read, for the message about what cannot.
const KNOWN: &str = "wav, mp3, flac, ogg (Vorbis, Opus), m4a, aac";

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Audio, AudioError> {
    let source = Box::new(Cursor::new(bytes));
    let stream = MediaSourceStream::new(source, MediaSourceStreamOptions::default());
    let tags = MetadataOptions::default()
        .limit_tag_bytes(Limit::Maximum(MAX_TAG_BYTES))
        .limit_visual_bytes(Limit::Maximum(MAX_TAG_BYTES));
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, FormatOptions::default(), tags)
        .map_err(|e| match e {
            Error::Unsupported(_) => undecodable(format!("it is none of {KNOWN}")),
            e => undecodable(e.to_string()),
        })?;
    let track = format
        .default_track(TrackType::Audio)
        .ok_or_else(|| undecodable("it has no audio track"))?;
    let track_id = track.id;
    let params = track
        .codec_params
        .as_ref()
        .and_then(|p| p.audio())
        .ok_or_else(|| undecodable("its codec is unknown"))?;
    if let Some(channels) = &params.channels {
        check_channels(channels.count(), limits)?;
    }
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(params, &AudioDecoderOptions::default())
        .map_err(|e| undecodable(e.to_string()))?;
    read_track(format.as_mut(), decoder.as_mut(), track_id, limits)
}

fn read_track(
    format: &mut dyn FormatReader,
    decoder: &mut dyn AudioDecoder,
    track_id: u32,
    limits: &Limits,
) -> Result<Audio, AudioError> {
    let mut sink: Option<MonoSink> = None;
    let mut interleaved = Vec::new();
    let (mut sound, mut broken) = (0usize, 0usize);
    let mut last_error = String::new();
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            // A file that breaks off ends here with what it gave; one that never gave anything is refused below.
            Err(e) => {
                last_error = e.to_string();
                break;
            }
        };
        if packet.track_id != track_id {
            continue;
        }
        let buffer = match decoder.decode(&packet) {
            Ok(buffer) => buffer,
            Err(e @ (Error::DecodeError(_) | Error::IoError(_))) => {
                broken += 1;
                last_error = e.to_string();
                continue;
            }
            Err(e) => return Err(undecodable(e.to_string())),
        };
        sound += 1;
        let (rate_hz, channels) = (buffer.spec().rate(), buffer.spec().channels().count());
        let sink = match &mut sink {
            Some(sink) if sink.rate_hz != rate_hz => {
                return Err(undecodable("its sample rate changes in the middle"));
            }
            Some(sink) => sink,
            none => none.insert(MonoSink::new(rate_hz, channels, limits)?),
        };
        buffer.copy_to_vec_interleaved(&mut interleaved);
        sink.push(&interleaved, channels)?;
    }
    if broken > sound {
        return Err(undecodable(last_error));
    }
    sink.ok_or_else(|| {
        undecodable(match last_error.as_str() {
            "" => "it holds no samples",
            e => e,
        })
    })?
    .finish()
}
