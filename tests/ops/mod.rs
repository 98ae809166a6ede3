//! Every backend op against its reference, and those without weights against the official code's tensors.

mod attention;
pub(crate) mod cases;
mod conv;
mod dense;
mod norm;
mod recorded;

use cosyvoice::backend::Memory;
use cosyvoice::cpu::{Cpu, CpuOptions, Isa, WeightPrecision};
use cosyvoice::tensor::Tensor;

use crate::support::metrics::nmse;

/// Bound on the NMSE of an f32 op whose sums are a few hundred terms long.
const F32_BOUND: f64 = 1e-12;

/// The fast backend with `threads` threads.
fn cpu_with(threads: usize, weights: WeightPrecision) -> Cpu {
    Cpu::new(CpuOptions { threads, weights })
}

/// The fast backend with one thread and f32 weights.
fn cpu() -> Cpu {
    cpu_with(1, WeightPrecision::F32)
}

/// All that an op's result must not depend on: instruction sets within tolerance, threads not at all.
fn backends(weights: WeightPrecision) -> [Cpu; 3] {
    let portable = CpuOptions {
        threads: 1,
        weights,
    };
    [
        cpu_with(1, weights),
        cpu_with(2, weights),
        Cpu::with_instructions(portable, Isa::PORTABLE),
    ]
}

/// A tensor of `cols` columns with the given values.
fn tensor(cpu: &Cpu, cols: usize, values: &[f32]) -> Tensor<Cpu> {
    cpu.tensor(values.len() / cols, cols, values).unwrap()
}

/// Runs `op` on every backend: each result must be close to `expected`, and one and two threads must agree to the bit.
fn check(
    what: &str,
    weights: WeightPrecision,
    bound: f64,
    expected: &[f32],
    op: impl Fn(&Cpu) -> Vec<f32>,
) {
    let [one, two, portable] = backends(weights).map(|cpu| op(&cpu));
    assert!(
        bits(&one) == bits(&two),
        "{what}: threads change the result"
    );
    for (name, actual) in [("fast", &one), ("portable", &portable)] {
        let error = nmse(actual, expected);
        assert!(error <= bound, "{what}, {name}: NMSE {error:e} > {bound:e}");
    }
}

/// Values as bits, so that comparisons are exact and NaNs equal themselves.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}
