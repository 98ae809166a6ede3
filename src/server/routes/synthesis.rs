//! The four ways to speak: as a task, waited for, and streamed.

use hyper::StatusCode;
use hyper::header;
use serde_json::json;

use super::super::error::{self, ApiError};
use super::super::handle::Context;
use super::super::reply::{Body, Pieces, Response, json_reply, ok, pieces, reply, set};
use super::request::{self, SynthesisRequest};
use crate::audio::{Format, StreamEncoder};
use crate::engine::Event;
use crate::tasks::{Kind, Status, Stream, Submit, Tasks, result_url, status_url};

type Answer = Result<Response, ApiError>;

pub(crate) async fn async_sft(context: Context) -> Answer {
    submit(context, Kind::Sft).await
}

pub(crate) async fn async_zero_shot(context: Context) -> Answer {
    submit(context, Kind::ZeroShot).await
}

pub(crate) async fn async_cross_lingual(context: Context) -> Answer {
    submit(context, Kind::CrossLingual).await
}

pub(crate) async fn async_instruct(context: Context) -> Answer {
    submit(context, Kind::Instruct).await
}

pub(crate) async fn sync_sft(context: Context) -> Answer {
    synthesize(context, Kind::Sft).await
}

pub(crate) async fn sync_zero_shot(context: Context) -> Answer {
    synthesize(context, Kind::ZeroShot).await
}

pub(crate) async fn sync_cross_lingual(context: Context) -> Answer {
    synthesize(context, Kind::CrossLingual).await
}

pub(crate) async fn sync_instruct(context: Context) -> Answer {
    synthesize(context, Kind::Instruct).await
}

/// 202 with where to look.
async fn submit(mut context: Context, kind: Kind) -> Answer {
    let SynthesisRequest { submit, .. } = request::read(&mut context, kind).await?;
    let tasks = context.tasks()?;
    let accepted = tasks.submit(submit).await?;
    let task_id = &accepted.task_id;
    let (status, message) = if accepted.new {
        (Status::Pending, "Task submitted")
    } else {
        let view = tasks.get(&context.caller.scope, task_id)?;
        (
            view.status,
            "Task was submitted before with this Idempotency-Key",
        )
    };
    let body = json!({
        "task_id": task_id,
        "status": status.as_str(),
        "message": message,
        "check_status_url": status_url(task_id),
        "result_url": result_url(task_id),
        "estimated_time": (accepted.estimated_time * 10.0).round() / 10.0,
    });
    let mut response = json_reply(StatusCode::ACCEPTED, &body);
    set(&mut response, header::LOCATION, &status_url(task_id));
    Ok(response)
}

/// Cancels a task that nobody waits for any more.
struct Waiting<'a> {
    tasks: &'a Tasks,
    scope: &'a str,
    task_id: &'a str,
    done: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            let (tasks, scope, task_id) = (
                self.tasks.clone(),
                self.scope.to_owned(),
                self.task_id.to_owned(),
            );
            tokio::spawn(async move { tasks.cancel(&scope, &task_id).await });
        }
    }
}

/// The result object when it is there, or the audio as it is made.
async fn synthesize(mut context: Context, kind: Kind) -> Answer {
    let SynthesisRequest { submit, stream } = request::read(&mut context, kind).await?;
    let tasks = context.tasks()?;
    if stream {
        return stream_audio(tasks, submit).await;
    }
    let scope = context.caller.scope.as_str();
    let accepted = tasks.submit(submit).await?;
    let mut waiting = Waiting {
        tasks,
        scope,
        task_id: &accepted.task_id,
        // A task of an earlier request with the same key is not ours to cancel.
        done: !accepted.new,
    };
    let view = tasks.wait(scope, &accepted.task_id).await?;
    waiting.done = true;
    match (view.result_json(tasks.results_dir()), view.failure()) {
        (Some(result), _) => Ok(ok(&result)),
        (None, Some(failure)) => Err(error::failed(failure)),
        (None, None) => Err(ApiError::internal("The task ended without a result")),
    }
}

/// Chunked audio. The head goes out with the first samples, so that what fails before is an honest error.
async fn stream_audio(tasks: &Tasks, submit: Submit) -> Answer {
    let format = submit.format;
    let rate_hz = tasks.synthesis().info().sample_rate_hz;
    let (stream, first) = start(tasks, submit).await?;
    let (sender, body) = pieces();
    let mut response = audio_head(format, rate_hz, body);
    set(
        &mut response,
        header::HeaderName::from_static("x-seed"),
        &stream.seed.to_string(),
    );
    let encoder = new_encoder(format, rate_hz)?;
    tokio::spawn(async move {
        if let Err(error) = pump(stream, first, encoder, &sender).await {
            tracing::warn!(error, "a stream broke off");
            sender.abort(error).await;
        }
    });
    Ok(response)
}

pub(super) fn audio_head(format: Format, rate_hz: u32, body: Body) -> Response {
    let mut response = reply(StatusCode::OK, &format.content_type(rate_hz), body);
    set(&mut response, header::CACHE_CONTROL, "no-store");
    response
}

pub(super) fn new_encoder(format: Format, rate_hz: u32) -> Result<StreamEncoder, ApiError> {
    StreamEncoder::new(format, rate_hz)
        .map_err(|e| ApiError::field("format", "encoding_failed", e.to_string()))
}

/// Starts a stream and waits for its first samples; fewer than one means that it ended without any.
pub(super) async fn start(tasks: &Tasks, submit: Submit) -> Result<(Stream, Vec<f32>), ApiError> {
    let mut stream = tasks.stream(submit).await?;
    loop {
        match stream.next().await {
            Some(Event::Audio(samples)) => return Ok((stream, samples)),
            Some(Event::Started | Event::Progress { .. }) => {}
            Some(Event::Failed(error)) => return Err(error::engine(&error)),
            Some(Event::Done(_)) => return Ok((stream, Vec::new())),
            None => return Err(error::engine(&crate::engine::EngineError::Stopped)),
        }
    }
}

/// Encodes and sends until the stream ends. A listener who went away ends it without an error.
async fn pump(
    mut stream: Stream,
    first: Vec<f32>,
    mut encoder: StreamEncoder,
    sender: &Pieces,
) -> Result<(), String> {
    let bytes = encoder.push(&first).map_err(|e| e.to_string())?;
    if !sender.send(bytes).await {
        return Ok(());
    }
    loop {
        let event = tokio::select! {
            () = sender.closed() => return Ok(()),
            event = stream.next() => event,
        };
        match event {
            Some(Event::Audio(samples)) => {
                let bytes = encoder.push(&samples).map_err(|e| e.to_string())?;
                if !sender.send(bytes).await {
                    return Ok(());
                }
            }
            Some(Event::Started | Event::Progress { .. }) => {}
            // The last event may have been taken as the first already.
            Some(Event::Done(_)) | None => {
                let bytes = encoder.finish().map_err(|e| e.to_string())?;
                sender.send(bytes).await;
                return Ok(());
            }
            Some(Event::Failed(error)) => return Err(error.to_string()),
        }
    }
}
