//! What the device can do at most, measured: the yardstick of the benchmarks on it.

use std::time::Instant;

use super::launch::{Kernel, Shape};
use super::{Cuda, abi};
use crate::backend::{Memory, Result};

const READ: Kernel = Kernel::new("peaks", "peak_read");
const MMA: Kernel = Kernel::new("peaks", "peak_mma");

const READ_THREADS: u32 = 512;
const MMA_THREADS: u32 = 256;
/// Blocks of a multiprocessor.
const BLOCKS: usize = 4;
/// Products of one step of a warp, and operations of one product (16 x 8 x 16, two each).
const CHAINS: usize = 8;
const FLOP: usize = 2 * 16 * 8 * 16;
const ROUNDS: usize = 10;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct PeakWork {
    /// Bytes to read, a multiple of 16.
    pub read_bytes: usize,
    /// Products of each warp, in eights.
    pub steps: usize,
}

impl Default for PeakWork {
    /// Far more than any cache; less than a second.
    fn default() -> Self {
        Self {
            read_bytes: 2 << 30,
            steps: 1 << 14,
        }
    }
}

/// Limits of a device, best of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct DevicePeaks {
    /// Bytes per second of reading memory from front to back.
    pub read_bytes_per_s: f64,
    /// Operations per second of bf16 products on registers through `mma.sync`. Hopper's own instructions reach more.
    pub mma_flops_per_s: f64,
}

impl Cuda {
    /// Measures the device.
    ///
    /// # Errors
    /// When there is no room, or what the device reports.
    pub fn measure_peaks(&self, work: PeakWork) -> Result<DevicePeaks> {
        let data = self.bytes(work.read_bytes, "the memory benchmark")?;
        let out = self.bytes(4, "the benchmarks' result")?;
        let read = abi::PeakReadParams {
            data: data.address(),
            vectors: (work.read_bytes / 16) as u64,
            out: out.address(),
        };
        let blocks = self.multiprocessors() * BLOCKS;
        let read_s = self.best_seconds(|| {
            // SAFETY: `data` is as long as said, `out` one word.
            unsafe {
                self.launcher
                    .launch(READ, Shape::blocks(blocks, READ_THREADS), &read)
            }
        })?;
        let mma = abi::PeakMmaParams {
            out: out.address(),
            steps: work.steps as i32,
            reserved: 0,
        };
        let mma_s = self.best_seconds(|| {
            // SAFETY: `out` is one word.
            unsafe {
                self.launcher
                    .launch(MMA, Shape::blocks(blocks, MMA_THREADS), &mma)
            }
        })?;
        let warps = blocks * MMA_THREADS as usize / 32;
        Ok(DevicePeaks {
            read_bytes_per_s: work.read_bytes as f64 / read_s,
            mma_flops_per_s: (warps * work.steps * CHAINS * FLOP) as f64 / mma_s,
        })
    }

    fn best_seconds(&self, run: impl Fn() -> Result<()>) -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            self.synchronize()?;
            let start = Instant::now();
            run()?;
            self.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    }
}
