//! Audio in and out: what we write against decoders that are not ours, what we read against hostile bytes.

mod hostile;
mod round_trip;

/// Two seconds and a bit of something like speech: a gliding harmonic voice under syllables, with breath noise.
fn speech(rate_hz: u32) -> Vec<f32> {
    let n = (f64::from(rate_hz) * 2.317) as usize;
    let mut phase = 0.0f64;
    let mut noise = 0x1234_5678u32;
    (0..n)
        .map(|i| {
            let t = i as f64 / f64::from(rate_hz);
            let f0 = 140.0 + 40.0 * (2.0 * std::f64::consts::PI * 0.7 * t).sin();
            phase += 2.0 * std::f64::consts::PI * f0 / f64::from(rate_hz);
            let voice: f64 = (1..12)
                .map(|h| (phase * f64::from(h)).sin() / f64::from(h))
                .sum();
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let breath = f64::from(noise >> 8) / f64::from(1u32 << 24) - 0.5;
            let syllable = (2.0 * std::f64::consts::PI * 3.1 * t).sin().max(0.0).sqrt();
            (0.25 * syllable * voice + 0.004 * breath) as f32
        })
        .collect()
}
