//! Running tasks: the dispatcher that starts them, and the life of one from its first step to its file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::files::Partial;
use super::live::Open;
use super::record::{Completed, Failure, Outcome};
use super::synthesis::{Prepared, SynthesisError};
use super::voices::hex;
use super::{Inner, Status, Timestamp, VoiceError, catch_panic, submit};
use crate::engine::{EngineError, Event, Job, Request, Summary};

/// Share of a task's progress that the engine's work is; writing the file is the rest.
const ENGINE_SHARE: f32 = 0.97;

/// Starts waiting tasks as workers become free, until the server drains.
pub(super) async fn dispatch(inner: Arc<Inner>) {
    loop {
        let next = next_to_run(&inner);
        let (open, permit) = tokio::select! {
            () = inner.drained() => return,
            next = next => next,
        };
        let inner = Arc::clone(&inner);
        tokio::spawn(run(inner, open, permit));
    }
}

/// Waits for a task and a worker. The worker is taken after there is a task, so that an idle queue holds none.
async fn next_to_run(inner: &Arc<Inner>) -> (Arc<Open>, OwnedSemaphorePermit) {
    loop {
        while inner.state().queue.len() == 0 {
            inner.queued.notified().await;
        }
        let permit = Arc::clone(&inner.workers).acquire_owned().await;
        let permit = permit.expect("the workers' semaphore is never closed. This is a bug.");
        let mut state = inner.state();
        let popped = state.queue.pop(Timestamp::now());
        let open = popped.and_then(|id| state.open.get(&id).cloned());
        drop(state);
        if let Some(open) = open {
            return (open, permit);
        }
    }
}

/// Counts one running task or stream.
pub(super) struct Running(pub(super) Arc<Inner>);

impl Running {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        inner.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(inner))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn run(inner: Arc<Inner>, open: Arc<Open>, permit: OwnedSemaphorePermit) {
    let _running = Running::new(&inner);
    open.start();
    let waited = Timestamp::now().0.saturating_sub(open.record.created_at.0);
    inner.metrics.queue_wait.observe(waited as f64 / 1e3);
    let started = Instant::now();
    let executed = tokio::select! {
        biased;
        () = open.cancelled.notified() => None,
        executed = catch_panic(execute(&inner, &open)) => Some(executed),
    };
    inner.state().queue.ended(&open.record.client);
    drop(permit);
    let result = match executed {
        None => return,
        Some(Ok(result)) => result,
        Some(Err(panic)) => {
            tracing::error!(task_id = open.record.task_id, panic, "a task met a bug");
            Err(Failure::new(
                "internal_error",
                "An internal error stopped this task",
            ))
        }
    };
    if let Err(failure) = &result
        && failure.word == "engine_stopped"
        && inner.is_draining()
    {
        return; // Still open on disk: the next start resumes it.
    }
    if !open.claim() {
        return; // A cancel came first, and ends the task.
    }
    let outcome = match result.and_then(publish) {
        Ok(completed) => Outcome::Completed(completed),
        Err(failure) => Outcome::Failed(failure),
    };
    account(&inner, &open, &outcome, started.elapsed());
    conclude(&inner, &open, outcome).await;
}

fn publish((completed, file): (Completed, Partial)) -> Result<Completed, Failure> {
    let published = file.publish();
    published
        .map_err(|e| Failure::new("storage_failed", format!("The audio cannot be stored: {e}")))?;
    Ok(completed)
}

/// The work: text and voice to samples to a file beside its place.
async fn execute(inner: &Arc<Inner>, open: &Arc<Open>) -> Result<(Completed, Partial), Failure> {
    let (request, normalized_text) = engine_request(inner, open).await?;
    let mut job = submit_patiently(inner, request).await?;
    let mut samples = Vec::new();
    let summary = loop {
        match job.next().await {
            Some(Event::Started) => {}
            Some(Event::Progress { stage, fraction }) => {
                open.advance(stage.as_str(), fraction * ENGINE_SHARE);
            }
            Some(Event::Audio(more)) => samples.extend_from_slice(&more),
            Some(Event::Done(summary)) => break summary,
            Some(Event::Failed(error)) => return Err(engine_failure(&error)),
            None => return Err(engine_failure(&EngineError::Stopped)),
        }
    };
    open.advance("encoding", ENGINE_SHARE);
    let (inner, open) = (Arc::clone(inner), Arc::clone(open));
    let write = move || write_result(&inner, &open, &samples, &summary, normalized_text);
    let written = tokio::task::spawn_blocking(write).await;
    written.unwrap_or_else(|e| Err(Failure::new("internal_error", e.to_string())))
}

async fn engine_request(inner: &Arc<Inner>, open: &Open) -> Result<(Request, String), Failure> {
    let record = &open.record;
    let loaded = inner.voices.load(&record.request.voice).await;
    let loaded = loaded.map_err(|e| voice_failure(&e))?;
    let kept = open
        .prepared
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    let prepared: Prepared = match kept {
        Some(prepared) => prepared,
        None => {
            let utterance = record.request.utterance.clone();
            let prepared = submit::prepare(inner, utterance, Arc::clone(&loaded)).await;
            prepared.map_err(|e| synthesis_failure(&e))?
        }
    };
    let request = Request {
        segments: prepared.segments,
        mode: prepared.mode,
        voice: Arc::clone(&loaded.voice),
        speed: record.request.speed,
        seed: record.request.seed,
        stream: false,
        client: record.client.clone(),
        draws: None,
    };
    Ok((request, prepared.normalized_text))
}

/// Hands a request to the engine; a full engine is asked again, as this request has its worker already.
pub(super) async fn submit_patiently(inner: &Arc<Inner>, request: Request) -> Result<Job, Failure> {
    loop {
        match inner.synthesis.submit(request.clone()) {
            Ok(job) => return Ok(job),
            Err(EngineError::QueueFull { .. }) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(engine_failure(&error)),
        }
    }
}

fn write_result(
    inner: &Inner,
    open: &Open,
    samples: &[f32],
    summary: &Summary,
    normalized_text: String,
) -> Result<(Completed, Partial), Failure> {
    let record = &open.record;
    let format = record.request.format;
    let rate_hz = summary.sample_rate_hz.max(1);
    let bytes = crate::audio::encode(format, samples, rate_hz);
    let bytes = bytes.map_err(|e| Failure::new("encoding_failed", e.to_string()))?;
    let file = format!("{}.{}", record.task_id, format.name());
    let written = Partial::write(&inner.results.join(&file), &bytes);
    let partial = written
        .map_err(|e| Failure::new("storage_failed", format!("The audio cannot be stored: {e}")))?;
    inner
        .metrics
        .first_audio
        .observe(summary.first_audio.as_secs_f64());
    let completed = Completed {
        file,
        bytes: bytes.len() as u64,
        digest: hex(&Sha256::digest(&bytes)),
        duration_s: samples.len() as f64 / f64::from(rate_hz),
        sample_rate_hz: rate_hz,
        synthesis_time_s: summary.synthesis_time.as_secs_f64(),
        normalized_text,
    };
    Ok((completed, partial))
}

fn account(inner: &Inner, open: &Open, outcome: &Outcome, elapsed: Duration) {
    let task_id = &open.record.task_id;
    let seconds = elapsed.as_secs_f64();
    match outcome {
        Outcome::Completed(c) => {
            let chars = open.record.request.utterance.text.chars().count();
            let running = inner.running.load(Ordering::Relaxed);
            inner.state().pace.record(chars, seconds, running);
            inner.metrics.completed(seconds, c.duration_s);
            tracing::info!(
                task_id,
                seconds,
                audio_seconds = c.duration_s,
                "task completed"
            );
        }
        Outcome::Failed(f) => {
            inner.metrics.failed(&f.word);
            tracing::warn!(task_id, error = f.word, message = f.message, "task failed");
        }
    }
}

/// Writes how a claimed task ended and tells everybody. Tries until the store takes it: until then the task is open.
pub(super) async fn conclude(inner: &Arc<Inner>, open: &Arc<Open>, outcome: Outcome) {
    let live = open.live();
    let mut record = open.record.clone();
    record.started_at = live.started_at;
    record.completed_at = Some(Timestamp::now());
    record.request.utterance.text = String::new();
    record.request.utterance.lexicon.clear();
    let (outcome, status) = match outcome {
        Outcome::Failed(failure) => {
            let progress = live.progress;
            (
                Outcome::Failed(Failure {
                    progress,
                    ..failure
                }),
                Status::Failed,
            )
        }
        completed => (completed, Status::Completed),
    };
    record.outcome = Some(outcome);
    while let Err(error) = inner.store.finish(record.clone()).await {
        tracing::error!(task_id = record.task_id, %error, "cannot store how a task ended");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut state = inner.state();
    state.open.remove(&record.task_id);
    state.release_client(&record.client);
    state.finished.entry(record.scope).or_default()[usize::from(status == Status::Failed)] += 1;
    drop(state);
    open.finish();
    if record.request.callback_url.is_some() {
        inner.hooked.notify_one();
    }
}

pub(super) fn engine_failure(error: &EngineError) -> Failure {
    let word = match error {
        EngineError::QueueFull { .. } => "engine_busy",
        EngineError::Cancelled => return Failure::cancelled(),
        EngineError::Invalid(_) => "invalid_request",
        EngineError::Backend(_) => "device_error",
        EngineError::NoSpeech => "no_speech",
        EngineError::Stopped => "engine_stopped",
        EngineError::Internal(_) => "internal_error",
    };
    Failure::new(word, error.to_string())
}

fn voice_failure(error: &VoiceError) -> Failure {
    match error {
        VoiceError::NotFound(_) => Failure::new("voice_not_found", error.to_string()),
        VoiceError::Prompt(error) => synthesis_failure(error),
        _ => Failure::new("voice_unavailable", error.to_string()),
    }
}

fn synthesis_failure(error: &SynthesisError) -> Failure {
    Failure::new(error.word(), error.to_string())
}
