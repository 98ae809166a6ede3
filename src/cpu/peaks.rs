//! What this machine can do at most, measured: the yardstick of every benchmark.

use std::hint::black_box;
use std::time::Instant;

use super::isa::{Isa, Level, per_isa};
use super::{Buffer, Cpu};
use crate::backend::Result;

/// Far more than any last-level cache.
const READ_BYTES: usize = 512 << 20;
const READ_CHUNK_BYTES: usize = 4 << 20;
const ROUNDS: usize = 7;
/// Multiply-add steps of one timed loop: a few milliseconds.
const STEPS: usize = 1 << 20;

/// Limits of the machine with the backend's threads. Best of several rounds each.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Bytes per second of reading memory from front to back.
    pub read_bytes_per_s: f64,
    /// Operations per second (a multiply-add is two) of f32 multiply-adds on registers.
    pub f32_flops_per_s: f64,
    /// The same for products with bf16 weights. Where the CPU has no such instruction in use they are widened to f32, and the limit is that of f32.
    pub bf16_flops_per_s: f64,
    /// The same for products with int8 weights, which are multiplied and added as pairs of 16-bit integers where the CPU does that for many at once.
    pub int8_flops_per_s: f64,
}

impl Cpu {
    /// Measures the machine: about two seconds, 512 MiB.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn measure_peaks(&self) -> Result<Peaks> {
        let read_bytes_per_s = self.read_bandwidth()?;
        let f32_flops_per_s = self.multiply_add_rate(multiply_adds, lanes(self));
        let int8_flops_per_s = match self.isa.level() {
            Level::Portable => f32_flops_per_s,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => self.multiply_add_rate(integer_multiply_adds, CHAINS * 16),
        };
        Ok(Peaks {
            read_bytes_per_s,
            f32_flops_per_s,
            bf16_flops_per_s: f32_flops_per_s,
            int8_flops_per_s,
        })
    }

    fn read_bandwidth(&self) -> Result<f64> {
        let buffer = Buffer::zeroed_huge(READ_BYTES / 4)?;
        let values = buffer.as_slice();
        let chunk = READ_CHUNK_BYTES / 4;
        let pass = || {
            self.pool.run(values.len() / chunk, |i| {
                black_box(checksum(self.isa, &values[i * chunk..(i + 1) * chunk]));
            });
        };
        Ok(READ_BYTES as f64 / best_seconds(pass))
    }

    /// Of loops whose step makes `lanes` multiply-adds.
    fn multiply_add_rate(&self, steps: fn(Isa, usize, f32) -> f32, lanes: usize) -> f64 {
        let threads = self.pool.threads();
        // As many chunks as threads would leave one thread with two when another is late; many small ones even that out.
        let chunks = 16 * threads;
        let pass = || {
            self.pool.run(chunks, |i| {
                black_box(steps(self.isa, STEPS / 16, i as f32));
            });
        };
        let flops = (chunks * (STEPS / 16) * 2 * lanes) as f64;
        flops / best_seconds(pass)
    }
}

/// Shortest time of several rounds, after one to warm up.
fn best_seconds(pass: impl Fn()) -> f64 {
    pass();
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            pass();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

per_isa! {
    /// Reads everything: xor of all bits.
    fn checksum<FMA>(values: &[f32]) -> u32 {
        let mut lanes = [0u32; 64];
        for block in values.as_chunks::<64>().0 {
            for (lane, v) in lanes.iter_mut().zip(block) {
                *lane ^= v.to_bits();
            }
        }
        lanes.iter().fold(u32::from(FMA), |a, b| a ^ b)
    }
}

/// Chains of multiply-adds of one step: enough to fill two pipes of latency four or five.
const CHAINS: usize = 12;

/// Values that one step of [`multiply_adds`] works on.
fn lanes(cpu: &Cpu) -> usize {
    match cpu.isa.level() {
        Level::Portable => CHAINS * 4,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => CHAINS * 8,
    }
}

/// `steps` steps on registers alone.
fn multiply_adds(isa: Isa, steps: usize, seed: f32) -> f32 {
    match isa.level() {
        Level::Portable => portable_multiply_adds(steps, seed),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that AVX2 and FMA are there.
        Level::Avx2 => unsafe { avx2_multiply_adds(steps, seed) },
    }
}

fn portable_multiply_adds(steps: usize, seed: f32) -> f32 {
    let mut lanes = [[seed; 4]; CHAINS];
    let (a, b) = (black_box([0.999f32; 4]), black_box([1e-3f32; 4]));
    for _ in 0..steps {
        for chain in &mut lanes {
            for j in 0..4 {
                chain[j] = chain[j] * a[j] + b[j];
            }
        }
    }
    lanes.as_flattened().iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2_multiply_adds(steps: usize, seed: f32) -> f32 {
    use std::arch::x86_64::*;
    let mut lanes = [_mm256_set1_ps(seed); CHAINS];
    let (a, b) = (
        _mm256_set1_ps(black_box(0.999)),
        _mm256_set1_ps(black_box(1e-3)),
    );
    for _ in 0..steps {
        for chain in &mut lanes {
            *chain = _mm256_fmadd_ps(*chain, a, b);
        }
    }
    let sum = lanes
        .into_iter()
        .fold(_mm256_setzero_ps(), |s, v| _mm256_add_ps(s, v));
    _mm256_cvtss_f32(sum)
}

/// The same with 16-bit integers: each chain is multiplied in pairs, which are added to a constant.
#[cfg(target_arch = "x86_64")]
fn integer_multiply_adds(_proof: Isa, steps: usize, seed: f32) -> f32 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx2")]
    fn loops(steps: usize, seed: f32) -> f32 {
        let mut lanes = [_mm256_set1_epi32(seed as i32); CHAINS];
        let (a, b) = (
            _mm256_set1_epi16(black_box(3)),
            _mm256_set1_epi32(black_box(5)),
        );
        for _ in 0..steps {
            for chain in &mut lanes {
                *chain = _mm256_add_epi32(_mm256_madd_epi16(*chain, a), b);
            }
        }
        let sum = lanes
            .into_iter()
            .fold(_mm256_setzero_si256(), |s, v| _mm256_add_epi32(s, v));
        _mm256_extract_epi32::<0>(sum) as f32
    }
    // SAFETY: this is called for the level that has AVX2.
    unsafe { loops(steps, seed) }
}
