//! What happens to finished sums: scale, bias, epilogue, store.

use super::{Job, WIDTH};
use crate::cpu::epilogue::for_each_activation;
use crate::cpu::isa::per_isa;
use crate::cpu::math::{activation, sigmoid};
use crate::cpu::{Activation, Store};

/// Finished sums of one panel (or of a gate and its up panel).
pub(super) struct Tile<'a> {
    pub(super) acc: &'a [[f32; WIDTH]],
    /// Only for `SiluMul`.
    pub(super) up: &'a [[f32; WIDTH]],
    pub(super) panel: usize,
    /// Output row of the first sums.
    pub(super) row: usize,
}

/// Sixteen values per packed channel of a panel, ones where there are none.
fn channels(values: &[f32], panel: usize) -> [f32; WIDTH] {
    values
        .get(panel * WIDTH..(panel + 1) * WIDTH)
        .and_then(|v| v.try_into().ok())
        .unwrap_or([1.0; WIDTH])
}

/// Snake's α of the columns of a panel, ones where there are none.
fn alphas(act: Activation<'_>, column: usize) -> [f32; WIDTH] {
    let mut out = [1.0; WIDTH];
    if let Activation::Snake(alpha) = act {
        let alpha = &alpha[column..];
        let n = alpha.len().min(WIDTH);
        out[..n].copy_from_slice(&alpha[..n]);
    }
    out
}

/// Sums with their scales, which are ones where weights have none, and bias. Without a choice inside, which the compiler took apart into pieces of vectors.
#[inline(always)]
fn finished(sums: &[f32; WIDTH], scale: &[f32; WIDTH], bias: &[f32; WIDTH]) -> [f32; WIDTH] {
    let mut y = [0.0; WIDTH];
    for j in 0..WIDTH {
        y[j] = sums[j] * scale[j] + bias[j];
    }
    y
}

/// What becomes of a row of finished sums. A trait and not a closure, which the compiler need not compile into its caller, with the caller's instructions.
trait Finish {
    /// Of row `i` of the tile: `y`, with scale and bias, and the 16 values of the output that begin at `place`, to be replaced.
    fn row(&self, i: usize, place: usize, y: &[f32; WIDTH], out: &mut [f32; WIDTH]);
}

/// Finishes every row of the tile.
#[inline(always)]
fn each_row(job: &Job<'_>, tile: &Tile<'_>, finish: &impl Finish) {
    let scale = channels(&job.w.panels.scale, tile.panel);
    let bias = channels(job.w.bias, tile.panel);
    let column = job.column(tile.panel);
    let width = (job.columns - column).min(WIDTH);
    let mut cut = [0.0; WIDTH];
    for (i, acc) in tile.acc.iter().enumerate() {
        let place = (tile.row + i * job.row_step) * job.stride + job.first_column + column;
        // SAFETY: tiles of different chunks differ in row or columns.
        let out = unsafe { job.out.slice(place, width) };
        let y = finished(acc, &scale, &bias);
        // Only the last panel may be cut. Copies of a length that the compiler does not know would cost as much as the products of a shallow layer.
        let to = match <&mut [f32; WIDTH]>::try_from(&mut *out) {
            Ok(full) => full,
            Err(_) => {
                cut[..width].copy_from_slice(out);
                &mut cut
            }
        };
        finish.row(i, place, &y, to);
        if width < WIDTH {
            out.copy_from_slice(&cut[..width]);
        }
    }
}

struct Set;

impl Finish for Set {
    #[inline(always)]
    fn row(&self, _: usize, _: usize, y: &[f32; WIDTH], out: &mut [f32; WIDTH]) {
        *out = *y;
    }
}

/// An activation, with Snake's α of the columns.
struct Act<'a, const FMA: bool> {
    act: Activation<'a>,
    alpha: [f32; WIDTH],
}

impl<const FMA: bool> Finish for Act<'_, FMA> {
    #[inline(always)]
    fn row(&self, _: usize, _: usize, y: &[f32; WIDTH], out: &mut [f32; WIDTH]) {
        for j in 0..WIDTH {
            out[j] = activation::<FMA>(self.act, y[j], self.alpha[j]);
        }
    }
}

/// The other addend, of the shape of the output.
struct Add<'a>(&'a [f32]);

impl Finish for Add<'_> {
    #[inline(always)]
    fn row(&self, _: usize, place: usize, y: &[f32; WIDTH], out: &mut [f32; WIDTH]) {
        let r = &self.0[place..];
        let mut cut = [0.0; WIDTH];
        let r = match r.first_chunk::<WIDTH>() {
            Some(r) => r,
            // The last row of a panel that is cut ends here.
            None => {
                cut[..r.len()].copy_from_slice(r);
                &cut
            }
        };
        for j in 0..WIDTH {
            out[j] = y[j] + r[j];
        }
    }
}

struct Accumulate;

impl Finish for Accumulate {
    #[inline(always)]
    fn row(&self, _: usize, _: usize, y: &[f32; WIDTH], out: &mut [f32; WIDTH]) {
        for j in 0..WIDTH {
            out[j] += y[j];
        }
    }
}

struct AccumulateScaled(f32);

impl Finish for AccumulateScaled {
    #[inline(always)]
    fn row(&self, _: usize, _: usize, y: &[f32; WIDTH], out: &mut [f32; WIDTH]) {
        for j in 0..WIDTH {
            out[j] += self.0 * y[j];
        }
    }
}

/// `silu(gate) · up`
struct SiluMul<'a, const FMA: bool> {
    up: &'a [[f32; WIDTH]],
    scale: [f32; WIDTH],
    bias: [f32; WIDTH],
}

impl<const FMA: bool> Finish for SiluMul<'_, FMA> {
    #[inline(always)]
    fn row(&self, i: usize, _: usize, gate: &[f32; WIDTH], out: &mut [f32; WIDTH]) {
        let up = finished(&self.up[i], &self.scale, &self.bias);
        for j in 0..WIDTH {
            out[j] = gate[j] * sigmoid::<FMA>(gate[j]) * up[j];
        }
    }
}

per_isa! {
    /// Stores a tile.
    pub(super) fn finish<FMA>(job: &Job<'_>, tile: &Tile<'_>) {
        match job.store {
            Store::Set => each_row(job, tile, &Set),
            Store::Act(act) => {
                let alpha = alphas(act, job.first_column + job.column(tile.panel));
                macro_rules! fixed {
                    ($act:expr) => {
                        each_row(job, tile, &Act::<FMA> { act: $act, alpha })
                    };
                }
                for_each_activation!(act, fixed, |_| fixed!(Activation::Snake(&[])))
            }
            Store::Add(r) => each_row(job, tile, &Add(r)),
            Store::Accumulate => each_row(job, tile, &Accumulate),
            Store::AccumulateScaled(s) => each_row(job, tile, &AccumulateScaled(s)),
            Store::SiluMul => {
                let silu_mul = SiluMul::<FMA> {
                    up: tile.up,
                    scale: channels(&job.w.panels.scale, tile.panel + 1),
                    bias: channels(job.w.bias, tile.panel + 1),
                };
                each_row(job, tile, &silu_mul);
            }
        }
    }
}
