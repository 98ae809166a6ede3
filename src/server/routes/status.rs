//! How the server is: for people, probes and Prometheus.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::handle::Context;
use super::super::reply::{Response, json_reply, ok, reply, whole};
use crate::audio::Format;

type Answer = Result<Response, ApiError>;

/// The word of `/health`, and whether requests are taken.
fn state(context: &Context) -> (&'static str, bool) {
    match context.app.tasks.get() {
        None => ("starting", false),
        Some(tasks) if tasks.is_draining() => ("draining", false),
        Some(_) => ("healthy", true),
    }
}

fn answer(ready: bool, body: &Value) -> Response {
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json_reply(status, body)
}

pub(crate) async fn health(context: Context) -> Answer {
    let (word, ready) = state(&context);
    let snapshot = context.app.snapshot();
    let model = context
        .app
        .tasks
        .get()
        .map(|t| t.synthesis().info().clone());
    Ok(answer(
        ready,
        &json!({
            "status": word,
            "voice_manager_ready": ready,
            "async_synthesis_ready": ready,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime": (context.app.started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            "model": model.as_ref().map(|m| &m.name),
            "device": model.as_ref().map(|m| &m.device),
            "sample_rate": model.as_ref().map(|m| m.sample_rate_hz),
            "tasks_running": snapshot.running,
            "tasks_queued": snapshot.queued,
            "voices": snapshot.voices,
        }),
    ))
}

pub(crate) async fn live(_: Context) -> Answer {
    Ok(ok(&json!({"status": "alive"})))
}

pub(crate) async fn ready(context: Context) -> Answer {
    let (word, ready) = state(&context);
    Ok(answer(
        ready,
        &json!({"status": if ready { "ready" } else { word }}),
    ))
}

pub(crate) async fn metrics(context: Context) -> Answer {
    let text = context.app.metrics.encode(&context.app.snapshot());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(reply(StatusCode::OK, content_type, whole(text)))
}

/// The figures that the web page shows.
pub(crate) async fn stats(context: Context) -> Answer {
    context.tasks()?;
    let s = context.app.snapshot();
    let formats: Vec<&str> = Format::available().map(Format::name).collect();
    Ok(ok(&json!({
        "tasks": {"running": s.running, "queued": s.queued, "workers": s.workers},
        "engine": {
            "running": s.engine.running,
            "queued": s.engine.queued,
            "batch": {"llm": s.engine.batch[0], "flow": s.engine.batch[1], "vocoder": s.engine.batch[2]},
            "kv_pages_used": s.engine.kv_pages_used,
            "kv_pages_total": s.engine.kv_pages_total,
            "speech_tokens": s.engine.speech_tokens,
            "audio_samples": s.engine.audio_samples,
            "requests_done": s.engine.requests_done,
            "requests_failed": s.engine.requests_failed,
        },
        "voices": s.voices,
        "connections": s.connections,
        "formats": formats,
        "max_text_length": context.app.settings.max_text_chars,
        "max_audio_duration": context.app.settings.max_audio_duration.as_secs_f64(),
        "uptime": context.app.started.elapsed().as_secs_f64(),
    })))
}
