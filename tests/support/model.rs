//! The kit's checkpoint and the models in it, on any backend.
#![allow(dead_code)]

use cosyvoice::backend::Backend;
use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::model::flow::Flow;
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

pub(crate) fn llm<B: Backend>(backend: &B) -> Llm<B> {
    let checkpoint = checkpoint();
    let llm = Llm::load(backend, &checkpoint.llm(), &checkpoint.config().llm).unwrap();
    checkpoint.finish().unwrap_or_else(|e| panic!("{e}"));
    llm
}

pub(crate) fn flow<B: Backend>(backend: &B) -> Flow<B> {
    let checkpoint = checkpoint();
    let flow = Flow::load(backend, &checkpoint.flow(), &checkpoint.config().flow).unwrap();
    checkpoint.finish().unwrap_or_else(|e| panic!("{e}"));
    flow
}

pub(crate) fn hift<B: Backend>(backend: &B) -> Hift<B> {
    let checkpoint = checkpoint();
    let hift = Hift::load(backend, &checkpoint.hift(), &checkpoint.config().hift).unwrap();
    checkpoint.finish().unwrap_or_else(|e| panic!("{e}"));
    hift
}
