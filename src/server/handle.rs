//! One request from its head to its answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, StatusCode};
use serde_json::json;
use tracing::Instrument;

use super::access::{self, Caller};
use super::body::{self, Limits};
use super::error::ApiError;
use super::fields::Reader;
use super::reply::{Response, json_reply, reply, set, whole};
use super::router::{Found, Route};
use super::{App, urlencoded};
use crate::tasks::{Tasks, catch_panic};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;

/// A request as handlers see it.
pub(super) struct Context {
    pub(super) app: Arc<App>,
    pub(super) caller: Caller,
    pub(super) headers: HeaderMap,
    pub(super) query: Option<String>,
    params: Vec<(String, String)>,
    body: Option<Incoming>,
}

impl Context {
    pub(super) fn tasks(&self) -> Result<&Tasks, ApiError> {
        self.app.tasks()
    }

    /// A part of the path, decoded; what is not UTF-8 names nothing that exists.
    pub(super) fn param(&self, name: &str) -> &str {
        let found = self.params.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, value)| value)
    }

    pub(super) fn query(&self) -> Reader {
        Reader::of_query(self.query.as_deref())
    }

    /// The fields of the body.
    pub(super) async fn fields(&mut self) -> Result<Reader, ApiError> {
        let Some(body) = self.body.take() else {
            return Ok(Reader::new(body::Fields::new()));
        };
        let limits = Limits {
            file_bytes: self.app.settings.max_file_bytes,
            grace: self.app.settings.body_timeout,
            slots: &self.app.uploads,
        };
        Ok(Reader::new(body::read(&self.headers, body, &limits).await?))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether a browser asks, which wants a page.
    pub(super) fn accepts_html(&self) -> bool {
        self.header("accept")
            .is_some_and(|a| a.contains("text/html"))
    }
}

/// Answers a request. Never fails: whatever goes wrong is an answer too.
pub(super) async fn handle(
    app: Arc<App>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let start = Instant::now();
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = access::allowed_origin(&app.settings.allowed_origins, request.headers());
    let span = tracing::info_span!("request", id, %method, path);
    let (route, mut response) = answer(&app, peer, request).instrument(span.clone()).await;
    if let Some(origin) = origin {
        access::add_cors(&mut response, &origin);
    }
    set(&mut response, REQUEST_ID, &id);
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let (status, seconds) = (response.status().as_u16(), start.elapsed().as_secs_f64());
    app.metrics
        .http(known_method(&method), route, status, seconds);
    span.in_scope(|| tracing::info!(%peer, status, ms = (seconds * 1e6).round() / 1e3, "answered"));
    Ok(response)
}

/// Methods as labels: a client must not make up new ones.
fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let usable = |id: &&str| {
        !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.bytes().all(|b| b.is_ascii_graphic())
    };
    let sent = sent.filter(usable).map(str::to_owned);
    sent.unwrap_or_else(|| format!("req_{}", uuid::Uuid::new_v4().simple()))
}

/// The route's label and the answer.
async fn answer(
    app: &Arc<App>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> (&'static str, Response) {
    let (parts, body) = request.into_parts();
    let found = app.router.find(&parts.method, parts.uri.path());
    let (route, params) = match found {
        Found::Route(route, params) => (route, params),
        Found::WrongMethod(path, allow) => {
            return (path, wrong_method(&parts.method, &parts.headers, &allow));
        }
        Found::Nothing => {
            let message = format!("There is no {}", parts.uri.path());
            let error = ApiError::new(StatusCode::NOT_FOUND, "not_found", message);
            return ("none", error.into_response());
        }
    };
    let caller = match app.keys.check(&parts.headers, peer.ip()) {
        Ok(caller) => caller,
        Err(_) if route.public => Caller {
            scope: String::from("public"),
            client: peer.ip().to_string(),
        },
        Err(error) => return (route.path, error.into_response()),
    };
    let context = Context {
        app: Arc::clone(app),
        caller,
        headers: parts.headers,
        query: parts.uri.query().map(str::to_owned),
        params: params.into_iter().map(|(n, v)| (n, decode(&v))).collect(),
        body: Some(body),
    };
    (route.path, run(route, context).await)
}

fn decode(segment: &str) -> String {
    let bytes = urlencoded::decode(segment.as_bytes(), false);
    String::from_utf8(bytes).unwrap_or_default()
}

async fn run(route: &Route, context: Context) -> Response {
    match catch_panic((route.handler)(context)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(panic) => {
            tracing::error!(panic, "a handler met a bug");
            ApiError::internal("An internal error stopped this request").into_response()
        }
    }
}

fn wrong_method(method: &Method, headers: &HeaderMap, allow: &str) -> Response {
    let mut response = if method == Method::OPTIONS {
        reply(StatusCode::NO_CONTENT, "text/plain", whole(""))
    } else {
        let message = format!("This path takes {allow}");
        let body = json!({"error": "method_not_allowed", "message": message, "details": {}});
        json_reply(StatusCode::METHOD_NOT_ALLOWED, &body)
    };
    set(&mut response, header::ALLOW, allow);
    if headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        access::add_preflight(&mut response);
    }
    response
}
