//! Request bodies: JSON, multipart and URL-encoded forms, all as named [`Field`]s.
//!
//! A body is bounded in size and in time: it may take a grace plus one second for every 16 KiB that arrived, so bytes that
//! trickle in end the request. Large bodies share a few slots, which bounds memory.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyDataStream, BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::{HeaderMap, StatusCode, header};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::ApiError;
use super::urlencoded;

/// Room for the fields around a file.
const FIELD_BYTES: usize = 1 << 20;
/// Bodies up to this size need no slot.
const SMALL_BYTES: usize = 1 << 20;
/// Slowest acceptable sender, after the grace.
const BYTES_PER_SECOND: u64 = 16 << 10;
/// An oversized body is read and forgotten for so long, so that the client gets to see the answer.
const LINGER: Duration = Duration::from_secs(10);
const MAX_FIELDS: usize = 100;

/// A value of a request body.
#[derive(Clone, Debug)]
pub(super) enum Field {
    Json(Value),
    /// Of a form: text, or the bytes of a file.
    Form {
        bytes: Bytes,
        file_name: Option<String>,
    },
}

/// The named values of a body.
pub(super) type Fields = BTreeMap<String, Field>;

/// Bounds of a body.
pub(super) struct Limits<'a> {
    pub(super) file_bytes: usize,
    pub(super) grace: Duration,
    pub(super) slots: &'a Semaphore,
}

/// Reads a body of any of the three kinds; none at all counts as an empty JSON object.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limits: &Limits<'_>,
) -> Result<Fields, ApiError> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map(|v| v.to_str().unwrap_or("?"));
    let mime = content_type.unwrap_or("application/json");
    let essence = mime
        .split(';')
        .next()
        .unwrap_or(mime)
        .trim()
        .to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => {
            // Files are base64 here.
            let limit = limits.file_bytes / 3 * 4 + FIELD_BYTES;
            from_json(&collect(headers, body, limit, limits).await?)
        }
        "application/x-www-form-urlencoded" => {
            let limit = limits.file_bytes / 3 * 4 + FIELD_BYTES;
            Ok(from_urlencoded(
                &collect(headers, body, limit, limits).await?,
            ))
        }
        "multipart/form-data" => {
            let boundary = multer::parse_boundary(mime);
            let boundary =
                boundary.map_err(|e| ApiError::bad_request("malformed_body", e.to_string()))?;
            let bytes = collect(headers, body, limits.file_bytes + FIELD_BYTES, limits).await?;
            from_multipart(bytes, boundary, limits.file_bytes).await
        }
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send application/json, multipart/form-data or application/x-www-form-urlencoded",
        )),
    }
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("The body is larger than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", message)
        .details(serde_json::json!({"limit": limit}))
}

/// All bytes of a body.
async fn collect(
    headers: &HeaderMap,
    mut body: Incoming,
    limit: usize,
    limits: &Limits<'_>,
) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > limit as u64 {
        // A client that asked first has sent nothing yet.
        if !headers.contains_key(header::EXPECT) {
            linger(body).await;
        }
        return Err(too_large(limit));
    }
    let start = Instant::now();
    let mut slot: Option<SemaphorePermit<'_>> = None;
    let mut bytes = BytesMut::new();
    loop {
        let earned = Duration::from_secs(bytes.len() as u64 / BYTES_PER_SECOND);
        let deadline = start + limits.grace + earned;
        let frame = timeout_at(deadline, body.frame())
            .await
            .map_err(|_| timed_out())?;
        let Some(frame) = frame else {
            return Ok(bytes.freeze());
        };
        let frame = frame.map_err(|e| {
            ApiError::bad_request("malformed_body", format!("The body broke off: {e}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            linger(body).await;
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&data);
        if bytes.len() > SMALL_BYTES && slot.is_none() {
            let acquired = timeout(limits.grace, limits.slots.acquire()).await;
            slot = acquired.map_err(|_| busy())?.ok();
        }
    }
}

fn timed_out() -> ApiError {
    let message = "The body did not arrive in time";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message).header(
        header::CONNECTION,
        header::HeaderValue::from_static("close"),
    )
}

fn busy() -> ApiError {
    let message = "Too many uploads at the same time";
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_uploads", message).retry_after(5)
}

async fn linger(mut body: Incoming) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(LINGER, rest).await;
}

fn from_json(bytes: &[u8]) -> Result<Fields, ApiError> {
    if bytes.is_empty() {
        return Ok(Fields::new());
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map.into_iter().map(|(k, v)| (k, Field::Json(v))).collect()),
        Ok(_) => Err(ApiError::bad_request(
            "malformed_body",
            "The body must be a JSON object",
        )),
        Err(e) => Err(ApiError::bad_request(
            "malformed_body",
            format!("The body is not JSON: {e}"),
        )),
    }
}

fn from_urlencoded(bytes: &[u8]) -> Fields {
    let pairs = urlencoded::pairs(bytes).into_iter();
    pairs
        .map(|(name, value)| {
            let name = String::from_utf8_lossy(&name).into_owned();
            let field = Field::Form {
                bytes: value.into(),
                file_name: None,
            };
            (name, field)
        })
        .collect()
}

async fn from_multipart(
    bytes: Bytes,
    boundary: String,
    file_bytes: usize,
) -> Result<Fields, ApiError> {
    let malformed = |e: multer::Error| ApiError::bad_request("malformed_body", e.to_string());
    let stream = BodyDataStream::new(Full::new(bytes));
    let mut parts = multer::Multipart::new(stream, boundary);
    let mut fields = Fields::new();
    while let Some(part) = parts.next_field().await.map_err(malformed)? {
        let name = part.name().map(str::to_owned);
        let name =
            name.ok_or_else(|| ApiError::bad_request("malformed_body", "A part has no name"))?;
        let file_name = part.file_name().map(str::to_owned);
        let bytes = part.bytes().await.map_err(malformed)?;
        if bytes.len() > file_bytes {
            return Err(too_large(file_bytes));
        }
        fields.insert(name, Field::Form { bytes, file_name });
        if fields.len() > MAX_FIELDS {
            return Err(ApiError::bad_request(
                "malformed_body",
                "The form has too many fields",
            ));
        }
    }
    Ok(fields)
}
