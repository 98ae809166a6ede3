//! Speech that is sent while it is made: the same limits and workers as tasks, but nothing is stored, and a listener who goes
//! away ends it.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::run::{Running, submit_patiently};
use super::submit::{self, Reservation};
use super::{Failure, Submit, SubmitError, SynthesisError, Tasks};
use crate::engine::{Event, Job, Request};

/// A running stream. Dropping it cancels the work.
pub struct Stream {
    pub seed: u64,
    job: Job,
    _running: Running,
    _permit: OwnedSemaphorePermit,
    _reservation: Reservation,
}

impl Stream {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.job.next().await
    }
}

impl Tasks {
    /// Starts a stream, after those that came before it. A speed other than 1 needs all samples before the first can be sent.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn stream(&self, submit: Submit) -> Result<Stream, SubmitError> {
        let inner = &self.0;
        let mut reservation = submit::reserve(inner, &submit.client)?;
        let prepared = submit::prepare(inner, submit.utterance, Arc::clone(&submit.voice)).await?;
        let permit = Arc::clone(&inner.workers).acquire_owned().await;
        let permit = permit.expect("the workers' semaphore is never closed. This is a bug.");
        reservation.leave_queue();
        let running = Running::new(inner);
        let seed = submit.seed.unwrap_or_else(submit::draw_seed);
        let request = Request {
            segments: prepared.segments,
            mode: prepared.mode,
            voice: Arc::clone(&submit.voice.voice),
            speed: submit.speed,
            seed,
            stream: submit.speed == 1.0,
            client: submit.client,
            draws: None,
        };
        let job = submit_patiently(inner, request).await;
        let job = job.map_err(|f: Failure| SynthesisError::Internal(f.message))?;
        inner.metrics.streams.inc();
        Ok(Stream {
            seed,
            job,
            _running: running,
            _permit: permit,
            _reservation: reservation,
        })
    }
}
