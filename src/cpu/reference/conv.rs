//! Convolutions of one sequence, channels last, weights in PyTorch's layout.

use crate::backend::{ConvGeom, Padding};

/// The input row that position `p` of the padded sequence shows, `None` where it is zero.
pub fn source_row(p: usize, rows: usize, geom: &ConvGeom) -> Option<usize> {
    let i = p as isize - geom.left as isize;
    if (0..rows as isize).contains(&i) {
        return Some(i as usize);
    }
    match geom.padding {
        Padding::Zero => None,
        Padding::Reflect if i < 0 => Some(-i as usize),
        Padding::Reflect => Some(2 * (rows - 1) - i as usize),
    }
}

/// `x [T, Ci]`, `w [Co, Ci / groups, k]`, `out [T', Co]`.
pub fn conv1d(
    x: &[f32],
    ci: usize,
    w: &[f32],
    co: usize,
    groups: usize,
    bias: Option<&[f32]>,
    geom: &ConvGeom,
    out: &mut [f32],
) {
    let (rows, cig) = (x.len() / ci, ci / groups);
    let kernel = w.len() / (co * cig);
    for (i, out) in out.chunks_exact_mut(co).enumerate() {
        for (o, out) in out.iter_mut().enumerate() {
            let first = o / (co / groups) * cig;
            let mut sum = bias.map_or(0.0, |b| f64::from(b[o]));
            for t in 0..kernel {
                let p = i * geom.stride + t * geom.dilation;
                let Some(row) = source_row(p, rows, geom) else {
                    continue;
                };
                for c in 0..cig {
                    let value = f64::from(x[row * ci + first + c]);
                    sum += value * f64::from(w[(o * cig + c) * kernel + t]);
                }
            }
            *out = sum as f32;
        }
    }
}

/// `x [T, Ci]`, `w [Ci, Co, k]`, `out [(T − 1) · stride − 2 · padding + k, Co]`.
pub fn conv_transpose1d(
    x: &[f32],
    ci: usize,
    w: &[f32],
    co: usize,
    bias: Option<&[f32]>,
    stride: usize,
    padding: usize,
    out: &mut [f32],
) {
    let (rows, kernel) = (x.len() / ci, w.len() / (ci * co));
    for (i, out) in out.chunks_exact_mut(co).enumerate() {
        for (o, out) in out.iter_mut().enumerate() {
            let mut sum = bias.map_or(0.0, |b| f64::from(b[o]));
            for t in 0..kernel {
                // Input row r reaches output row r · stride + t − padding.
                let Some(reach) = (i + padding).checked_sub(t) else {
                    continue;
                };
                if reach % stride != 0 || reach / stride >= rows {
                    continue;
                }
                for c in 0..ci {
                    let value = f64::from(x[reach / stride * ci + c]);
                    sum += value * f64::from(w[(c * co + o) * kernel + t]);
                }
            }
            *out = sum as f32;
        }
    }
}
