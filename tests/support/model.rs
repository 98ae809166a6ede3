//! The kit's checkpoint and the models in it, on the CPU.
#![allow(dead_code)]

use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::model::llm::Llm;
use cosyvoice::model::vocoder::Hift;

use super::golden;

/// The kit's checkpoint, mapped.
pub(crate) fn checkpoint() -> Checkpoint {
    Checkpoint::open(golden::model_dir()).unwrap_or_else(|e| panic!("{e}"))
}

/// An f32 backend of so many threads.
pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions {
        threads,
        ..CpuOptions::default()
    })
}

pub(crate) fn llm(cpu: &Cpu) -> Llm<Cpu> {
    let checkpoint = checkpoint();
    let llm = Llm::load(cpu, &checkpoint.llm(), &checkpoint.config().llm).unwrap();
    checkpoint.finish().unwrap_or_else(|e| panic!("{e}"));
    llm
}

pub(crate) fn hift(cpu: &Cpu) -> Hift<Cpu> {
    let checkpoint = checkpoint();
    let hift = Hift::load(cpu, &checkpoint.hift(), &checkpoint.config().hift).unwrap();
    checkpoint.finish().unwrap_or_else(|e| panic!("{e}"));
    hift
}
