//! Recordings that lie, break off, or are none: always an error or samples within the limits, never a panic.

use cosyvoice::audio::{AudioError, Format, Limits, StreamEncoder, decode, encode, prompt};

use super::speech;

const RATE_HZ: u32 = 24_000;

fn wav() -> Vec<u8> {
    encode(Format::Wav, &speech(RATE_HZ)[..6000], RATE_HZ).expect("wav")
}

/// A wav whose 32-bit field at `at` says `value`.
fn lying(at: usize, value: u32) -> Vec<u8> {
    let mut bytes = wav();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn lying_headers() {
    let limits = Limits::default();
    // Sizes beyond the file give what is there.
    for at in [4, 40] {
        for value in [u32::MAX, 0x7fff_ffff, 1_000_000] {
            let audio = decode(&lying(at, value), &limits).expect("what is there");
            assert_eq!(audio.samples.len(), 6000);
        }
    }
    for rate in [0, 1, 7_999, 384_001, u32::MAX] {
        let result = decode(&lying(24, rate), &limits);
        assert!(
            matches!(
                result,
                Err(AudioError::Rate { .. } | AudioError::Undecodable { .. })
            ),
            "rate {rate}: {result:?}"
        );
    }
    // Format and channels share a word: PCM with 0, 9 and 65535 channels.
    for channels in [0u32, 9, 0xffff] {
        let result = decode(&lying(20, 1 | channels << 16), &limits);
        assert!(result.is_err(), "{channels} channels");
    }
}

#[test]
fn every_prefix_of_every_format() {
    let x = &speech(RATE_HZ)[..3000];
    for format in Format::available() {
        let bytes = encode(format, x, RATE_HZ).expect("encode");
        for len in 0..bytes.len() {
            if let Ok(audio) = decode(&bytes[..len], &Limits::default()) {
                assert!(
                    audio.samples.len() <= 2 * x.len() + 10_000,
                    "{format}: {len} bytes"
                );
            }
        }
    }
}

#[test]
fn bytes_that_are_no_audio() {
    let mut noise = 1u64;
    let mut random = move || {
        noise = noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (noise >> 56) as u8
    };
    let limits = Limits::default();
    assert_eq!(decode(&[], &limits), Err(AudioError::Empty));
    for head in [
        "",
        "RIFF",
        "OggS",
        "fLaC",
        "ID3\u{4}",
        "\0\0\0\u{20}ftypM4A ",
    ] {
        for len in [1, 10, 100, 5000] {
            let mut bytes = head.as_bytes().to_vec();
            bytes.extend((0..len).map(|_| random()));
            assert!(decode(&bytes, &limits).is_err(), "{head:?} and {len} bytes");
        }
    }
    let text = "This is a text file, not a recording.\n".repeat(1000);
    assert!(matches!(
        decode(text.as_bytes(), &limits),
        Err(AudioError::Undecodable { .. })
    ));
}

/// A few kilobytes that hold minutes: decoding stops at the limit.
#[test]
fn small_files_that_hold_long_audio() {
    for format in [Format::Flac, Format::Opus, Format::Mp3] {
        let mut encoder = StreamEncoder::new(format, RATE_HZ).expect("stream");
        let silence = vec![0.0; RATE_HZ as usize];
        let mut bytes = Vec::new();
        for _ in 0..40 {
            bytes.extend(encoder.push(&silence).expect("push"));
        }
        bytes.extend(encoder.finish().expect("finish"));
        let result = decode(&bytes, &Limits::default());
        assert_eq!(
            result,
            Err(AudioError::TooLong {
                limit_seconds: 30.0
            }),
            "{format}"
        );
    }
}

#[test]
fn limits_of_size_and_content() {
    let bytes = wav();
    assert_eq!(
        prompt::read(&bytes, bytes.len() - 1),
        Err(AudioError::TooLarge {
            bytes: bytes.len(),
            limit: bytes.len() - 1
        })
    );
    assert!(prompt::read(&bytes, bytes.len()).is_ok());
    let silence = encode(Format::Wav, &[0.0; 24_000], RATE_HZ).expect("wav");
    assert!(matches!(
        prompt::read(&silence, 1 << 20),
        Err(AudioError::Silent { .. })
    ));
    let telephone = encode(Format::Wav, &speech(8_000), 8_000).expect("wav");
    assert!(matches!(
        prompt::read(&telephone, 1 << 20),
        Err(AudioError::Rate { rate_hz: 8_000, .. })
    ));
    // Floating-point samples that are not numbers.
    let mut float = wav();
    float.truncate(44);
    float[20] = 3;
    float[34] = 32;
    float[32] = 4;
    float[28..32].copy_from_slice(&(RATE_HZ * 4).to_le_bytes());
    float[40..44].copy_from_slice(&48_000u32.to_le_bytes());
    float.extend((0..12_000).flat_map(|_| f32::NAN.to_le_bytes()));
    assert_eq!(
        decode(&float, &Limits::default()),
        Err(AudioError::NotFinite)
    );
}

/// Random damage to sound files. `AUDIO_FUZZ_ROUNDS` makes it longer.
#[test]
fn damaged_files() {
    let rounds = std::env::var("AUDIO_FUZZ_ROUNDS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(150usize);
    let x = &speech(RATE_HZ)[..4000];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    for format in Format::available() {
        let sound = encode(format, x, RATE_HZ).expect("encode");
        for _ in 0..rounds {
            let mut bytes = sound.clone();
            for _ in 0..1 + random(8) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] = random(256) as u8,
                    1 => bytes[at] ^= 1 << random(8),
                    2 => bytes.truncate(at + 1),
                    _ => {
                        let end = (at + 1 + random(16)).min(bytes.len());
                        bytes.drain(at..end);
                    }
                }
                if bytes.is_empty() {
                    break;
                }
            }
            if let Ok(audio) = decode(&bytes, &Limits::default()) {
                assert!(audio.seconds() <= 30.1, "{format}");
                assert!(audio.samples.iter().all(|v| v.is_finite()), "{format}");
            }
        }
    }
}
