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
                ahead: false,
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
                    ahead: false,
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
        ahead: false,
        forbidden: None,
    });
    same_as_on_the_cpu("a large vocabulary", v, &logits, &rows);
}

/// Draws of two steps, the second asked for before the first is read: those of a sampler that knows the first token.
fn ahead_is_known<B: Sample>(b: &B) {
    let (n, v) = (3, 40);
    let steps = [1, 2].map(|seed| seeded(seed, n * v));
    let logits = |step: usize| {
        b.tensor(
            n,
            v,
            &steps[step].iter().map(|x| 4.0 * x).collect::<Vec<_>>(),
        )
        .unwrap()
    };
    let row = |step: u32, history: &'static [i32], ahead: bool| SampleRow {
        params: SampleParams {
            window: 3,
            // One repetition among the last three draws again.
            repetition_rate: 0.3,
            ..OFFICIAL
        },
        uniforms: Uniforms::Philox { seed: 4, step },
        history,
        ahead,
        forbidden: None,
    };
    let slots = [5, 0, 2];
    let mut tokens = b.ids(&[9; 6]).unwrap();
    let histories: [&'static [i32]; 3] = [&[], &[1], &[1, 2, 3, 4, 5, 6]];
    let rows = |step: u32| histories.map(|h| row(step, h, step > 0));
    let first = b.draw(&logits(0), &rows(0), &slots, &mut tokens).unwrap();
    let second = b.draw(&logits(1), &rows(1), &slots, &mut tokens).unwrap();
    let (first, second) = (b.drawn(first).unwrap(), b.drawn(second).unwrap());
    let mut left = Vec::new();
    b.download_ids(&tokens, &mut left).unwrap();
    let mut ids = b.ids(&[0; 3]).unwrap();
    for (i, &slot) in slots.iter().enumerate() {
        assert_eq!(left[slot as usize], second[i].token);
    }
    assert_eq!(left[1], 9, "a slot that nobody asked for");
    let histories = [0, 1, 2].map(|i| [histories[i], &[first[i].token]].concat());
    let known: Vec<SampleRow<'_>> = (histories.iter())
        .map(|history| SampleRow {
            history,
            ..row(1, &[], false)
        })
        .collect();
    assert_eq!(b.sample(&logits(1), &known, &mut ids).unwrap(), second);
    // The same token again: it is drawn anew because of the one that is ahead.
    let again = b.draw(&logits(0), &rows(0), &slots, &mut tokens).unwrap();
    let repeated = [0; 3].map(|_| SampleRow {
        uniforms: Uniforms::Given([0.0, 0.5]),
        ..row(0, &[], true)
    });
    let peaked: Vec<f32> = (first.iter())
        .flat_map(|s| (0..v as i32).map(|i| if i == s.token { 30.0 } else { 0.0 }))
        .collect();
    let peaked = b.tensor(n, v, &peaked).unwrap();
    let redrawn = b.draw(&peaked, &repeated, &slots, &mut tokens).unwrap();
    assert_eq!(b.drawn(again).unwrap(), first);
    for (redrawn, first) in b.drawn(redrawn).unwrap().iter().zip(&first) {
        assert_eq!(redrawn.draws, 2);
        assert_ne!(redrawn.token, first.token);
    }
}

#[test]
fn a_token_that_is_ahead_counts_as_history() {
    ahead_is_known(&cpu());
    if let Some(cuda) = device(Precision::Bf16) {
        ahead_is_known(&*cuda);
    }
}

/// Draws that nobody reads leave the device in order.
#[test]
fn draws_may_be_left_unread() {
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let logits = cuda.tensor(1, 9, &seeded(1, 9)).unwrap();
    let row = SampleRow {
        params: OFFICIAL,
        uniforms: Uniforms::Philox { seed: 1, step: 0 },
        history: &[],
        ahead: false,
        forbidden: None,
    };
    let mut tokens = cuda.ids(&[0]).unwrap();
    let rows = [row];
    drop(cuda.draw(&logits, &rows, &[0], &mut tokens).unwrap());
    let read = cuda.draw(&logits, &rows, &[0], &mut tokens).unwrap();
    assert_eq!(
        cuda.drawn(read).unwrap(),
        cuda.sample(&logits, &rows, &mut tokens).unwrap()
    );
}

#[test]
fn checked() {
    emulator::run_checked("cuda::sample::");
}
