//! The table of routes, which is also what `openapi.json` is checked against, and finding a route in it.

use std::pin::Pin;

use hyper::Method;

use super::error::ApiError;
use super::handle::Context;
use super::reply::Response;
use super::routes::{audio, openai, pages, status, synthesis, tasks, voices};

type Answer = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;

/// One route.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// Needs no key.
    pub(super) public: bool,
    pub(super) handler: fn(Context) -> Answer,
}

macro_rules! route {
    ($method:literal $path:literal $handler:expr) => {
        Route {
            method: $method,
            path: $path,
            public: false,
            handler: |context| Box::pin($handler(context)),
        }
    };
    (public $method:literal $path:literal $handler:expr) => {
        Route {
            public: true,
            ..route!($method $path $handler)
        }
    };
}

/// Every route. HEAD goes where GET goes.
#[rustfmt::skip]
pub(super) const ROUTES: &[Route] = &[
    route!(public "GET" "/" pages::index),
    route!(public "GET" "/docs" pages::docs),
    route!(public "GET" "/openapi.json" pages::openapi),
    route!(public "GET" "/health" status::health),
    route!(public "GET" "/live" status::live),
    route!(public "GET" "/ready" status::ready),
    route!(public "GET" "/metrics" status::metrics),
    route!("GET" "/api/v1/stats" status::stats),
    route!("POST" "/api/v1/async/synthesize/sft" synthesis::async_sft),
    route!("POST" "/api/v1/async/synthesize/zero-shot" synthesis::async_zero_shot),
    route!("POST" "/api/v1/async/synthesize/cross-lingual" synthesis::async_cross_lingual),
    route!("POST" "/api/v1/async/synthesize/instruct" synthesis::async_instruct),
    route!("GET" "/api/v1/async/tasks" tasks::list),
    route!("DELETE" "/api/v1/async/tasks/{task_id}" tasks::cancel),
    route!("GET" "/api/v1/async/tasks/{task_id}/status" tasks::status),
    route!("GET" "/api/v1/async/tasks/{task_id}/result" tasks::result),
    route!("GET" "/api/v1/async/tasks/{task_id}/events" tasks::events),
    route!("POST" "/api/v1/synthesize/sft" synthesis::sync_sft),
    route!("POST" "/api/v1/synthesize/zero-shot" synthesis::sync_zero_shot),
    route!("POST" "/api/v1/synthesize/cross-lingual" synthesis::sync_cross_lingual),
    route!("POST" "/api/v1/synthesize/instruct" synthesis::sync_instruct),
    route!("GET" "/api/v1/audio/{file}" audio::file),
    route!("GET" "/api/v1/voices/" voices::list),
    route!("POST" "/api/v1/voices/" voices::create),
    route!("GET" "/api/v1/voices/{voice_id}" voices::get),
    route!("PUT" "/api/v1/voices/{voice_id}" voices::update),
    route!("DELETE" "/api/v1/voices/{voice_id}" voices::delete),
    route!("GET" "/api/v1/voices/stats/summary" voices::summary),
    route!("GET" "/api/v1/voices/pretrained/list" voices::pretrained),
    route!("POST" "/api/v1/cross-lingual/with-audio" synthesis::sync_cross_lingual),
    route!("POST" "/api/v1/cross-lingual/with-cache" synthesis::sync_cross_lingual),
    route!("POST" "/api/v1/cross-lingual/async" synthesis::async_cross_lingual),
    route!("GET" "/api/v1/cross-lingual/async" tasks::list),
    route!("GET" "/api/v1/cross-lingual/async/{task_id}" tasks::status),
    route!("DELETE" "/api/v1/cross-lingual/async/{task_id}" tasks::cancel),
    route!("POST" "/v1/audio/speech" openai::speech),
    route!("GET" "/v1/audio/voices" openai::voices),
    route!("GET" "/v1/models" openai::models),
];

/// Where a request goes.
pub(super) enum Found {
    Route(&'static Route, Vec<(String, String)>),
    /// The path is known; these are its methods.
    WrongMethod(&'static str, String),
    Nothing,
}

/// Finds routes by path, then by method.
pub(super) struct Router(matchit::Router<&'static str>);

impl Router {
    pub(super) fn new() -> Self {
        let mut paths = matchit::Router::new();
        let mut known: Vec<&str> = Vec::new();
        for route in ROUTES {
            if !known.contains(&route.path) {
                known.push(route.path);
                paths.insert(route.path, route.path).expect(
                    "the paths of the table do not clash, which a test checks. This is a bug.",
                );
            }
        }
        Self(paths)
    }

    pub(super) fn find(&self, method: &Method, path: &str) -> Found {
        // A slash too many or too few at the end is forgiven.
        let other = match path.strip_suffix('/') {
            Some(shorter) => shorter.to_owned(),
            None => format!("{path}/"),
        };
        let Ok(matched) = self.0.at(path).or_else(|_| self.0.at(&other)) else {
            return Found::Nothing;
        };
        let pattern = *matched.value;
        let wanted = if method == Method::HEAD {
            "GET"
        } else {
            method.as_str()
        };
        let mut here = ROUTES.iter().filter(|r| r.path == pattern);
        if let Some(route) = here.clone().find(|r| r.method == wanted) {
            let params = matched.params.iter();
            let params = params.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            return Found::Route(route, params);
        }
        let mut allow: Vec<&str> = here.by_ref().map(|r| r.method).collect();
        if allow.contains(&"GET") {
            allow.push("HEAD");
        }
        allow.push("OPTIONS");
        Found::WrongMethod(pattern, allow.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_and_others_are_not() {
        let router = Router::new();
        for route in ROUTES {
            let method = Method::from_bytes(route.method.as_bytes()).unwrap();
            let path = route
                .path
                .replace("{task_id}", "task_0a")
                .replace("{file}", "x.wav");
            match router.find(&method, &path) {
                Found::Route(found, _) => {
                    assert_eq!((found.method, found.path), (route.method, route.path))
                }
                _ => panic!("{} {path} is not found", route.method),
            }
        }
        assert!(matches!(
            router.find(&Method::GET, "/api/v1/voices"),
            Found::Route(..)
        ));
        assert!(matches!(
            router.find(&Method::HEAD, "/health"),
            Found::Route(..)
        ));
        assert!(matches!(
            router.find(&Method::GET, "/api/v1/audio/../x"),
            Found::Nothing
        ));
        match router.find(&Method::PATCH, "/api/v1/voices/a") {
            Found::WrongMethod(_, allow) => assert_eq!(allow, "GET, PUT, DELETE, HEAD, OPTIONS"),
            _ => panic!("PATCH has no route"),
        }
    }
}
