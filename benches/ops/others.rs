//! Everything but linear layers: the cases of `cosyvoice bench --ops`.

use std::time::Instant;

use cosyvoice::backend::Backend;
use cosyvoice::cli::bench::ops;
use cosyvoice::model::config::ModelConfig;
use criterion::Criterion;

/// What the device reaches at most.
pub(crate) struct Limits {
    pub(crate) read_bytes_per_s: f64,
    pub(crate) flops_per_s: f64,
}

/// Prints the best of some runs of each case against both limits, then lets criterion time it. `bytes` are as in [`ops::each`].
pub(crate) fn all<B: Backend>(
    c: &mut Criterion,
    backend: &B,
    bytes: (usize, usize),
    limits: &Limits,
) {
    let config = ModelConfig::preset("cosyvoice2-0.5b").expect("preset");
    let result = ops::each(backend, &config, bytes, &mut |case| {
        let mut once = || {
            (case.run)()?;
            backend.synchronize()
        };
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let start = Instant::now();
            once()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        eprintln!(
            "{}: {:.1} GB/s, {:.0} % of reads; {:.1} GFLOP/s, {:.0} % of products; {:.3} ms (best of 20)",
            case.name,
            case.bytes / best / 1e9,
            100.0 * case.bytes / best / limits.read_bytes_per_s,
            case.flop / best / 1e9,
            100.0 * case.flop / best / limits.flops_per_s,
            best * 1e3,
        );
        c.bench_function(&format!("{}/{}", backend.name(), case.name), |b| {
            b.iter(|| once().expect("the device works"));
        });
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{}: {e}", backend.name()));
}
