//! A checkpoint and a backend become a running engine.

use std::sync::{Arc, Mutex, PoisonError};

use super::handle::EngineHandle;
use super::runner::{self, EngineOptions};
use super::stages::{Models, Stages};
use crate::backend::{self, Backend, BackendError};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::model::flow::Flow;
use crate::model::llm::Llm;
use crate::model::vocoder::Hift;
use crate::tensor::Trace;

/// Loads the models onto the backend that `make` gives and runs them on a thread of their own, which ends when the last
/// handle is dropped. A backend that is lost cannot be opened again: see [`start_on`].
///
/// # Errors
/// Everything that is wrong with the checkpoint, or a device that has no room for it.
pub fn start<B: Backend>(
    checkpoint: Checkpoint,
    make: impl FnOnce() -> B + Send + 'static,
    options: EngineOptions,
    trace: Arc<Trace>,
) -> Result<EngineHandle> {
    let mut make = Some(make);
    let open = move || match make.take() {
        Some(make) => Ok(make()),
        None => Err(BackendError::Driver {
            device: "device".to_owned(),
            op: "opening it again",
            message: "it was given only once".to_owned(),
        }),
    };
    start_on(checkpoint, [open], options, trace)
}

/// The same on several devices, behind one queue: each of `opens` opens one, at start and again when the driver reported an error. Then what
/// was in work on that device fails, what waited stays, and the models are loaded anew. `options` hold for each device.
///
/// # Errors
/// As [`start`], and a device that cannot be opened.
pub fn start_on<B: Backend, O>(
    checkpoint: Checkpoint,
    opens: impl IntoIterator<Item = O>,
    options: EngineOptions,
    trace: Arc<Trace>,
) -> Result<EngineHandle>
where
    O: FnMut() -> backend::Result<B> + Send + 'static,
{
    // Loading notes which tensors were used: one device at a time.
    let checkpoint = Arc::new(Mutex::new(checkpoint));
    let makes = opens.into_iter().map(|mut open| {
        let (checkpoint, trace) = (Arc::clone(&checkpoint), Arc::clone(&trace));
        move || {
            let backend = open()?;
            let checkpoint = checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
            let models = load(&checkpoint, backend)?;
            let pages = options.kv_positions / options.page_size;
            Ok(Stages::new(
                models,
                pages,
                options.page_size,
                Arc::clone(&trace),
            )?)
        }
    });
    runner::spawn(makes, options)
}

/// Fills the three models; every fault of the checkpoint is in one error.
fn load<B: Backend>(checkpoint: &Checkpoint, backend: B) -> Result<Models<B>> {
    let config = checkpoint.config();
    let urgent = backend.urgent()?;
    let llm_backend = urgent.as_ref().unwrap_or(&backend);
    let llm = Llm::load(llm_backend, &checkpoint.llm(), &config.llm)?;
    let flow = Flow::load(&backend, &checkpoint.flow(), &config.flow)?;
    let hift = Hift::load(&backend, &checkpoint.hift(), &config.hift)?;
    checkpoint.finish()?;
    Ok(Models {
        backend,
        urgent,
        llm,
        flow,
        hift,
    })
}
