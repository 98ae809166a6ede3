//! What the device can do at most, measured: the yardstick of the benchmarks on it.

use std::time::Instant;

use super::launch::{Kernel, Shape};
use super::{Cuda, abi};
use crate::backend::{Memory, Result};

const READ: Kernel = Kernel::new("peaks", "peak_read");
const MMA: Kernel = Kernel::new("peaks", "peak_mma");

/// Far more than any cache.
const READ_BYTES: usize = 2 << 30;
const READ_THREADS: u32 = 512;
const MMA_THREADS: u32 = 256;
/// Blocks of a multiprocessor.
const BLOCKS: usize = 4;
const STEPS: usize = 1 << 14;
/// Products of one step of a warp, and operations of one product (16 x 8 x 16, two each).
const CHAINS: usize = 8;
const FLOP: usize = 2 * 16 * 8 * 16;
const ROUNDS: usize = 10;

/// Limits of a device, best of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct DevicePeaks {
    /// Bytes per second of reading memory from front to back.
    pub read_bytes_per_s: f64,
    /// Operations per second of bf16 products on registers through `mma.sync`. Hopper's own instructions reach more.
    pub mma_flops_per_s: f64,
}

impl Cuda {
    /// Measures the device: less than a second, 2 GiB.
    ///
    /// # Errors
    /// When there is no room, or what the device reports.
    pub fn measure_peaks(&self) -> Result<DevicePeaks> {
        let data = self.bytes(READ_BYTES, "the memory benchmark")?;
        let out = self.bytes(4, "the benchmarks' result")?;
        let read = abi::PeakReadParams {
            data: data.address(),
            vectors: (READ_BYTES / 16) as u64,
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
            steps: STEPS as i32,
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
            read_bytes_per_s: READ_BYTES as f64 / read_s,
            mma_flops_per_s: (warps * STEPS * CHAINS * FLOP) as f64 / mma_s,
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
