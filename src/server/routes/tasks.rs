//! Looking at tasks, following them, cancelling them.

use hyper::{StatusCode, header};
use serde_json::json;

use super::super::error::ApiError;
use super::super::handle::Context;
use super::super::reply::{Response, json_reply, ok, set};
use super::super::sse;
use crate::tasks::Status;

type Answer = Result<Response, ApiError>;

const MAX_PAGE: u64 = 200;
const DEFAULT_PAGE: u64 = 50;

pub(crate) async fn status(context: Context) -> Answer {
    let view = context
        .tasks()?
        .get(&context.caller.scope, context.param("task_id"))?;
    Ok(ok(&view.status_json()))
}

pub(crate) async fn result(context: Context) -> Answer {
    let tasks = context.tasks()?;
    let view = tasks.get(&context.caller.scope, context.param("task_id"))?;
    if let Some(result) = view.result_json(tasks.results_dir()) {
        return Ok(ok(&result));
    }
    if let Some(failure) = view.failure() {
        let details =
            json!({"code": failure.word, "cancelled": failure.cancelled, "status": "failed"});
        let error = ApiError::new(StatusCode::CONFLICT, "task_failed", failure.message.clone());
        return Err(error.details(details));
    }
    let mut body = view.status_json();
    body["success"] = json!(false);
    body["message"] = json!("The task is not finished");
    let mut response = json_reply(StatusCode::ACCEPTED, &body);
    set(&mut response, header::RETRY_AFTER, "1");
    Ok(response)
}

pub(crate) async fn events(context: Context) -> Answer {
    let tasks = context.tasks()?.clone();
    let task_id = context.param("task_id").to_owned();
    let scope = context.caller.scope.clone();
    tasks.get(&scope, &task_id)?;
    let last_id = context.header("last-event-id").map(str::to_owned);
    let (sender, response) = sse::stream();
    tokio::spawn(sse::follow(tasks, scope, task_id, last_id, sender));
    Ok(response)
}

pub(crate) async fn cancel(context: Context) -> Answer {
    let task_id = context.param("task_id");
    context
        .tasks()?
        .cancel(&context.caller.scope, task_id)
        .await?;
    let message = format!("Task {task_id} cancelled successfully");
    Ok(ok(&json!({"message": message, "task_id": task_id})))
}

pub(crate) async fn list(context: Context) -> Answer {
    let tasks = context.tasks()?;
    let mut query = context.query();
    let words: Vec<&str> = Status::ALL.iter().map(|s| s.as_str()).collect();
    let status = query.choice("status", None, &words.join(", "), |word| {
        Status::parse(word).map(Some)
    });
    let limit = query.integer("limit", 1, MAX_PAGE).unwrap_or(DEFAULT_PAGE);
    let cursor = query.integer("cursor", 0, u64::MAX);
    query.finish()?;
    let page = tasks.list(&context.caller.scope, status, limit as usize, cursor)?;
    let views: Vec<_> = page.tasks.iter().map(|v| v.status_json()).collect();
    Ok(ok(&json!({
        "tasks": views,
        "total": page.total,
        "next_cursor": page.next_cursor,
    })))
}
