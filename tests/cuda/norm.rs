//! Norms and row additions: rows of one warp, of several, of a number that is no multiple of eight.

use cosyvoice::backend::{Act, Memory, Norm};
use cosyvoice::cuda::Precision;
use cosyvoice::tensor::Segments;

use super::{Bounds, agree, device, values};
use crate::ops::cases::values as seeded;
use crate::support::emulator;

/// Sums of up to a few thousand f32 terms; outputs rounded to bf16.
const NORMS: Bounds = Bounds {
    f32: 1e-12,
    bf16: 1e-5,
};
const SHAPES: [(usize, usize); 7] = [
    (3, 15),
    (7, 16),
    (13, 64),
    (5, 250),
    (2, 264),
    (3, 896),
    (1, 1203),
];

#[test]
fn rows_are_normalised() {
    for (n, d) in SHAPES {
        let (x, r) = (seeded(1, n * d), seeded(2, n * d));
        let (w, bias) = (seeded(3, d), seeded(4, d));
        agree!(format!("rms_norm {n}x{d}"), NORMS, |b| {
            let mut out = b.alloc(n, d).unwrap();
            let mut residual = b.tensor(n, d, &r).unwrap();
            let (x, w) = (b.tensor(n, d, &x).unwrap(), b.tensor(1, d, &w).unwrap());
            b.rms_norm(&x, Some(&mut residual), &w, 1e-6, &mut out)
                .unwrap();
            let with = [values(b, &out), values(b, &residual)].concat();
            b.rms_norm(&x, None, &w, 1e-6, &mut out).unwrap();
            [with, values(b, &out)].concat()
        });
        agree!(format!("layer_norm {n}x{d}"), NORMS, |b| {
            let mut out = b.alloc(n, d).unwrap();
            let x = b.tensor(n, d, &x).unwrap();
            let (w, bias) = (b.tensor(1, d, &w).unwrap(), b.tensor(1, d, &bias).unwrap());
            b.layer_norm(&x, &w, &bias, 1e-5, 3.0, Some(Act::Mish), &mut out)
                .unwrap();
            let mish = values(b, &out);
            b.layer_norm(&x, &w, &bias, 1e-5, 1.0, None, &mut out)
                .unwrap();
            [mish, values(b, &out)].concat()
        });
        agree!(format!("l2_normalize {n}x{d}"), NORMS, |b| {
            let mut t = b.tensor(n, d, &x).unwrap();
            b.l2_normalize(&mut t, 1e-12).unwrap();
            values(b, &t)
        });
    }
}

#[test]
fn means_far_from_zero_do_not_swamp_the_variance() {
    let d = 300;
    let x: Vec<f32> = seeded(1, d).iter().map(|v| 1000.0 + v).collect();
    let bounds = Bounds {
        f32: 1e-6,
        bf16: 1e-5,
    };
    agree!("layer_norm of offset rows", bounds, |b| {
        let (x, one) = (b.tensor(1, d, &x).unwrap(), vec![1.0; d]);
        let (w, bias) = (
            b.tensor(1, d, &one).unwrap(),
            b.tensor(1, d, &vec![0.0; d]).unwrap(),
        );
        let mut out = b.alloc(1, d).unwrap();
        b.layer_norm(&x, &w, &bias, 1e-5, 1.0, None, &mut out)
            .unwrap();
        values(b, &out)
    });
}

#[test]
fn rows_are_added_per_sequence() {
    for c in [9, 40] {
        let (x, v) = (seeded(1, 43 * c), seeded(2, 3 * c));
        agree!(
            "add_segment_rows",
            Bounds {
                f32: 0.0,
                bf16: 1e-5
            },
            |b| {
                let mut t = b.alloc(43, c).unwrap();
                b.upload(&x, &mut t).unwrap();
                let segments = Segments::new(b, &[3, 0, 40]).unwrap();
                b.add_segment_rows(&mut t, &segments, &b.tensor(3, c, &v).unwrap())
                    .unwrap();
                values(b, &t)
            }
        );
    }
}

/// A row's bytes do not depend on where it stands, nor on how many there are.
#[test]
fn a_row_does_not_see_the_others() {
    for d in [64, 896] {
        let Some(cuda) = device(Precision::Bf16) else {
            return;
        };
        let x = seeded(1, 6 * d);
        let norm = |rows: &[f32]| {
            let n = rows.len() / d;
            let mut t = cuda.alloc(n, d).unwrap();
            cuda.upload(rows, &mut t).unwrap();
            let w = cuda.tensor(1, d, &seeded(2, d)).unwrap();
            let mut out = cuda.alloc(n, d).unwrap();
            cuda.rms_norm(&t, None, &w, 1e-6, &mut out).unwrap();
            values(&*cuda, &out)
        };
        let all = norm(&x);
        for i in 0..6 {
            let row = i * d..(i + 1) * d;
            assert!(norm(&x[row.clone()]) == all[row], "row {i} of {d} columns");
        }
    }
}

#[test]
fn checked() {
    emulator::run_checked("cuda::norm::");
}
