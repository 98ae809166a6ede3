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
use half::bf16;

use crate::support::metrics::nmse;

/// Bound on the NMSE of an f32 op whose sums are a few hundred terms long.
const F32_BOUND: f64 = 1e-12;

/// The fast backend with `threads` threads.
fn cpu_with(threads: usize, weights: WeightPrecision) -> Cpu {
    Cpu::new(CpuOptions { threads, weights })
}

/// The same of a product with weights of bf16 where the CPU does not multiply those but integers of 16 bits: for values that are evenly spread, steps of
/// 1 / 8191 of the largest input are an NMSE of 3 / (12 · 8191²) = 3.7e-9, steps of 1 / 4096 of the largest weight 1.5e-8, and of a few products up to
/// twice that.
const FIXED_BOUND: f64 = 4e-8;

/// The fast backend with one thread and f32 weights.
fn cpu() -> Cpu {
    cpu_with(1, WeightPrecision::F32)
}

/// All that an op's result must not depend on: threads not at all, instruction sets within tolerance. The best set comes first, with one thread and
/// with two.
fn backends(weights: WeightPrecision) -> Vec<Cpu> {
    let with = |threads, isa| Cpu::with_instructions(CpuOptions { threads, weights }, isa);
    let best = [with(1, Isa::detect()), with(2, Isa::detect())];
    let lower = Isa::available().into_iter().skip(1);
    best.into_iter()
        .chain(lower.map(|isa| with(1, isa)))
        .collect()
}

/// Whether linear layers, convolutions of usual fidelity and attention round their inputs to bf16 on this backend.
fn rounds_to_bf16(cpu: &Cpu) -> bool {
    cpu.isa().multiplies_bf16() && cpu.options().weights == WeightPrecision::Bf16
}

/// Bound on the NMSE of a product with weights of bf16, whose input is rounded to it where that is what the backend does.
fn bf16_bound(cpu: &Cpu) -> f64 {
    match cpu.isa().multiplies_bf16() {
        true => F32_BOUND,
        false => FIXED_BOUND,
    }
}

/// `x`, to the nearest bf16.
fn in_bf16(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
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
    check_each(what, weights, |_| bound, |_| expected.to_vec(), op);
}

/// The same where what is expected, and how closely, depends on the backend.
fn check_each(
    what: &str,
    weights: WeightPrecision,
    bound: impl Fn(&Cpu) -> f64,
    expected: impl Fn(&Cpu) -> Vec<f32>,
    op: impl Fn(&Cpu) -> Vec<f32>,
) {
    let backends = backends(weights);
    let results: Vec<_> = backends.iter().map(op).collect();
    assert!(
        bits(&results[0]) == bits(&results[1]),
        "{what}: threads change the result"
    );
    for (cpu, actual) in backends.iter().zip(&results) {
        let (error, name) = (nmse(actual, &expected(cpu)), cpu.instructions());
        let bound = bound(cpu);
        assert!(error <= bound, "{what}, {name}: NMSE {error:e} > {bound:e}");
    }
}

/// Values as bits, so that comparisons are exact and NaNs equal themselves.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}
