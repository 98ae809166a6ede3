//! The one place where errors become answers: a status, a short name, a sentence, and details where they help.

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde_json::{Value, json};

use super::reply::{Response, json_reply};
use crate::engine::EngineError;
use crate::tasks::{Failure, StoreError, SubmitError, SynthesisError, TaskError, VoiceError};

/// An answer that is not what the client hoped for.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    /// Short and stable, for programs.
    pub(super) word: String,
    /// For people.
    pub(super) message: String,
    pub(super) details: Value,
    pub(super) headers: Vec<(header::HeaderName, HeaderValue)>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, word: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            word: word.to_owned(),
            message: message.into(),
            details: json!({}),
            headers: Vec::new(),
        }
    }

    pub(super) fn bad_request(word: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, word, message)
    }

    /// A field out of range.
    pub(super) fn field(field: &str, word: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let details = json!({"errors": [{"field": field, "message": message}]});
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, word, message).details(details)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    pub(super) fn details(self, details: Value) -> Self {
        Self { details, ..self }
    }

    pub(super) fn header(
        mut self,
        name: header::HeaderName,
        value: impl Into<HeaderValue>,
    ) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn retry_after(self, seconds: u64) -> Self {
        self.header(header::RETRY_AFTER, seconds)
    }

    pub(super) fn into_response(self) -> Response {
        let body = json!({"error": self.word, "message": self.message, "details": self.details});
        let mut response = json_reply(self.status, &body);
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<SynthesisError> for ApiError {
    fn from(error: SynthesisError) -> Self {
        let (word, message) = (error.word(), error.to_string());
        match error {
            SynthesisError::Field { field, .. } => Self::field(field, word, message),
            SynthesisError::VoiceUnsuitable(_) => Self::field("voice_id", word, message),
            SynthesisError::Undecodable(_) => {
                Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, word, message)
            }
            SynthesisError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, word, message),
            SynthesisError::Internal(_) => {
                tracing::error!(message, "synthesis met a bug");
                Self::internal("An internal error stopped this request")
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the task store failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "storage_unavailable",
            "The task store cannot be used at the moment",
        )
        .retry_after(5)
    }
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        let message = error.to_string();
        match error {
            TaskError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "task_not_found", message),
            TaskError::Gone(_) => Self::new(StatusCode::GONE, "task_expired", message),
            TaskError::Finished { status, .. } => {
                Self::new(StatusCode::CONFLICT, "task_finished", message)
                    .details(json!({"status": status.as_str()}))
            }
            TaskError::Store(error) => error.into(),
        }
    }
}

impl From<VoiceError> for ApiError {
    fn from(error: VoiceError) -> Self {
        let message = error.to_string();
        match error {
            VoiceError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "voice_not_found", message),
            VoiceError::Exists(_) => Self::new(StatusCode::CONFLICT, "voice_exists", message),
            VoiceError::Protected(_) => Self::new(StatusCode::CONFLICT, "voice_protected", message),
            VoiceError::Prompt(error) => error.into(),
            VoiceError::Storage(_) => {
                tracing::error!(message, "the voice store failed");
                let message = "The voice store cannot be used at the moment";
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "storage_unavailable",
                    message,
                )
                .retry_after(5)
            }
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        let full = |word: &str, limit: usize, seconds: u64| {
            Self::new(StatusCode::TOO_MANY_REQUESTS, word, message.clone())
                .details(json!({"limit": limit, "retry_after": seconds}))
                .retry_after(seconds)
        };
        match error {
            SubmitError::Draining => draining(),
            SubmitError::QueueFull { limit, retry_after } => full("queue_full", limit, retry_after),
            SubmitError::ClientFull { limit, retry_after } => {
                full("too_many_tasks", limit, retry_after)
            }
            SubmitError::KeyConflict => {
                Self::new(StatusCode::CONFLICT, "idempotency_conflict", message)
            }
            SubmitError::Unspeakable(error) => error.into(),
            SubmitError::Store(error) => error.into(),
        }
    }
}

/// The answer while the server shuts down.
pub(super) fn draining() -> ApiError {
    let message = "The server is shutting down";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message).retry_after(5)
}

/// The answer before the model is loaded.
pub(super) fn starting() -> ApiError {
    let message = "The model is being loaded";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "starting", message).retry_after(2)
}

/// The answer to a synchronous request whose task failed.
pub(super) fn failed(failure: &Failure) -> ApiError {
    let status = match failure.word.as_str() {
        "no_speech" | "invalid_request" | "voice_unsuitable" => StatusCode::UNPROCESSABLE_ENTITY,
        "cancelled" => StatusCode::CONFLICT,
        "engine_stopped" | "engine_busy" | "storage_failed" | "device_error" => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, &failure.word, failure.message.clone())
}

/// The answer to a stream that failed before its first sample.
pub(super) fn engine(error: &EngineError) -> ApiError {
    let (status, word) = match error {
        EngineError::NoSpeech => (StatusCode::UNPROCESSABLE_ENTITY, "no_speech"),
        EngineError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
        EngineError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "engine_busy"),
        EngineError::Cancelled => (StatusCode::CONFLICT, "cancelled"),
        EngineError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "engine_stopped"),
        EngineError::Backend(_) => (StatusCode::SERVICE_UNAVAILABLE, "device_error"),
        EngineError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
    };
    ApiError::new(status, word, error.to_string())
}
