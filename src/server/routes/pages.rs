//! The pages for people, and the description of the API for programs. All of it is in the binary.

use hyper::StatusCode;
use hyper::header;
use serde_json::json;

use super::super::error::ApiError;
use super::super::handle::Context;
use super::super::reply::{Response, ok, reply, set, whole};

type Answer = Result<Response, ApiError>;

pub(crate) const OPENAPI: &str = include_str!("../openapi.json");
const INDEX: &str = include_str!("../ui/index.html");
const DOCS: &str = include_str!("../ui/docs.html");
/// The pages carry their style and script; nothing may come from or go to another host.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' data:; \
                      media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn page(text: &'static str) -> Response {
    let mut response = reply(StatusCode::OK, "text/html; charset=utf-8", whole(text));
    set(&mut response, header::CONTENT_SECURITY_POLICY, POLICY);
    set(&mut response, header::REFERRER_POLICY, "no-referrer");
    set(&mut response, header::CACHE_CONTROL, "no-cache");
    response
}

pub(crate) async fn index(context: Context) -> Answer {
    let mut response = if context.accepts_html() {
        page(INDEX)
    } else {
        ok(&json!({
            "message": "CosyVoice2 text to speech",
            "version": env!("CARGO_PKG_VERSION"),
            "docs": "/docs",
            "openapi": "/openapi.json",
            "endpoints": endpoints(),
        }))
    };
    set(&mut response, header::VARY, "Accept, Origin");
    Ok(response)
}

fn endpoints() -> Vec<String> {
    let routes = super::super::routes().into_iter();
    routes
        .map(|(method, path)| format!("{method} {path}"))
        .collect()
}

pub(crate) async fn docs(_: Context) -> Answer {
    Ok(page(DOCS))
}

pub(crate) async fn openapi(_: Context) -> Answer {
    Ok(reply(StatusCode::OK, "application/json", whole(OPENAPI)))
}
