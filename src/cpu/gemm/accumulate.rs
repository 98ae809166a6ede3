//! Sums of a block of rows and some panels over the whole depth, by the kernel that the weights are packed for.

use std::ops::Range;

use super::{Accumulators, BLOCK_K, Call, Job, Target, WIDTH};
#[cfg(target_arch = "x86_64")]
use super::{Bf16, Isa, avx512, bf16, interleaved, kinds};

impl Job<'_> {
    /// Sums over the whole depth, block by block: `run` makes the products of one.
    pub(super) fn accumulate<W>(
        &self,
        b: &[W],
        (input, rows): (usize, usize),
        panels: Range<usize>,
        acc: &mut Accumulators,
        run: impl Fn(&Call<'_>, &[W], Target<'_>),
    ) {
        let k = self.w.panels.k;
        if k == 0 {
            acc.as_flattened_mut().as_flattened_mut().fill(0.0);
        }
        let block_k = if rows <= 6 { usize::MAX } else { BLOCK_K };
        for tap in 0..self.x.taps {
            let mut done = 0;
            while done < self.x.depth {
                let depth = block_k.min(self.x.depth - done);
                let at = tap * self.x.depth + done;
                let call = Call {
                    a: &self.x.values[input + tap * self.x.tap_stride + done..],
                    row_stride: self.x.row_stride,
                    rows,
                    depth,
                    panel_stride: k * WIDTH,
                    panels: panels.len(),
                    fresh: at == 0,
                };
                let b = &b[(panels.start * k + at) * WIDTH..];
                run(&call, b, Target::accumulators(acc));
                done += depth;
            }
        }
    }

    /// The same of rows that lie together.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn accumulate_together<K: kinds::Kind>(
        &self,
        isa: Isa,
        b: &[K::W],
        x: interleaved::Interleaved<'_, K::X>,
        panels: Range<usize>,
        acc: &mut Accumulators,
    ) {
        let k = x.row_length;
        if k == 0 {
            acc.as_flattened_mut().as_flattened_mut().fill(0.0);
        }
        let (block_k, step) = interleaved::blocks::<K::W>(isa, x.rows, k, BLOCK_K);
        for first in panels.clone().step_by(step) {
            let count = step.min(panels.end - first);
            for done in (0..k).step_by(block_k.max(1)) {
                let depth = block_k.min(k - done);
                let next = match done + depth < k {
                    true => depth * WIDTH,
                    false => (count * k - done) * WIDTH,
                };
                let b = &b[(first * k + done) * WIDTH..];
                let b = avx512::Side::strided(b, count, k * WIDTH, next);
                let x = interleaved::Interleaved {
                    first: done,
                    depth,
                    ..x
                };
                let out = Target::accumulators(&mut acc[first - panels.start..]);
                avx512::run_interleaved::<K>(isa, x, None, (b, count), (out, done == 0));
            }
        }
    }

    /// The same in pairs of bf16. The weights of a call stay in the second-level cache.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn accumulate_pairs(
        &self,
        isa: Isa,
        b: &[u16],
        (x, rows): (bf16::Rounded<'_>, usize),
        panels: Range<usize>,
        acc: &mut Accumulators,
    ) {
        let size = self.w.panels.panel_values();
        if size == 0 {
            acc.as_flattened_mut().as_flattened_mut().fill(0.0);
        }
        for (call, at) in x.calls((0, rows), (panels.len(), size)) {
            let b = &b[panels.start * size + at * WIDTH..];
            let next = match at + call.depth < x.taps * x.depth {
                true => call.depth * WIDTH,
                false => call.panels * size - at * WIDTH,
            };
            let b = avx512::Side::strided(b, call.panels, size, next);
            avx512::run::<Bf16>(isa, &call, None, b, Target::accumulators(acc));
        }
    }
}
