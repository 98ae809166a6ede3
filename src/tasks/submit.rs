//! Taking a task on: text prepared, limits kept, on disk, in the queue; in this order.

use std::sync::Arc;

use uuid::Uuid;

use super::live::Open;
use super::record::{Idempotency, Record, TaskRequest};
use super::store::{Inserted, StoreError};
use super::synthesis::{Prepared, SynthesisError, Utterance};
use super::voices::Loaded;
use super::{Inner, Tasks, Timestamp};
use crate::audio::Format;

/// A request for a task, with its voice already found.
#[derive(Clone, Debug)]
pub struct Submit {
    pub scope: String,
    pub client: String,
    pub utterance: Utterance,
    /// The name that the user gave the voice, if any.
    pub voice_id: Option<String>,
    pub voice: Arc<Loaded>,
    pub speed: f32,
    pub format: Format,
    /// Drawn when there is none.
    pub seed: Option<u64>,
    pub callback_url: Option<String>,
    pub idempotency: Option<Idempotency>,
}

/// An accepted task.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub task_id: String,
    /// Seconds from now until it is done.
    pub estimated_time: f64,
    /// False when an idempotency key led to an earlier task.
    pub new: bool,
}

/// Why a task was not taken on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    #[error("the server is shutting down")]
    Draining,
    #[error("{limit} tasks are waiting already")]
    QueueFull { limit: usize, retry_after: u64 },
    #[error("you have {limit} open tasks already")]
    ClientFull { limit: usize, retry_after: u64 },
    #[error("this Idempotency-Key was used for a different request")]
    KeyConflict,
    #[error(transparent)]
    Unspeakable(#[from] SynthesisError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A place in the queue and among a client's tasks; given back on drop.
pub(super) struct Reservation {
    inner: Arc<Inner>,
    client: String,
    queued: bool,
    owns_client: bool,
}

impl Reservation {
    /// Gives the place in the queue back: the request runs.
    pub(super) fn leave_queue(&mut self) {
        if std::mem::take(&mut self.queued) {
            self.inner.state().reserved -= 1;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.leave_queue();
        if self.owns_client {
            self.inner.state().release_client(&self.client);
        }
    }
}

impl super::State {
    pub(super) fn release_client(&mut self, client: &str) {
        if let Some(n) = self.per_client.get_mut(client) {
            *n -= 1;
            if *n == 0 {
                self.per_client.remove(client);
            }
        }
    }
}

pub(super) fn reserve(inner: &Arc<Inner>, client: &str) -> Result<Reservation, SubmitError> {
    if inner.is_draining() {
        return Err(SubmitError::Draining);
    }
    let config = &inner.config;
    let mut state = inner.state();
    let waiting = state.queue.len() + state.reserved;
    let retry_after = state.pace.retry_after(waiting, state.queue.chars());
    if waiting >= config.max_queued {
        let limit = config.max_queued;
        return Err(SubmitError::QueueFull { limit, retry_after });
    }
    let open = state.per_client.entry(client.to_owned()).or_default();
    if config.max_per_client > 0 && *open >= config.max_per_client {
        let limit = config.max_per_client;
        return Err(SubmitError::ClientFull { limit, retry_after });
    }
    *open += 1;
    state.reserved += 1;
    Ok(Reservation {
        inner: Arc::clone(inner),
        client: client.to_owned(),
        queued: true,
        owns_client: true,
    })
}

/// Prepares text off the runtime, a bounded number at a time.
pub(super) async fn prepare(
    inner: &Arc<Inner>,
    utterance: Utterance,
    voice: Arc<Loaded>,
) -> Result<Prepared, SynthesisError> {
    let _permit = inner.preparing.acquire().await;
    let synthesis = Arc::clone(&inner.synthesis);
    let work = move || synthesis.prepare(&utterance, &voice.voice);
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(SynthesisError::Internal(e.to_string())))
}

/// A seed for a request that names none; short enough for any client's numbers.
pub(super) fn draw_seed() -> u64 {
    Uuid::new_v4().as_u128() as u64 & u64::from(u32::MAX)
}

impl Tasks {
    /// Takes a task on. It is on disk when this returns, and stays taken on when the caller goes away meanwhile.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing is kept then.
    pub async fn submit(&self, submit: Submit) -> Result<Accepted, SubmitError> {
        if let Some(accepted) = self.find_earlier(&submit)? {
            return Ok(accepted);
        }
        let reservation = reserve(&self.0, &submit.client)?;
        let prepared =
            prepare(&self.0, submit.utterance.clone(), Arc::clone(&submit.voice)).await?;
        let this = self.clone();
        let accept = tokio::spawn(async move { this.accept(submit, prepared, reservation).await });
        let joined = accept.await;
        joined.unwrap_or_else(|e| Err(SynthesisError::Internal(e.to_string()).into()))
    }

    /// The task that the idempotency key belongs to.
    fn find_earlier(&self, submit: &Submit) -> Result<Option<Accepted>, SubmitError> {
        let Some(idempotency) = &submit.idempotency else {
            return Ok(None);
        };
        match self.0.store.find_key(&submit.scope, &idempotency.key)? {
            Some((task_id, digest)) if digest == idempotency.digest => Ok(Some(Accepted {
                task_id,
                estimated_time: 0.0,
                new: false,
            })),
            Some(_) => Err(SubmitError::KeyConflict),
            None => Ok(None),
        }
    }

    async fn accept(
        &self,
        submit: Submit,
        prepared: Prepared,
        mut reservation: Reservation,
    ) -> Result<Accepted, SubmitError> {
        let inner = &self.0;
        let record = Record {
            seq: inner
                .next_seq
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            task_id: format!("task_{}", Uuid::new_v4().simple()),
            scope: submit.scope,
            client: submit.client,
            request: TaskRequest {
                utterance: submit.utterance,
                voice_id: submit.voice_id,
                voice: submit.voice.source.clone(),
                speed: submit.speed,
                format: submit.format,
                seed: submit.seed.unwrap_or_else(draw_seed),
                callback_url: submit.callback_url,
            },
            idempotency: submit.idempotency,
            created_at: Timestamp::now(),
            started_at: None,
            completed_at: None,
            outcome: None,
        };
        match inner.store.insert(record.clone()).await? {
            Inserted::New => {}
            Inserted::Conflict => return Err(SubmitError::KeyConflict),
            Inserted::Existing(task_id) => {
                return Ok(Accepted {
                    task_id,
                    estimated_time: 0.0,
                    new: false,
                });
            }
        }
        inner.metrics.submitted.inc();
        let task_id = record.task_id.clone();
        let estimated_time = self.enqueue(Open::new(record, Some(prepared)));
        reservation.owns_client = false;
        Ok(Accepted {
            task_id,
            estimated_time,
            new: true,
        })
    }

    /// Puts a task that counts against its client already into the queue; seconds until it should be done.
    pub(super) fn enqueue(&self, open: Open) -> f64 {
        let (seq, client) = (open.record.seq, open.record.client.clone());
        let chars = open.record.request.utterance.text.chars().count();
        let mut state = self.0.state();
        let estimated = state.pace.estimate(state.queue.chars(), chars);
        let task_id = open.record.task_id.clone();
        state
            .queue
            .push(seq, &task_id, &client, chars, Timestamp::now());
        state.open.insert(task_id, Arc::new(open));
        drop(state);
        self.0.queued.notify_one();
        estimated
    }
}
