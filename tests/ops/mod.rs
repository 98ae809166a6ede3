//! Every backend op against its reference, and those without weights against the official code's tensors.

mod recorded;

use cosyvoice::backend::Memory;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::tensor::Tensor;

/// A backend with one thread.
fn cpu() -> Cpu {
    Cpu::new(CpuOptions {
        threads: 1,
        ..CpuOptions::default()
    })
}

/// A tensor of `cols` columns with the given values.
fn tensor(cpu: &Cpu, cols: usize, values: &[f32]) -> Tensor<Cpu> {
    cpu.tensor(values.len() / cols, cols, values).unwrap()
}
