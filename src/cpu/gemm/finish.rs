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

/// Calls `f(row, place, y, out)` for every row of the tile: sums with scale and bias, and the 16 values of the output that begin at `place`,
/// to be replaced. It has one call site, so that it is compiled into its caller with the caller's instructions.
#[inline(always)]
fn each_row(
    job: &Job<'_>,
    tile: &Tile<'_>,
    f: impl Fn(usize, usize, &[f32; WIDTH], &mut [f32; WIDTH]),
) {
    let scale = channels(&job.w.panels.scale, tile.panel);
    let bias = channels(job.w.bias, tile.panel);
    let column = job.column(tile.panel);
    let width = (job.columns - column).min(WIDTH);
    let scaled = !job.w.panels.scale.is_empty();
    for (i, acc) in tile.acc.iter().enumerate() {
        let place = (tile.row + i * job.row_step) * job.stride + job.first_column + column;
        // SAFETY: tiles of different chunks differ in row or columns.
        let out = unsafe { job.out.slice(place, width) };
        let mut y = *acc;
        for j in 0..WIDTH {
            y[j] = if scaled { y[j] * scale[j] } else { y[j] } + bias[j];
        }
        // Only the last panel may be cut. Copies of a length that the compiler does not know would cost as much as the products of a shallow layer.
        let mut cut = [0.0; WIDTH];
        if width < WIDTH {
            cut[..width].copy_from_slice(out);
        }
        let to = match <&mut [f32; WIDTH]>::try_from(&mut *out) {
            Ok(full) => full,
            Err(_) => &mut cut,
        };
        f(i, place, &y, to);
        if width < WIDTH {
            out.copy_from_slice(&cut[..width]);
        }
    }
}

/// The same for an activation, which is chosen outside the loop.
#[inline(always)]
fn each_act<const FMA: bool>(job: &Job<'_>, tile: &Tile<'_>, act: Activation<'_>) {
    let alpha = alphas(act, job.first_column + job.column(tile.panel));
    macro_rules! fixed {
        ($act:expr) => {
            each_row(job, tile, |_, _, y, out| {
                for j in 0..WIDTH {
                    out[j] = activation::<FMA>($act, y[j], alpha[j]);
                }
            })
        };
    }
    for_each_activation!(act, fixed, |_| fixed!(Activation::Snake(&[])))
}

/// `silu(gate) · up`
#[inline(always)]
fn silu_mul<const FMA: bool>(job: &Job<'_>, tile: &Tile<'_>) {
    let scale = channels(&job.w.panels.scale, tile.panel + 1);
    let bias = channels(job.w.bias, tile.panel + 1);
    let scaled = !job.w.panels.scale.is_empty();
    each_row(job, tile, |i, _, gate, out| {
        let up = &tile.up[i];
        for j in 0..WIDTH {
            let up = if scaled { up[j] * scale[j] } else { up[j] } + bias[j];
            out[j] = gate[j] * sigmoid::<FMA>(gate[j]) * up;
        }
    });
}

per_isa! {
    /// Stores a tile.
    pub(super) fn finish<FMA>(job: &Job<'_>, tile: &Tile<'_>) {
        match job.store {
            Store::Set => each_row(job, tile, |_, _, y, out| *out = *y),
            Store::Act(act) => each_act::<FMA>(job, tile, act),
            Store::Add(r) => each_row(job, tile, |_, start, y, out| {
                let r = &r[start..];
                let width = r.len().min(WIDTH);
                for j in 0..width {
                    out[j] = y[j] + r[j];
                }
            }),
            Store::Accumulate => each_row(job, tile, |_, _, y, out| {
                for j in 0..WIDTH {
                    out[j] += y[j];
                }
            }),
            Store::AccumulateScaled(s) => each_row(job, tile, |_, _, y, out| {
                for j in 0..WIDTH {
                    out[j] += s * y[j];
                }
            }),
            Store::SiluMul => silu_mul::<FMA>(job, tile),
        }
    }
}
