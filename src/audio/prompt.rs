//! Which recordings can serve as a voice.
//!
//! In: a decoded recording; out: the same at the rates of the models, or the rule that it breaks. The bounds on duration and
//! on the sample rate are those of the official front end (`cli/frontend.py`, `utils/file_utils.py: load_wav`).

use super::{Audio, AudioError, Limits, decode, resample};

/// Recordings longer than this are refused, as the official front end does.
pub const MAX_SECONDS: f64 = 30.0;
/// Shorter recordings carry too little of a voice: fewer than six speech tokens.
pub const MIN_SECONDS: f64 = 0.25;
/// A recording at a lower rate lacks what the models need to hear.
pub const MIN_RATE_HZ: u32 = 16_000;
/// A peak below −60 dB of full scale counts as silence.
pub const SILENCE_PEAK: f32 = 1e-3;

/// Decodes a recording and checks that it can serve as a prompt.
///
/// # Errors
/// Undecodable bytes, and every rule of [`check`].
pub fn read(bytes: &[u8], max_bytes: usize) -> Result<Audio, AudioError> {
    let limits = Limits {
        max_bytes,
        max_seconds: MAX_SECONDS,
        min_rate_hz: MIN_RATE_HZ,
        ..Limits::default()
    };
    let audio = decode(bytes, &limits)?;
    check(&audio)?;
    Ok(audio)
}

/// Checks duration, rate, level and values of a recording.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(audio: &Audio) -> Result<(), AudioError> {
    if audio.samples.is_empty() {
        return Err(AudioError::Empty);
    }
    let limits = Limits::default();
    if audio.rate_hz < MIN_RATE_HZ || audio.rate_hz > limits.max_rate_hz {
        return Err(AudioError::Rate {
            rate_hz: audio.rate_hz,
            min_hz: MIN_RATE_HZ,
            max_hz: limits.max_rate_hz,
        });
    }
    if audio.seconds() > MAX_SECONDS {
        return Err(AudioError::TooLong {
            limit_seconds: MAX_SECONDS,
        });
    }
    if audio.seconds() < MIN_SECONDS {
        return Err(AudioError::TooShort {
            seconds: audio.seconds(),
            needed_seconds: MIN_SECONDS,
        });
    }
    if audio.samples.iter().any(|x| !x.is_finite()) {
        return Err(AudioError::NotFinite);
    }
    let peak = audio.samples.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if peak < SILENCE_PEAK {
        return Err(AudioError::Silent { peak });
    }
    Ok(())
}

/// The recording at `rate_hz`.
pub fn at_rate(audio: &Audio, rate_hz: u32) -> Vec<f32> {
    resample(&audio.samples, audio.rate_hz, rate_hz)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(seconds: f64, rate_hz: u32, level: f32) -> Audio {
        let samples = (0..(seconds * f64::from(rate_hz)) as usize)
            .map(|n| level * (n as f32 * 0.1).sin())
            .collect();
        Audio { samples, rate_hz }
    }

    #[test]
    fn each_rule_has_its_error() {
        assert_eq!(check(&tone(30.0, 24_000, 0.5)), Ok(()));
        assert_eq!(check(&tone(0.0, 24_000, 0.5)), Err(AudioError::Empty));
        assert!(matches!(
            check(&tone(30.1, 24_000, 0.5)),
            Err(AudioError::TooLong { .. })
        ));
        assert!(matches!(
            check(&tone(0.2, 24_000, 0.5)),
            Err(AudioError::TooShort { .. })
        ));
        assert!(matches!(
            check(&tone(1.0, 8_000, 0.5)),
            Err(AudioError::Rate { .. })
        ));
        assert!(matches!(
            check(&tone(1.0, 24_000, 1e-4)),
            Err(AudioError::Silent { .. })
        ));
        let mut broken = tone(1.0, 24_000, 0.5);
        broken.samples[7] = f32::NAN;
        assert_eq!(check(&broken), Err(AudioError::NotFinite));
    }
}
