//! Time embedding, the estimator's input, the guided Euler step.

use cosyvoice::backend::{Flow, Memory};
use cosyvoice::tensor::Segments;

use super::{Bounds, agree, values};
use crate::ops::cases::values as seeded;
use crate::support::emulator;

#[test]
fn times_are_embedded() {
    let times = [0.0, 0.001, 0.1234, 0.5, 0.9876, 1.0];
    let bounds = Bounds {
        f32: 1e-12,
        bf16: 1e-5,
    };
    for dim in [4, 80, 322] {
        agree!(format!("time_embedding of {dim}"), bounds, |b| {
            let t = b.tensor(times.len(), 1, &times).unwrap();
            let mut out = b.alloc(times.len(), dim).unwrap();
            b.time_embedding(&t, 1000.0, &mut out).unwrap();
            values(b, &out)
        });
    }
}

#[test]
fn the_estimators_input_is_packed() {
    let (lengths, n) = ([2, 0, 5], 7);
    for c in [3, 16] {
        let [x, mu, cond, spk] =
            [(1, n), (2, n), (3, n), (4, 3)].map(|(s, rows)| seeded(s, rows * c));
        agree!(format!("cfm_pack of {c}"), super::COPY, |b| {
            let [x, mu, cond] = [&x, &mu, &cond].map(|t| b.tensor(n, c, t).unwrap());
            let spk = b.tensor(3, c, &spk).unwrap();
            let segments = Segments::new(b, &lengths).unwrap();
            let mut out = b.alloc(2 * n, 4 * c).unwrap();
            b.cfm_pack(&x, &mu, &spk, &cond, &segments, &mut out)
                .unwrap();
            values(b, &out)
        });
    }
}

/// The state is f32 in both precisions; only the velocity is rounded.
#[test]
fn steps_are_guided() {
    let (lengths, n) = ([2, 5], 7);
    let bounds = Bounds {
        f32: 1e-13,
        bf16: 1e-5,
    };
    for c in [3, 80] {
        let (x, v) = (seeded(1, n * c), seeded(2, 2 * n * c));
        agree!(format!("cfg_euler of {c}"), bounds, |b| {
            let mut x = b.tensor(n, c, &x).unwrap();
            let mut velocity = b.alloc(2 * n, c).unwrap();
            b.upload(&v, &mut velocity).unwrap();
            let dt = b.tensor(2, 1, &[0.1, 0.3]).unwrap();
            let segments = Segments::new(b, &lengths).unwrap();
            b.cfg_euler(&mut x, &velocity, 0.7, &dt, &segments).unwrap();
            values(b, &x)
        });
    }
}

#[test]
fn checked() {
    emulator::run_checked("cuda::flow::");
}
