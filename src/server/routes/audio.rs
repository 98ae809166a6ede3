//! Audio files of completed tasks: entity tags and ranges. Names are looked up, never joined to a path as they came.

use std::io::SeekFrom;

use bytes::BytesMut;
use hyper::{StatusCode, header};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::super::error::ApiError;
use super::super::handle::Context;
use super::super::range::{self, Range};
use super::super::reply::{Body, Pieces, Response, pieces, reply, set, whole};
use crate::tasks::TaskError;

const PIECE_BYTES: usize = 64 << 10;

pub(crate) async fn file(context: Context) -> Result<Response, ApiError> {
    let tasks = context.tasks()?;
    let name = context.param("file");
    let not_found = || {
        let message = format!("There is no audio file {name:?}");
        ApiError::new(StatusCode::NOT_FOUND, "audio_not_found", message)
    };
    let task_id = name.split('.').next().unwrap_or_default();
    let view = match tasks.get(&context.caller.scope, task_id) {
        Err(TaskError::NotFound(_)) => return Err(not_found()),
        other => other?,
    };
    let completed = view
        .completed()
        .filter(|c| c.file == name)
        .ok_or_else(not_found)?;
    let path = tasks.results_dir().join(&completed.file);
    let file = File::open(&path).await.map_err(|error| {
        tracing::error!(path = %path.display(), %error, "a result is gone");
        not_found()
    })?;
    let etag = format!(
        "\"{}\"",
        &completed.digest[..32.min(completed.digest.len())]
    );
    let content_type = view
        .record
        .request
        .format
        .content_type(completed.sample_rate_hz);
    let mut response = part(&context, file, completed.bytes, &etag, &content_type).await?;
    set(&mut response, header::ETAG, &etag);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(
        &mut response,
        header::CACHE_CONTROL,
        "private, max-age=3600",
    );
    set(
        &mut response,
        header::CONTENT_DISPOSITION,
        &format!("inline; filename=\"{name}\""),
    );
    Ok(response)
}

/// The part that the conditional and range headers ask for.
async fn part(
    context: &Context,
    mut file: File,
    length: u64,
    etag: &str,
    content_type: &str,
) -> Result<Response, ApiError> {
    if range::names(context.header("if-none-match"), etag) {
        return Ok(reply(
            StatusCode::NOT_MODIFIED,
            content_type,
            Body::Whole(None),
        ));
    }
    let wanted = match context.header("if-range") {
        Some(tag) if tag.trim() != etag => Range::Whole,
        _ => range::parse(context.header("range"), length),
    };
    let (status, first, last) = match wanted {
        Range::Unsatisfiable => {
            let mut response = reply(StatusCode::RANGE_NOT_SATISFIABLE, content_type, whole(""));
            set(
                &mut response,
                header::CONTENT_RANGE,
                &format!("bytes */{length}"),
            );
            return Ok(response);
        }
        Range::Part(first, last) => (StatusCode::PARTIAL_CONTENT, first, last + 1),
        Range::Whole => (StatusCode::OK, 0, length),
    };
    let seek = file.seek(SeekFrom::Start(first)).await;
    seek.map_err(|e| ApiError::internal(format!("The file cannot be read: {e}")))?;
    let (sender, body) = pieces();
    tokio::spawn(send(file, last - first, sender));
    let mut response = reply(status, content_type, body);
    set(
        &mut response,
        header::CONTENT_LENGTH,
        &(last - first).to_string(),
    );
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{length}", last - 1);
        set(&mut response, header::CONTENT_RANGE, &range);
    }
    Ok(response)
}

async fn send(file: File, length: u64, sender: Pieces) {
    let mut file = file.take(length);
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        match file.read_buf(&mut piece).await {
            Ok(0) => return,
            Ok(_) => {
                if !sender.send(piece.freeze()).await {
                    return;
                }
            }
            Err(error) => return sender.abort(error.to_string()).await,
        }
    }
}
