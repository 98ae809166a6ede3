//! Who may call: API keys, and origins of web pages.

use std::net::IpAddr;

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::reply::{Response, set};
use crate::tasks::hex;

/// Digests of the keys; comparing those takes the same time whatever a client sends.
pub(super) struct Keys(Vec<[u8; 32]>);

/// Who sent a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Whose tasks are seen: a digest of the key, empty on an open server.
    pub(super) scope: String,
    /// Whose limits count: the key's, else the address's.
    pub(super) client: String,
}

impl Keys {
    pub(super) fn new(keys: &[String]) -> Self {
        Self(
            keys.iter()
                .map(|k| Sha256::digest(k.as_bytes()).into())
                .collect(),
        )
    }

    /// The caller, if the key is one of ours or none is needed.
    ///
    /// # Errors
    /// 401 without a key, 403 with a wrong one.
    pub(super) fn check(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, ApiError> {
        if self.0.is_empty() {
            return Ok(Caller {
                scope: String::new(),
                client: peer.to_canonical().to_string(),
            });
        }
        let Some(key) = sent_key(headers) else {
            let message = "Send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`";
            let challenge = HeaderValue::from_static("Bearer");
            return Err(
                ApiError::new(StatusCode::UNAUTHORIZED, "missing_api_key", message)
                    .header(header::WWW_AUTHENTICATE, challenge),
            );
        };
        let digest: [u8; 32] = Sha256::digest(key).into();
        let equal = |a: &[u8; 32]| a.iter().zip(&digest).fold(0, |d, (x, y)| d | (x ^ y)) == 0;
        if self.0.iter().filter(|k| equal(k)).count() == 0 {
            let message = "This API key is not known";
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "invalid_api_key",
                message,
            ));
        }
        let scope = hex(&digest[..8]);
        Ok(Caller {
            client: scope.clone(),
            scope,
        })
    }
}

fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|v| {
        let value = v.as_bytes();
        let (scheme, key) = value.split_at_checked(7)?;
        scheme
            .eq_ignore_ascii_case(b"bearer ")
            .then_some(key.trim_ascii())
    });
    let key = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
    key.filter(|k| !k.is_empty())
}

/// The origin to allow in the answer to a request of this origin.
pub(super) fn allowed_origin(allowed: &[String], headers: &HeaderMap) -> Option<String> {
    let origin = headers.get(header::ORIGIN)?.to_str().ok()?;
    if allowed.iter().any(|a| a == "*") {
        return Some(String::from("*"));
    }
    let found = allowed.iter().find(|a| a.eq_ignore_ascii_case(origin));
    found.map(|_| origin.to_owned())
}

/// Lets a web page of an allowed origin see the answer.
pub(super) fn add_cors(response: &mut Response, origin: &str) {
    set(response, header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    let exposed =
        "Content-Disposition, Content-Range, ETag, Location, Retry-After, X-Request-Id, X-Seed";
    set(response, header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    set(response, header::VARY, "Origin");
}

/// What a preflight asks for.
pub(super) fn add_preflight(response: &mut Response) {
    let allow = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Range, X-API-Key, X-Request-Id";
    set(response, header::ACCESS_CONTROL_ALLOW_HEADERS, allow);
    let methods = "GET, HEAD, POST, PUT, DELETE, OPTIONS";
    set(response, header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    set(response, header::ACCESS_CONTROL_MAX_AGE, "86400");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            header::HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )])
    }

    #[test]
    fn keys_are_checked() {
        let peer = IpAddr::from([127, 0, 0, 1]);
        let keys = Keys::new(&["alpha".into(), "beta".into()]);
        let status = |name, value| {
            keys.check(&headers(name, value), peer)
                .map_err(|e| e.status.as_u16())
        };
        assert!(status("authorization", "Bearer alpha").is_ok());
        assert!(status("authorization", "bearer  beta").is_ok());
        assert_eq!(
            status("x-api-key", "alpha").unwrap().scope,
            status("authorization", "Bearer alpha").unwrap().scope
        );
        assert_eq!(status("x-api-key", "gamma").unwrap_err(), 403);
        assert_eq!(status("authorization", "Basic alpha").unwrap_err(), 401);
        assert_eq!(status("x-other", "alpha").unwrap_err(), 401);
        let open = Keys::new(&[])
            .check(&headers("x-api-key", "any"), peer)
            .unwrap();
        assert_eq!(
            (open.scope.as_str(), open.client.as_str()),
            ("", "127.0.0.1")
        );
    }

    #[test]
    fn origins_are_matched_whole() {
        let allowed = [String::from("https://a.example")];
        let origin = |o| allowed_origin(&allowed, &headers("origin", o));
        assert_eq!(
            origin("https://a.example").as_deref(),
            Some("https://a.example")
        );
        assert_eq!(origin("https://a.example.evil"), None);
        assert_eq!(
            allowed_origin(&[], &headers("origin", "https://a.example")),
            None
        );
    }
}
