//! Convolution with sums in f64. Products of two f32 are exact there, so the result does not depend on how multiply-adds are compiled.
//!
//! In: `x [T, Ci]`. Out: `[T', Co]`, without epilogue. See [`Fidelity::Exact`](crate::backend::Fidelity::Exact).

use super::Isa;
use super::isa::per_isa;
use super::pool::Pool;

/// Output rows computed together: a weight is widened once for all of them.
const ROWS: usize = 4;
/// Output channels computed together.
const WIDTH: usize = 8;

pub(super) struct ExactConv {
    /// `[⌈Co / WIDTH⌉, k, Ci, WIDTH]`, zeros past the last channel.
    w: Vec<f32>,
    /// `[⌈Co / WIDTH⌉, WIDTH]`
    bias: Vec<f32>,
    co: usize,
    ci: usize,
}

impl ExactConv {
    /// Packs `w [Co, Ci, k]`.
    pub(super) fn new(w: &[f32], co: usize, ci: usize, bias: Option<&[f32]>) -> Self {
        let kernel = w.len().checked_div(co * ci).unwrap_or(0);
        let panels = co.div_ceil(WIDTH);
        let mut packed = vec![0.0; panels * kernel * ci * WIDTH];
        for o in 0..co {
            for (c, taps) in w[o * ci * kernel..][..ci * kernel]
                .chunks_exact(kernel.max(1))
                .enumerate()
            {
                for (t, &value) in taps.iter().enumerate() {
                    let at = ((o / WIDTH * kernel + t) * ci + c) * WIDTH + o % WIDTH;
                    packed[at] = value;
                }
            }
        }
        let mut padded = vec![0.0; panels * WIDTH];
        if let Some(bias) = bias {
            padded[..co].copy_from_slice(bias);
        }
        Self {
            w: packed,
            bias: padded,
            co,
            ci,
        }
    }

    /// One sequence, its padding already around it: output row `i` reads rows `i · stride + t · dilation`.
    pub(super) fn run(
        &self,
        pool: &Pool,
        isa: Isa,
        x: &[f32],
        (stride, dilation): (usize, usize),
        out: &mut [f32],
    ) {
        let (ci, co) = (self.ci, self.co);
        let panel = self.w.len() / self.bias.len() * WIDTH;
        let kernel = panel / (ci * WIDTH).max(1);
        pool.rows(out, co, |first, block| {
            let rows = block.len() / co;
            let read = first * stride..(first + rows - 1) * stride + (kernel - 1) * dilation + 1;
            let x = &x[read.start * ci..read.end * ci];
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let weights = self.w.chunks_exact(panel);
            // A panel of weights stays in the cache while all rows pass it.
            for (p, (w, bias)) in weights.zip(self.bias.chunks_exact(WIDTH)).enumerate() {
                let columns = p * WIDTH..co.min((p + 1) * WIDTH);
                for (i, out) in block.chunks_mut(ROWS * co).enumerate() {
                    let n = out.len() / co;
                    let mut sums = [[0.0f64; WIDTH]; ROWS];
                    sums.fill(std::array::from_fn(|j| f64::from(bias[j])));
                    for (t, w) in w.chunks_exact(ci * WIDTH).enumerate() {
                        // Rows past the last repeat it; they are not stored.
                        let x = std::array::from_fn(|r| {
                            let row = (i * ROWS + r.min(n - 1)) * stride + t * dilation;
                            &x[row * ci..(row + 1) * ci]
                        });
                        multiply(isa, x, w, &mut sums);
                    }
                    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(co)) {
                        for (out, sum) in out[columns.clone()].iter_mut().zip(sums) {
                            *out = *sum as f32;
                        }
                    }
                }
            }
        });
    }
}

per_isa! {
    /// `sums[r] += Σ x[r][c] · w[c]`; the products are exact in f64, so fusing them with the addition changes nothing.
    fn multiply<FMA>(x: [&[f64]; ROWS], w: &[f32], sums: &mut [[f64; WIDTH]; ROWS]) {
        let x = x.map(|x| &x[..w.len() / WIDTH]);
        let mut local = *sums;
        for (c, w) in w.as_chunks::<WIDTH>().0.iter().enumerate() {
            let w: [f64; WIDTH] = std::array::from_fn(|j| f64::from(w[j]));
            for r in 0..ROWS {
                let x = x[r][c];
                for j in 0..WIDTH {
                    local[r][j] = if FMA { x.mul_add(w[j], local[r][j]) } else { x * w[j] + local[r][j] };
                }
            }
        }
        *sums = local;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ConvGeom;
    use crate::cpu::reference::conv::{conv1d, source_row};

    #[test]
    fn agrees_with_the_plain_loops() {
        for (rows, ci, co, kernel, geom) in [
            (9, 5, 11, 3, ConvGeom::same(3, 1)),
            (1, 16, 8, 3, ConvGeom::same(3, 1)),
            (7, 3, 1, 1, ConvGeom::same(1, 1)),
            (
                13,
                4,
                17,
                4,
                ConvGeom {
                    stride: 2,
                    left: 1,
                    right: 1,
                    ..ConvGeom::same(1, 1)
                },
            ),
        ] {
            let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
            let (x, w) = (wave(rows * ci, 0.7), wave(co * ci * kernel, 1.3));
            let bias = wave(co, 0.9);
            let mut expected = vec![0.0; geom.output_rows(rows, kernel) * co];
            conv1d(&x, ci, &w, co, 1, Some(&bias), &geom, &mut expected);
            let mut actual = vec![f32::NAN; expected.len()];
            let padded: Vec<f32> = (0..geom.left + rows + geom.right)
                .flat_map(|p| match source_row(p, rows, &geom) {
                    Some(row) => x[row * ci..(row + 1) * ci].to_vec(),
                    None => vec![0.0; ci],
                })
                .collect();
            let conv = ExactConv::new(&w, co, ci, Some(&bias));
            let steps = (geom.stride, geom.dilation);
            conv.run(&Pool::new(2), Isa::detect(), &padded, steps, &mut actual);
            for (a, e) in actual.iter().zip(&expected) {
                assert!((a - e).abs() <= 1e-6 * e.abs().max(1.0), "{a} {e}");
            }
        }
    }
}
