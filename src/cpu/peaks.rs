//! What this machine can do at most, measured: the yardstick of every benchmark.

use std::hint::black_box;
use std::time::Instant;

#[cfg(target_arch = "x86_64")]
use super::gemm::{REGISTER_PRODUCTS, register_products};
use super::isa::{Isa, Level, per_isa};
use super::{Buffer, Cpu, WeightPrecision};
use crate::backend::Result;

/// Far more than any last-level cache.
const READ_BYTES: usize = 512 << 20;
const READ_CHUNK_BYTES: usize = 4 << 20;
const ROUNDS: usize = 7;
/// Multiply-add steps of one timed loop: a few milliseconds.
const STEPS: usize = 1 << 20;
/// Chunks that each thread's are cut into: as many chunks as threads would leave one thread with two when another is late.
const CHUNKS: usize = 16;

/// Limits of the machine with the backend's threads. Best of several rounds each.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Bytes per second of reading memory from front to back.
    pub read_bytes_per_s: f64,
    /// Operations per second (a multiply-add is two) of f32 multiply-adds on registers.
    pub f32_flops_per_s: f64,
    /// The same for products with bf16 weights. Where the CPU has no fast instruction for it these are products of pairs of 16-bit integers.
    pub bf16_flops_per_s: f64,
    /// The same for products with int8 weights: of bytes by bytes with AVX-512 and in tile registers, of pairs of 16-bit integers, which bytes are widened to,
    /// with AVX2.
    pub int8_flops_per_s: f64,
}

impl Cpu {
    /// Measures the machine: about two seconds, 512 MiB.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn measure_peaks(&self) -> Result<Peaks> {
        let best = |loops: Loops| loops.flops(self) / best_seconds(|| self.pass(&loops));
        let read_bytes_per_s = self.read_bandwidth()?;
        let f32_flops_per_s = best(self.floats());
        let of = |weights| self.loops(weights).map_or(f32_flops_per_s, best);
        Ok(Peaks {
            read_bytes_per_s,
            f32_flops_per_s,
            bf16_flops_per_s: of(WeightPrecision::Bf16),
            int8_flops_per_s: of(WeightPrecision::Int8),
        })
    }

    /// Operations per second of products with such weights, now: passes like those of [`Cpu::measure_peaks`], but the median of them. For what is measured while
    /// other work on the host comes and goes.
    pub fn product_flops_per_s(&self, weights: WeightPrecision) -> f64 {
        let loops = self.loops(weights).unwrap_or_else(|| self.floats());
        let mut times = [(); ROUNDS].map(|()| seconds(|| self.pass(&loops)));
        times.sort_by(f64::total_cmp);
        loops.flops(self) / times[ROUNDS / 2]
    }

    fn read_bandwidth(&self) -> Result<f64> {
        let reads = self.reads()?;
        Ok(READ_BYTES as f64 / best_seconds(|| reads.pass()))
    }

    /// Memory to be read again and again, beside something whose share of the rate is asked for.
    ///
    /// # Errors
    /// When the memory, 512 MiB, cannot be had.
    pub fn reads(&self) -> Result<Reads<'_>> {
        Ok(Reads {
            cpu: self,
            buffer: Buffer::zeroed_huge(READ_BYTES / 4)?,
        })
    }

    fn floats(&self) -> Loops {
        Loops {
            steps: multiply_adds,
            lanes: lanes(self),
        }
    }

    /// What multiplies by such weights, unless that is f32 or loops that the compiler makes.
    fn loops(&self, weights: WeightPrecision) -> Option<Loops> {
        let (steps, lanes): (fn(Isa, usize, f32) -> f32, usize) = match (self.isa.level(), weights)
        {
            (_, WeightPrecision::F32) | (Level::Portable, _) => return None,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, WeightPrecision::Bf16 | WeightPrecision::Int8) => {
                (x86::avx2_integers, CHAINS * 16)
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, WeightPrecision::Bf16) if self.isa.has_tiles() => {
                (register_products::<false>, REGISTER_PRODUCTS)
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, WeightPrecision::Int8) if self.isa.has_tiles() => {
                (register_products::<true>, 2 * REGISTER_PRODUCTS)
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, WeightPrecision::Bf16) if self.isa.multiplies_bf16() => {
                (x86::avx512_bf16, CHAINS * 32)
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, WeightPrecision::Bf16) => (x86::avx512_pairs, CHAINS * 32),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, WeightPrecision::Int8) => (x86::avx512_integers, CHAINS * 64),
        };
        Some(Loops { steps, lanes })
    }

    /// Runs them once on every thread.
    fn pass(&self, loops: &Loops) {
        self.pool.run(CHUNKS * self.pool.threads(), |i| {
            black_box((loops.steps)(self.isa, STEPS / CHUNKS, i as f32));
        });
    }
}

/// Loops on registers alone, whose step makes `lanes` multiply-adds.
struct Loops {
    steps: fn(Isa, usize, f32) -> f32,
    lanes: usize,
}

impl Loops {
    /// Operations of a pass on every thread.
    fn flops(&self, cpu: &Cpu) -> f64 {
        (cpu.pool.threads() * STEPS * 2 * self.lanes) as f64
    }
}

/// Memory far larger than any cache.
pub struct Reads<'a> {
    cpu: &'a Cpu,
    buffer: Buffer,
}

impl Reads<'_> {
    /// Reads everything once, from front to back.
    fn pass(&self) {
        let values = self.buffer.as_slice();
        let chunk = READ_CHUNK_BYTES / 4;
        self.cpu.pool.run(values.len() / chunk, |i| {
            black_box(checksum(self.cpu.isa, &values[i * chunk..(i + 1) * chunk]));
        });
    }

    /// Bytes per second of reading everything once, now.
    pub fn bytes_per_s(&self) -> f64 {
        READ_BYTES as f64 / seconds(|| self.pass())
    }
}

/// Shortest time of several rounds, after one to warm up.
fn best_seconds(pass: impl Fn()) -> f64 {
    pass();
    (0..ROUNDS)
        .map(|_| seconds(&pass))
        .fold(f64::INFINITY, f64::min)
}

fn seconds(pass: impl Fn()) -> f64 {
    let start = Instant::now();
    pass();
    start.elapsed().as_secs_f64()
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
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => CHAINS * 16,
    }
}

/// `steps` steps on registers alone.
fn multiply_adds(isa: Isa, steps: usize, seed: f32) -> f32 {
    match isa.level() {
        Level::Portable => portable_multiply_adds(steps, seed),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => x86::avx2_floats(isa, steps, seed),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => x86::avx512_floats(isa, steps, seed),
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

/// The same with the instructions of each level, and with those that multiply what is not f32.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{CHAINS, Isa};

    /// `steps` times `$step` for each of [`CHAINS`] registers that start as `$start`.
    macro_rules! rate {
        ($(#[$doc:meta])* $name:ident, $features:literal, $start:expr, |$chain:ident, $a:ident| $step:expr, $first:expr) => {
            $(#[$doc])*
            pub(super) fn $name(_proof: Isa, steps: usize, seed: f32) -> f32 {
                #[target_feature(enable = $features)]
                fn loops(steps: usize, seed: f32) -> f32 {
                    let start = $start;
                    let mut lanes = [start(seed); CHAINS];
                    let $a = black_box(start(0.999));
                    for _ in 0..steps {
                        for $chain in &mut lanes {
                            *$chain = $step;
                        }
                    }
                    lanes.into_iter().map($first).sum()
                }
                // SAFETY: this is called for a level that has these instructions.
                unsafe { loops(steps, seed) }
            }
        };
    }

    rate!(
        avx2_floats,
        "avx2,fma",
        |v| _mm256_set1_ps(v),
        |c, a| _mm256_fmadd_ps(*c, a, a),
        |c| _mm256_cvtss_f32(c)
    );
    rate!(
        /// Each chain is multiplied in pairs, which are added to a constant.
        avx2_integers, "avx2", |v: f32| _mm256_set1_epi16((v * 1000.0) as i16),
        |c, a| _mm256_add_epi32(_mm256_madd_epi16(*c, a), a), |c| _mm256_extract_epi32::<0>(c) as f32
    );
    rate!(
        avx512_floats,
        "avx512f",
        |v| _mm512_set1_ps(v),
        |c, a| _mm512_fmadd_ps(*c, a, a),
        |c| _mm512_cvtss_f32(c)
    );
    rate!(
        /// Fours of bytes are multiplied and added to each chain.
        avx512_integers, "avx512f,avx512vnni", |v: f32| _mm512_set1_epi32((v * 1000.0) as i32),
        |c, a| _mm512_dpbusd_epi32(*c, a, a), |c| _mm512_cvtsi512_si32(c) as f32
    );
    rate!(
        /// The same of pairs of 16-bit integers.
        avx512_pairs, "avx512f,avx512vnni", |v: f32| _mm512_set1_epi32((v * 1000.0) as i32),
        |c, a| _mm512_dpwssd_epi32(*c, a, a), |c| _mm512_cvtsi512_si32(c) as f32
    );
    rate!(
        /// The same of bf16.
        avx512_bf16, "avx512f,avx512bf16", |v| _mm512_set1_ps(v),
        |c, a| {
            // SAFETY: both are 64 bytes in which every pattern is a value.
            let pairs = unsafe { std::mem::transmute::<__m512, __m512bh>(a) };
            _mm512_dpbf16_ps(*c, pairs, pairs)
        },
        |c| _mm512_cvtss_f32(c)
    );
}
