//! Answers: JSON, text, and bodies that are sent as they are made.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::{Frame, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::sync::mpsc;

pub(super) type Response = hyper::Response<Body>;

/// Pieces of a streamed body that may wait for the client.
const WAITING_PIECES: usize = 8;
/// A client that takes nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(60);

/// The body of an answer.
pub(super) enum Body {
    Whole(Option<Bytes>),
    /// Ends with the channel; an error cuts the connection, so that nobody takes half a body for a whole one.
    Pieces(mpsc::Receiver<io::Result<Bytes>>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Body::Pieces(receiver) => receiver
                .poll_recv(cx)
                .map(|p| p.map(|r| r.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Body::Pieces(_) => SizeHint::default(),
        }
    }
}

/// Where the pieces of a streamed body go.
pub(super) struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Pieces {
    /// Sends a piece; false when the client is gone or has stalled.
    pub(super) async fn send(&self, bytes: impl Into<Bytes>) -> bool {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return !self.0.is_closed();
        }
        self.0.send_timeout(Ok(bytes), STALLED).await.is_ok()
    }

    /// Cuts the connection.
    pub(super) async fn abort(&self, reason: impl Into<String>) {
        let error = io::Error::other(reason.into());
        let _ = self.0.send_timeout(Err(error), STALLED).await;
    }

    /// Returns when the client is gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A body made piece by piece.
pub(super) fn pieces() -> (Pieces, Body) {
    let (sender, receiver) = mpsc::channel(WAITING_PIECES);
    (Pieces(sender), Body::Pieces(receiver))
}

/// An answer with a body of this media type.
pub(super) fn reply(status: StatusCode, content_type: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let value = HeaderValue::from_str(content_type);
    let value = value.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

pub(super) fn json_reply(status: StatusCode, value: &Value) -> Response {
    let mut response = reply(status, "application/json", whole(value.to_string()));
    let no_store = HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_store);
    response
}

pub(super) fn ok(value: &Value) -> Response {
    json_reply(StatusCode::OK, value)
}

pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Body::Whole(Some(bytes.into()))
}

/// Adds a header whose value may hold anything; what HTTP cannot carry is left out.
pub(super) fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
