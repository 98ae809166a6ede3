//! Every output format, whole and streamed, decoded again. MP3, AAC and FLAC go through symphonia and WAV through hound, which
//! share no code with the encoders or our reader. `AUDIO_DUMP=DIR` keeps the files, for `tests/audio/independent.py` to check with libsndfile and ffmpeg.

use std::io::Cursor;

use cosyvoice::audio::{Audio, Format, Limits, StreamEncoder, decode, encode};
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

use super::speech;
use crate::support::metrics::snr_db;

const RATE_HZ: u32 = 24_000;

/// Mono samples by symphonia alone.
fn symphonia(bytes: &[u8]) -> Audio {
    let source = Box::new(Cursor::new(bytes.to_vec()));
    let stream = MediaSourceStream::new(source, MediaSourceStreamOptions::default());
    let (options, tags) = (FormatOptions::default(), MetadataOptions::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, options, tags)
        .expect("a known format");
    let track = format.default_track(TrackType::Audio).expect("a track");
    let params = track.codec_params.as_ref().expect("parameters");
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(
            params.audio().expect("audio"),
            &AudioDecoderOptions::default(),
        )
        .expect("a decoder");
    let (mut samples, mut part, mut rate_hz) = (Vec::new(), Vec::<f32>::new(), 0);
    while let Ok(Some(packet)) = format.next_packet() {
        let buffer = decoder.decode(&packet).expect("a sound packet");
        rate_hz = buffer.spec().rate();
        buffer.copy_to_vec_interleaved(&mut part);
        samples.extend_from_slice(&part);
    }
    Audio { samples, rate_hz }
}

fn hound(bytes: &[u8]) -> Audio {
    let mut reader = hound::WavReader::new(Cursor::new(bytes)).expect("a wav");
    let rate_hz = reader.spec().sample_rate;
    let samples = reader
        .samples::<i16>()
        .map(|s| f32::from(s.expect("sample")) / 32_768.0);
    Audio {
        samples: samples.collect(),
        rate_hz,
    }
}

fn ours(bytes: &[u8]) -> Audio {
    decode(bytes, &Limits::default()).expect("our own file")
}

fn streamed(format: Format, x: &[f32]) -> Vec<u8> {
    let mut encoder = StreamEncoder::new(format, RATE_HZ).expect("a stream");
    let mut out = Vec::new();
    // Pieces of awkward sizes, an empty one among them.
    let mut rest = x;
    for size in [1usize, 0, 479, 4096, 9601, 24_000].into_iter().cycle() {
        let (piece, more) = rest.split_at(size.min(rest.len()));
        out.extend(encoder.push(piece).expect("push"));
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    out.extend(encoder.finish().expect("finish"));
    out
}

fn dump(name: &str, bytes: &[u8]) {
    if let Some(dir) = std::env::var_os("AUDIO_DUMP") {
        std::fs::write(std::path::Path::new(&dir).join(name), bytes).expect("dump");
    }
}

/// SNR at the best lag from 0 to `max_lag`, over what both have.
fn best_snr(decoded: &[f32], x: &[f32], max_lag: usize) -> (f64, usize) {
    (0..=max_lag.min(decoded.len()))
        .map(|lag| {
            let n = (decoded.len() - lag).min(x.len());
            assert!(n * 100 > x.len() * 95, "only {n} samples at lag {lag}");
            (snr_db(&decoded[lag..lag + n], &x[..n]), lag)
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .expect("a lag")
}

fn as_pcm16(x: &[f32]) -> Vec<f32> {
    let round = |v: &f32| (v * 32768.0).round().clamp(-32768.0, 32767.0) / 32768.0;
    x.iter().map(round).collect()
}

#[test]
fn lossless_formats_keep_every_sample() {
    let x = speech(RATE_HZ);
    let expected = as_pcm16(&x);
    for format in [Format::Wav, Format::Flac] {
        for (kind, bytes) in [
            ("whole", encode(format, &x, RATE_HZ).expect("encode")),
            ("stream", streamed(format, &x)),
        ] {
            dump(&format!("{kind}.{format}"), &bytes);
            let independent = match (format, kind) {
                (Format::Wav, "whole") => hound(&bytes),
                (Format::Wav, _) => ours(&bytes),
                _ => symphonia(&bytes),
            };
            for audio in [independent, ours(&bytes)] {
                assert_eq!(audio.rate_hz, RATE_HZ, "{kind} {format}");
                assert_eq!(audio.samples.len(), expected.len(), "{kind} {format}");
                assert!(audio.samples == expected, "{kind} {format}: samples differ");
            }
        }
    }
    let pcm = encode(Format::Pcm, &x, RATE_HZ).expect("encode");
    assert_eq!(pcm, streamed(Format::Pcm, &x));
    let wav = encode(Format::Wav, &x, RATE_HZ).expect("encode");
    assert_eq!(pcm, wav[44..]);
}

#[test]
fn lossy_formats_keep_the_sound() {
    let x = speech(RATE_HZ);
    // Floors a few dB below what is measured; lags are the encoders' delays where nothing tells the decoder of them.
    for (format, floor_db, stream_lag) in [
        (Format::Mp3, 30.0, 1200),
        (Format::Opus, 15.0, 0),
        (Format::Aac, 20.0, 2200),
        (Format::M4a, 20.0, 0),
    ] {
        if !format.is_available() {
            continue;
        }
        let whole = encode(format, &x, RATE_HZ).expect("encode");
        let stream = streamed(format, &x);
        dump(&format!("whole.{format}"), &whole);
        dump(&format!("stream.{format}"), &stream);
        let seconds = x.len() as f64 / f64::from(RATE_HZ);
        let kbps = whole.len() as f64 * 8e-3 / seconds;
        for (kind, bytes, lag) in [("whole", &whole, 2200), ("stream", &stream, stream_lag)] {
            let audio = ours(bytes);
            let reference = cosyvoice::audio::resample(&x, RATE_HZ, audio.rate_hz);
            let scale = (audio.rate_hz / RATE_HZ) as usize;
            let lag = if format == Format::Aac {
                2200
            } else {
                lag.min(stream_lag)
            };
            let (snr, lag) = best_snr(&audio.samples, &reference, lag * scale);
            println!("{kind} {format}: {snr:.1} dB at lag {lag}, {kbps:.0} kbit/s");
            assert!(snr >= floor_db, "{kind} {format}: {snr} dB");
            if format != Format::Aac && (kind, format) != ("stream", Format::Mp3) {
                assert_eq!(audio.samples.len(), reference.len(), "{kind} {format}");
                assert_eq!(lag, 0, "{kind} {format}");
            }
        }
        if matches!(format, Format::Mp3 | Format::Aac) {
            let (snr, _) = best_snr(&symphonia(&whole).samples, &x, 2200);
            assert!(snr >= floor_db, "{format} by symphonia: {snr} dB");
        }
    }
}

#[test]
fn odd_rates_and_levels_are_written() {
    let loud: Vec<f32> = speech(22_050).iter().map(|v| v * 40.0).collect();
    for format in Format::available() {
        for rate_hz in [16_000, 22_050, 44_100, 24_001] {
            let bytes = encode(format, &loud, rate_hz).expect("encode");
            assert!(!bytes.is_empty(), "{format} at {rate_hz} Hz");
            if format != Format::Pcm {
                let seconds = ours(&bytes).seconds();
                let expected = loud.len() as f64 / f64::from(rate_hz);
                assert!(
                    (seconds - expected).abs() < 0.15,
                    "{format} at {rate_hz} Hz: {seconds} s"
                );
            }
        }
    }
}

#[test]
fn short_audio_is_written() {
    for format in Format::available().filter(|&f| f != Format::Pcm) {
        for n in [1usize, 15, 100, 481] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.1).sin() * 0.5).collect();
            let whole = encode(format, &x, RATE_HZ).expect("encode");
            for bytes in [whole, streamed(format, &x)] {
                let decoded = ours(&bytes).samples.len();
                assert!(decoded >= n, "{format}: {decoded} of {n}");
            }
        }
    }
}

#[test]
fn no_samples_are_an_empty_file_or_an_error() {
    for format in Format::available() {
        let stream = StreamEncoder::new(format, RATE_HZ).expect("a stream");
        for bytes in [encode(format, &[], RATE_HZ), stream.finish()] {
            let decoded = bytes.map_or(0, |b| {
                decode(&b, &Limits::default()).map_or(0, |a| a.samples.len())
            });
            assert!(
                decoded < RATE_HZ as usize,
                "{format}: {decoded} samples of nothing"
            );
        }
    }
}
