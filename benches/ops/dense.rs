//! Linear layers at the language model's and the flow's sizes.

use cosyvoice::backend::{Dense, Epilogue, Memory, Weight};
use cosyvoice::cpu::WeightPrecision;
use criterion::Criterion;

use super::{Bench, Work};

/// Values that are not all alike.
pub(crate) fn values(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
        .collect()
}

pub(crate) fn all(c: &mut Criterion) {
    for precision in [
        WeightPrecision::F32,
        WeightPrecision::Bf16,
        WeightPrecision::Int8,
    ] {
        let bench = Bench::new(precision);
        eprintln!("{precision:?}: {:?}", bench.peaks);
        stream(c, &bench, precision);
        for n in [4, 16, 64, 1000] {
            product(c, &bench, precision, n, 4864, 896);
            product(c, &bench, precision, n, 896, 4864);
            product(c, &bench, precision, n, 512, 256);
        }
    }
}

/// One row through enough layers that no cache holds them: what a decode step does.
fn stream(c: &mut Criterion, bench: &Bench, precision: WeightPrecision) {
    let (m, k, layers) = (4864, 896, 16);
    let w = values(m * k);
    let linears: Vec<_> = (0..layers)
        .map(|_| {
            bench
                .cpu
                .pack_linear(&Weight::f32(&[m, k], &w[..]), None)
                .unwrap()
        })
        .collect();
    let bytes: usize = linears.iter().map(|l| l.bytes()).sum();
    for rows in [1, 2, 8] {
        let x = bench.cpu.tensor(rows, k, &values(rows * k)).unwrap();
        let mut out = bench.cpu.alloc(rows, m).unwrap();
        let name = format!("stream/{precision:?}/{rows}x{m}x{k}");
        bench.run(c, &name, Work::Bytes(bytes as f64), |cpu| {
            for linear in &linears {
                cpu.linear(&x, linear, Epilogue::None, &mut out).unwrap();
            }
        });
    }
}

fn product(
    c: &mut Criterion,
    bench: &Bench,
    precision: WeightPrecision,
    n: usize,
    m: usize,
    k: usize,
) {
    let linear = bench
        .cpu
        .pack_linear(&Weight::f32(&[m, k], values(m * k)), None)
        .unwrap();
    let x = bench.cpu.tensor(n, k, &values(n * k)).unwrap();
    let mut out = bench.cpu.alloc(n, m).unwrap();
    let flops = 2.0 * (n * m * k) as f64;
    bench.run(
        c,
        &format!("linear/{precision:?}/{n}x{m}x{k}"),
        Work::Flops(flops),
        |cpu| {
            cpu.linear(&x, &linear, Epilogue::None, &mut out).unwrap();
        },
    );
}
