//! Callbacks: a finished task is posted to its `callback_url`, signed, and retried until it is taken or given up.
//!
//! Which callbacks are due is in the task store, so they survive a crash.

mod address;
mod deliver;
mod sign;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;

pub use address::check_url;

use super::record::{Outcome, View};
use super::store::Hook;
use super::{Inner, Timestamp};
pub(crate) use sign::{base64, unbase64};

/// Attempts before a callback is given up.
const ATTEMPTS: u32 = 7;
/// Each pause is so many times the one before.
const BACKOFF: u32 = 4;
/// Callbacks under way at the same time.
const CONCURRENT: usize = 8;
/// How often due callbacks are looked for without being told of one.
const IDLE: Duration = Duration::from_secs(30);

/// Delivers callbacks until the server drains.
pub(super) async fn run(inner: Arc<Inner>) {
    let permits = Arc::new(Semaphore::new(CONCURRENT));
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = inner.drained() => return,
            () = inner.hooked.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = match deliver_due(&inner, &permits).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::error!(%error, "cannot read callbacks");
                IDLE
            }
        };
    }
}

/// Delivers what is due and says how long to wait for the next.
async fn deliver_due(
    inner: &Arc<Inner>,
    permits: &Arc<Semaphore>,
) -> Result<Duration, super::StoreError> {
    let now = Timestamp::now();
    let (due, later): (Vec<_>, Vec<_>) = inner
        .store
        .hooks()?
        .into_iter()
        .partition(|(_, h)| h.next_at <= now);
    let mut deliveries = tokio::task::JoinSet::new();
    for (seq, hook) in due {
        let permit = Arc::clone(permits).acquire_owned().await;
        let inner = Arc::clone(inner);
        deliveries.spawn(async move {
            let _permit = permit;
            attempt(&inner, seq, hook).await
        });
    }
    let mut next = later.into_iter().map(|(_, h)| h.next_at).min();
    while let Some(done) = deliveries.join_next().await {
        if let Ok(Some(again)) = done {
            next = Some(next.map_or(again, |n| n.min(again)));
        }
    }
    let until = next.map(|at| Duration::from_millis(at.0.saturating_sub(Timestamp::now().0)));
    Ok(until.map_or(IDLE, |d| d.clamp(Duration::from_millis(10), IDLE)))
}

/// One attempt; when the next one is due, if there is one.
async fn attempt(inner: &Arc<Inner>, seq: u64, hook: Hook) -> Option<Timestamp> {
    let record = inner.store.get(&hook.task_id).ok().flatten();
    let url = record.as_ref().and_then(|r| r.request.callback_url.clone());
    let sent = match (record, url) {
        (Some(record), Some(url)) => {
            let view = View::finished(record, inner.config.max_age);
            let body = payload(&view, &inner.results);
            deliver::post(&url, &hook.task_id, body, &inner.config.webhook).await
        }
        _ => Ok(()), // The task is gone: nothing to tell.
    };
    let attempts = hook.attempts + 1;
    let again = match sent {
        Ok(()) => {
            inner.metrics.webhook("delivered");
            None
        }
        Err(error) if attempts >= ATTEMPTS => {
            tracing::warn!(
                task_id = hook.task_id,
                attempts,
                error,
                "giving a callback up"
            );
            inner.metrics.webhook("given_up");
            None
        }
        Err(error) => {
            tracing::info!(
                task_id = hook.task_id,
                attempts,
                error,
                "a callback failed and will be retried"
            );
            inner.metrics.webhook("retried");
            let pause = inner.config.webhook.first_retry * BACKOFF.pow(attempts - 1);
            Some(Timestamp::now().plus(pause))
        }
    };
    let next = again.map(|next_at| Hook {
        task_id: hook.task_id,
        attempts,
        next_at,
    });
    if let Err(error) = inner.store.set_hook(seq, next).await {
        tracing::error!(%error, "cannot store the state of a callback");
    }
    again
}

fn payload(view: &View, results: &std::path::Path) -> String {
    let (kind, data) = match &view.record.outcome {
        Some(Outcome::Completed(_)) => ("task.completed", view.result_json(results)),
        _ => ("task.failed", None),
    };
    let data = data.unwrap_or_else(|| view.status_json());
    let at = view.record.completed_at.unwrap_or(view.record.created_at);
    json!({"type": kind, "timestamp": at.to_string(), "data": data, "task": view.status_json()})
        .to_string()
}
