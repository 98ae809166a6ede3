//! The kernel without vector instructions: the definition of what the others compute, up to the rounding of multiply-adds.

use half::bf16;

use super::{Call, Target, WIDTH};

/// A row of a panel as f32.
pub(crate) trait Widen: Copy + Sync {
    /// The 16 values of the row, in column order.
    fn widen(row: &[Self; WIDTH]) -> [f32; WIDTH];
}

impl Widen for f32 {
    fn widen(row: &[f32; WIDTH]) -> [f32; WIDTH] {
        *row
    }
}

impl Widen for u16 {
    fn widen(row: &[u16; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|j| bf16::from_bits(row[2 * (j % 8) + j / 8]).to_f32())
    }
}

/// `out (+)= a b`
pub(super) fn run<W: Widen>(call: &Call<'_>, b: &[W], out: Target<'_>) {
    for panel in 0..call.panels {
        let b = &b[panel * call.panel_stride..][..call.depth * WIDTH];
        for row in 0..call.rows {
            let sums = &mut out.values[row * out.row_stride + panel * out.panel_stride..][..WIDTH];
            if call.fresh {
                sums.fill(0.0);
            }
            let a = &call.a[row * call.row_stride..][..call.depth];
            for (a, b) in a.iter().zip(b.as_chunks::<WIDTH>().0) {
                for (sum, w) in sums.iter_mut().zip(W::widen(b)) {
                    *sum += a * w;
                }
            }
        }
    }
}
