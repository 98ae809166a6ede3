//! Durable tasks: accepted once, finished once, whatever happens in between.
//!
//! In: a [`Submit`] (what to say, with which voice) of the server. Out: [`View`]s of the task and its audio file. A task is in the
//! `store` before [`Tasks::submit`] returns; a process that dies is followed by one that finds it there and runs it again,
//! with the same seed and so the same bytes. Below this room is the [`Synthesis`] trait, above it HTTP.

mod clock;
mod files;
mod lifecycle;
mod live;
mod maintenance;
mod queue;
mod record;
mod run;
mod speaker;
mod store;
mod stream;
mod submit;
mod synthesis;
mod unwind;
mod voices;
mod webhook;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};

pub use clock::Timestamp;
pub use record::{
    Completed, Failure, Idempotency, Outcome, Record, Status, TaskRequest, View, VoiceSource,
    result_url, status_url,
};
pub use speaker::Speaker;
pub use store::StoreError;
pub use stream::Stream;
pub use submit::{Accepted, Submit, SubmitError};
pub use synthesis::{
    BuiltinVoice, Kind, ModelInfo, Prepared, Prompt, Synthesis, SynthesisError, Utterance,
};
pub(crate) use unwind::catch_panic;
pub(crate) use voices::hex;
pub use voices::{Changes, Loaded, NewVoice, VoiceError, VoiceInfo, Voices, is_valid_id};
pub use webhook::check_url;
pub(crate) use webhook::{base64, unbase64};

use crate::telemetry::Metrics;
use live::Open;
use queue::{Pace, Queue};
use store::Store;

/// Bounds and places of the tasks of a server.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    /// Tasks synthesised at the same time; `None` leaves it to the model.
    pub workers: Option<usize>,
    pub max_queued: usize,
    /// Open tasks of one client; 0 is no limit.
    pub max_per_client: usize,
    pub max_age: Duration,
    pub cleanup_interval: Duration,
    pub max_prompt: Duration,
    pub webhook: WebhookConfig,
}

/// How callbacks are sent.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    pub secret: Option<String>,
    pub allow_private: bool,
    /// Pause before the first retry; later ones are longer.
    pub first_retry: Duration,
}

/// Why a task cannot be shown or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TaskError {
    #[error("Task '{0}' not found")]
    NotFound(String),
    #[error("Task '{0}' has expired and was removed")]
    Gone(String),
    #[error("Task '{task_id}' is already {}", status.as_str())]
    Finished { task_id: String, status: Status },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The server cannot start on this data folder.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("DATA_DIR {path}: {source}")]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("DATA_DIR: {0}")]
    Store(#[from] StoreError),
    #[error("DATA_DIR: {0}")]
    Voices(#[from] VoiceError),
}

/// What changes under one lock.
#[derive(Default)]
struct State {
    open: HashMap<String, Arc<Open>>,
    queue: Queue,
    /// Open and reserved tasks by client.
    per_client: HashMap<String, usize>,
    /// Accepted but not yet in the queue, and streams that wait for their turn.
    reserved: usize,
    /// Finished tasks on disk by scope: completed, failed.
    finished: HashMap<String, [usize; 2]>,
    pace: Pace,
}

struct Inner {
    config: Config,
    results: PathBuf,
    synthesis: Arc<dyn Synthesis>,
    voices: Arc<Voices>,
    store: Store,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    next_seq: AtomicU64,
    /// Tells this run's revisions from those of earlier runs.
    boot: String,
    workers: Arc<Semaphore>,
    worker_count: usize,
    running: AtomicUsize,
    /// Texts prepared at the same time.
    preparing: Semaphore,
    queued: Notify,
    hooked: Notify,
    draining: watch::Sender<bool>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns when the server drains.
    async fn drained(&self) {
        let mut draining = self.draining.subscribe();
        let _ = draining.wait_for(|d| *d).await;
    }
}

/// All tasks of a server. Clones share them.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

impl Tasks {
    pub fn voices(&self) -> &Arc<Voices> {
        &self.0.voices
    }

    pub fn synthesis(&self) -> &Arc<dyn Synthesis> {
        &self.0.synthesis
    }

    /// The folder of audio files.
    pub fn results_dir(&self) -> &Path {
        &self.0.results
    }

    /// Tasks that may run at the same time.
    pub fn worker_count(&self) -> usize {
        self.0.worker_count
    }

    /// Tasks and streams that run, and tasks that wait.
    pub fn load(&self) -> (usize, usize) {
        (
            self.0.running.load(Ordering::Relaxed),
            self.0.state().queue.len(),
        )
    }

    pub fn is_draining(&self) -> bool {
        self.0.is_draining()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An open record of a one-word request.
    pub(super) fn record(seq: u64) -> Record {
        Record {
            seq,
            task_id: format!("task_{seq:032x}"),
            scope: String::new(),
            client: String::from("client"),
            request: TaskRequest {
                utterance: Utterance {
                    kind: Kind::Sft,
                    text: String::from("Hello"),
                    instruct_text: None,
                    language: None,
                    normalization: Default::default(),
                    lexicon: Default::default(),
                },
                voice_id: Some(String::from("v")),
                voice: VoiceSource::Builtin(String::from("v")),
                speed: 1.0,
                format: crate::audio::Format::Wav,
                seed: 7,
                callback_url: None,
            },
            idempotency: None,
            created_at: Timestamp(1000 + seq),
            started_at: None,
            completed_at: None,
            outcome: None,
        }
    }
}
