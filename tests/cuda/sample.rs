//! Log-probabilities, and the tokens that are drawn: the same as on the CPU.

use cosyvoice::backend::{Memory, Sample, SampleParams, SampleRow, Uniforms};
use cosyvoice::cuda::Precision;

use super::{Bounds, agree, cpu, device, values};
use crate::ops::cases::values as seeded;
use crate::support::emulator;

const OFFICIAL: SampleParams = SampleParams {
    top_p: 0.8,
    top_k: 25,
    window: 10,
    repetition_rate: 0.1,
};

#[test]
fn logarithms_of_probabilities() {
    let bounds = Bounds {
        f32: 1e-13,
        bf16: 1e-5,
    };
    for (n, v) in [(1, 1), (3, 17), (2, 256), (2, 6564)] {
        let logits: Vec<f32> = seeded(1, n * v).iter().map(|x| 20.0 * x).collect();
        agree!(format!("log_softmax {n}x{v}"), bounds, |b| {
            let mut out = b.alloc(n, v).unwrap();
            b.log_softmax(&b.tensor(n, v, &logits).unwrap(), &mut out)
                .unwrap();
            values(b, &out)
        });
    }
}

/// Draws with every backend, and compares tokens, draws and candidates.
fn same_as_on_the_cpu(what: &str, v: usize, logits: &[f32], rows: &[SampleRow<'_>]) {
    let n = rows.len();
    let cpu = cpu();
    let mut ids = cpu.ids(&vec![0; n]).unwrap();
    let expected = cpu
        .sample(&cpu.tensor(n, v, logits).unwrap(), rows, &mut ids)
        .unwrap();
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let mut ids = cuda.ids(&vec![0; n]).unwrap();
    let actual = cuda
        .sample(&cuda.tensor(n, v, logits).unwrap(), rows, &mut ids)
        .unwrap();
    assert_eq!(actual, expected, "{what}");
    let mut on_device = Vec::new();
    cuda.download_ids(&ids, &mut on_device).unwrap();
    let tokens: Vec<i32> = expected.iter().map(|s| s.token).collect();
    assert_eq!(on_device, tokens, "{what}: ids left on the device");
}

/// Small vocabularies, more ids wanted than there are, more than threads, one only; half of the rows redraw.
#[test]
fn the_tokens_of_the_cpu_are_drawn() {
    let sizes = [
        (7, 25, 0.8),
        (200, 1, 0.8),
        (6564, 25, 0.8),
        (500, 400, 0.999),
        (300, 300, 0.99),
    ];
    for (v, top_k, top_p) in sizes {
        let n = if v > 1000 { 8 } else { 16 };
        let logits: Vec<f32> = seeded(1, n * v).iter().map(|x| 6.0 * x).collect();
        let history: Vec<i32> = (0..30).map(|i| i % v as i32).collect();
        let rows: Vec<SampleRow<'_>> = (0..n)
            .map(|i| SampleRow {
                params: SampleParams {
                    top_p,
                    top_k,
                    repetition_rate: if i % 2 == 0 { 0.1 } else { 0.0 },
                    ..OFFICIAL
                },
                uniforms: Uniforms::Philox {
                    seed: 5 + (1 << 40),
                    step: i as u32,
                },
                history: &history[..i],
                forbidden: (i % 3 == 0).then_some(3),
            })
            .collect();
        same_as_on_the_cpu(&format!("V {v}, top_k {top_k}"), v, &logits, &rows);
    }
}

/// Equal probabilities: the lower id first. Extreme uniforms: the first candidate, the last one.
#[test]
fn ties_and_edges_are_those_of_the_cpu() {
    let v = 600;
    let mut logits = vec![0.0; v];
    logits.extend((0..v).map(|i| if i % 7 == 0 { 3.0 } else { -1.0 }));
    logits.extend((0..v).map(|i| if i == 77 { 40.0 } else { -40.0 }));
    let uniforms = [0.0, 0.5, 1.0 - f64::EPSILON];
    for u in uniforms {
        for (top_p, repetition_rate) in [(0.8, 0.1), (0.0, 0.1), (0.8, 0.0)] {
            let rows: Vec<SampleRow<'_>> = (0..3)
                .map(|_| SampleRow {
                    params: SampleParams {
                        top_p,
                        repetition_rate,
                        ..OFFICIAL
                    },
                    uniforms: Uniforms::Given([u, 1.0 - f64::EPSILON - u]),
                    history: &[],
                    forbidden: Some(0),
                })
                .collect();
            same_as_on_the_cpu(&format!("u {u}, top_p {top_p}"), v, &logits, &rows);
        }
    }
}

/// A vocabulary whose workspace no block has shared memory for.
#[test]
fn large_vocabularies_are_drawn_from() {
    let v = 30_000;
    let logits: Vec<f32> = seeded(3, 2 * v).iter().map(|x| 12.0 * x).collect();
    let rows = [0, 1].map(|step| SampleRow {
        params: OFFICIAL,
        uniforms: Uniforms::Philox { seed: 9, step },
        history: &[],
        forbidden: None,
    });
    same_as_on_the_cpu("a large vocabulary", v, &logits, &rows);
}

#[test]
fn checked() {
    emulator::run_checked("cuda::sample::");
}
