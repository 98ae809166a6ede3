//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random numbers as a pure
//! function of a key and a counter, so that every backend draws the same ones in any order.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// What a random number is for; keeps the streams of one seed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    Sampling = 1,
    SourceNoise = 2,
}

/// The bare permutation: ten rounds of counter and key.
#[inline(always)]
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Four 32-bit words for `(seed, stream, position)`; `lane` extends the counter.
#[inline(always)]
pub fn philox(seed: u64, stream: Stream, position: u64, lane: u32) -> [u32; 4] {
    let counter = [
        position as u32,
        (position >> 32) as u32,
        lane,
        stream as u32,
    ];
    philox4x32(counter, [seed as u32, (seed >> 32) as u32])
}

/// A uniform in `[0, 1)` with 53 random bits from two words.
pub fn uniform_f64(hi: u32, lo: u32) -> f64 {
    let bits = (u64::from(hi) << 32 | u64::from(lo)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The two uniforms of a sampling step.
pub fn sampling_uniforms(seed: u64, step: u32) -> [f64; 2] {
    let w = philox(seed, Stream::Sampling, u64::from(step), 0);
    [uniform_f64(w[0], w[1]), uniform_f64(w[2], w[3])]
}

/// What Box and Muller make two normals of, from two words: a uniform in (0, 1] and an angle.
#[inline(always)]
pub fn uniform_and_angle(a: u32, b: u32) -> (f32, f32) {
    // (0, 1]: the logarithm of zero must not occur.
    let u = (f64::from(a) + 1.0) as f32 * (1.0 / 4_294_967_296.0);
    let v = b as f32 * (1.0 / 4_294_967_296.0);
    (u, std::f32::consts::TAU * v)
}

/// Two independent standard normals from two words (Box–Muller, f32).
pub fn normal_pair(a: u32, b: u32) -> [f32; 2] {
    let (u, angle) = uniform_and_angle(a, b);
    let r = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = angle.sin_cos();
    [r * cos, r * sin]
}

/// Standard normals of four neighbouring harmonics of the source noise at sample `position`: harmonic `h` is value `h % 4` of lane `h / 4`.
pub fn source_normals(seed: u64, position: u64, lane: u32) -> [f32; 4] {
    let w = philox(seed, Stream::SourceNoise, position, lane);
    let ([a, b], [c, d]) = (normal_pair(w[0], w[1]), normal_pair(w[2], w[3]));
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123's `kat_vectors` for philox4x32-10.
    #[test]
    fn known_answers_of_random123() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}
