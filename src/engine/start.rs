//! A checkpoint and a backend become a running engine.

use std::sync::Arc;

use super::handle::EngineHandle;
use super::runner::{self, EngineOptions};
use super::stages::{Models, Stages};
use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::model::flow::Flow;
use crate::model::llm::Llm;
use crate::model::vocoder::Hift;
use crate::tensor::Trace;

/// Loads the models onto the backend that `make` opens and runs them on a thread of their own, which ends when the last
/// handle is dropped.
///
/// # Errors
/// Everything that is wrong with the checkpoint, or a device that has no room for it.
pub fn start<B: Backend>(
    checkpoint: Checkpoint,
    make: impl FnOnce() -> B + Send + 'static,
    options: EngineOptions,
    trace: Arc<Trace>,
) -> Result<EngineHandle> {
    runner::spawn(
        move || {
            let models = load(&checkpoint, make())?;
            let pages = options.kv_positions / options.page_size;
            Ok(Stages::new(models, pages, options.page_size, trace)?)
        },
        options,
    )
}

/// Fills the three models; every fault of the checkpoint is in one error.
fn load<B: Backend>(checkpoint: &Checkpoint, backend: B) -> Result<Models<B>> {
    let config = checkpoint.config();
    let llm = Llm::load(&backend, &checkpoint.llm(), &config.llm)?;
    let flow = Flow::load(&backend, &checkpoint.flow(), &config.flow)?;
    let hift = Hift::load(&backend, &checkpoint.hift(), &config.hift)?;
    checkpoint.finish()?;
    Ok(Models {
        backend,
        llm,
        flow,
        hift,
    })
}
