//! The fixed noise that every flow starts from: `torch.manual_seed(0); torch.randn([1, mels, frames])` on a CPU,
//! as the constructor of the reference draws it (`flow/flow_matching.py`, `CausalConditionalCFM`). It is in no checkpoint.
//!
//! Output: channels-last values, so that a mel of `T` frames uses the first `T` rows.

const STATE: usize = 624;
const SHIFT: usize = 397;
/// Values that one Box–Muller block of PyTorch makes: 8 radii and 8 angles.
const BLOCK: usize = 16;

/// The generator of PyTorch's CPU backend (Matsumoto and Nishimura's MT19937).
struct Mt19937 {
    state: [u32; STATE],
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [0; STATE];
        state[0] = seed;
        for i in 1..STATE {
            let previous = state[i - 1];
            state[i] = 1_812_433_253_u32
                .wrapping_mul(previous ^ (previous >> 30))
                .wrapping_add(i as u32);
        }
        Self { state, next: STATE }
    }

    fn refill(&mut self) {
        for i in 0..STATE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == STATE {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A uniform in `[0, 1)` with 24 random bits.
    fn uniform(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }
}

/// Turns 16 uniforms into normals: value `j` is the radius of one pair, value `j + 8` its angle.
fn normal_block(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (u, v) in radii.iter_mut().zip(angles) {
        // The angle is rounded to f32 as PyTorch's is; the rest is exact enough to round once.
        let angle = f64::from(std::f32::consts::TAU * *v);
        let radius = (-2.0 * f64::from(1.0 - *u).ln()).sqrt();
        *u = (radius * angle.cos()) as f32;
        *v = (radius * angle.sin()) as f32;
    }
}

/// `torch.randn` of `len ≥ 16` values after `torch.manual_seed(seed)`.
fn randn(seed: u32, len: usize) -> Vec<f32> {
    assert!(len >= BLOCK, "randn: {len} values need another recipe");
    let mut generator = Mt19937::new(seed);
    let mut values: Vec<f32> = (0..len).map(|_| generator.uniform()).collect();
    for block in values.chunks_exact_mut(BLOCK) {
        normal_block(block);
    }
    if !len.is_multiple_of(BLOCK) {
        let tail = &mut values[len - BLOCK..];
        tail.fill_with(|| generator.uniform());
        normal_block(tail);
    }
    values
}

/// The noise of the reference, row-major `[frames, mels]`; it depends on `frames` as well, because the draws run along time first.
pub fn fixed_noise(mels: usize, frames: usize) -> Vec<f32> {
    let drawn = randn(0, mels * frames);
    let mut rows = vec![0.0; drawn.len()];
    for (mel, channel) in drawn.chunks_exact(frames).enumerate() {
        for (frame, &value) in channel.iter().enumerate() {
            rows[frame * mels + mel] = value;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 10 000th output for the default seed, from the C++ standard's requirement on `std::mt19937`.
    #[test]
    fn known_answer_of_the_cpp_standard() {
        let mut generator = Mt19937::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_ragged_tail_redraws_the_last_block() {
        let (even, ragged) = (randn(0, 32), randn(0, 40));
        assert_eq!(even[..24], ragged[..24]);
        assert!(ragged.iter().all(|v| v.is_finite()));
        assert_ne!(ragged[24..32], even[24..32]);
    }
}
