//! Server-sent events: framing, and following a task.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde_json::Value;

use super::reply::{Pieces, Response, pieces, reply};
use crate::tasks::{Status, Tasks};

/// A comment goes out so often, so that nobody between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Pause before looking again at a task that is between two places.
const SETTLE: Duration = Duration::from_millis(20);

/// An answer of events, and where they go.
pub(super) fn stream() -> (Pieces, Response) {
    let (sender, body) = pieces();
    let mut response = reply(StatusCode::OK, "text/event-stream", body);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (sender, response)
}

/// One event on the wire.
pub(super) fn event(name: Option<&str>, id: Option<&str>, data: &Value) -> String {
    let name = name.map(|n| format!("event: {n}\n")).unwrap_or_default();
    let id = id.map(|i| format!("id: {i}\n")).unwrap_or_default();
    format!("{name}{id}data: {data}\n\n")
}

/// Sends a task's status object now and at every change, until it has ended or nobody listens. A client that saw the event
/// `last_id` gets the present state only if it is another one.
pub(super) async fn follow(
    tasks: Tasks,
    scope: String,
    task_id: String,
    last_id: Option<String>,
    sender: Pieces,
) {
    let mut follow = tasks.follow(&scope, &task_id);
    let mut seen = last_id;
    // Tells the client how long to wait before it connects again.
    if !sender.send("retry: 1000\n\n").await {
        return;
    }
    loop {
        let Ok(view) = tasks.get(&scope, &task_id) else {
            return; // Expired between two events.
        };
        if seen.as_deref() != Some(&view.revision) {
            let text = event(Some("status"), Some(&view.revision), &view.status_json());
            if !sender.send(text).await {
                return;
            }
            seen = Some(view.revision.clone());
        }
        if matches!(view.status, Status::Completed | Status::Failed) {
            return;
        }
        tokio::select! {
            changed = follow.changed() => if !changed {
                // It has ended, or is on its way into the queue.
                tokio::time::sleep(SETTLE).await;
                follow = tasks.follow(&scope, &task_id);
            },
            () = tokio::time::sleep(HEARTBEAT) => {
                if !sender.send(": still here\n\n").await {
                    return;
                }
            }
            () = sender.closed() => return,
        }
    }
}
