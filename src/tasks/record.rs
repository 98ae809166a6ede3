//! A task as it is stored and as users see it.
//!
//! pending → processing → completed | failed. A record on disk is either open or finished: whether an open one is pending or
//! processing is known to the process that runs it, and an open record found at start is pending again.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Timestamp, Utterance};
use crate::audio::Format;

/// Where a task's voice comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoiceSource {
    /// A voice of the model.
    Builtin(String),
    /// An encoded prompt on disk, by its digest: unchanged by later edits of the voice it was taken from.
    Prompt(String),
}

/// What was asked for, complete enough to be run again after a crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRequest {
    pub utterance: Utterance,
    /// The name that the user gave; none for an uploaded prompt.
    pub voice_id: Option<String>,
    pub voice: VoiceSource,
    pub speed: f32,
    #[serde(with = "format_name")]
    pub format: Format,
    pub seed: u64,
    pub callback_url: Option<String>,
}

/// A format on disk is its name.
mod format_name {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::audio::Format;

    pub(super) fn serialize<S: Serializer>(
        format: &Format,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(format.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Format, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(D::Error::custom)
    }
}

/// A key that makes a repeated submit return the first task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    pub key: String,
    /// Of the request's content: the same key with other content is a conflict.
    pub digest: String,
}

/// The four status words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Pending,
    Processing,
    Completed,
    Failed,
}

impl Status {
    pub const ALL: [Status; 4] = [
        Status::Pending,
        Status::Processing,
        Status::Completed,
        Status::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Processing => "processing",
            Status::Completed => "completed",
            Status::Failed => "failed",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Completed(Completed),
    Failed(Failure),
}

/// A finished task's audio.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// Name in the folder of results.
    pub file: String,
    pub bytes: u64,
    /// SHA-256 of the file, in hex.
    pub digest: String,
    pub duration_s: f64,
    pub sample_rate_hz: u32,
    pub synthesis_time_s: f64,
    pub normalized_text: String,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Short name, such as `no_speech`.
    pub word: String,
    pub message: String,
    pub cancelled: bool,
    /// How far it had come.
    pub progress: f32,
}

impl Failure {
    pub(super) fn new(word: &str, message: impl Into<String>) -> Self {
        Self {
            word: word.to_owned(),
            message: message.into(),
            cancelled: false,
            progress: 0.0,
        }
    }

    pub(super) fn cancelled() -> Self {
        Self {
            cancelled: true,
            ..Self::new("cancelled", "Task cancelled by user")
        }
    }
}

/// A task on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Order of acceptance; unique in one data folder.
    pub seq: u64,
    pub task_id: String,
    /// Whose list shows it: a digest of the API key, empty on an open server.
    pub scope: String,
    /// Whose limit it counts against: the scope, else the client's address.
    pub client: String,
    pub request: TaskRequest,
    pub idempotency: Option<Idempotency>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub outcome: Option<Outcome>,
}

/// A task at this moment, open or finished.
#[derive(Clone, Debug)]
pub struct View {
    pub record: Record,
    pub status: Status,
    pub stage: Option<&'static str>,
    pub progress: f32,
    pub queue_position: Option<usize>,
    pub expires_at: Option<Timestamp>,
    /// Changes with every change of the view.
    pub revision: String,
}

impl View {
    /// The view of a finished record.
    ///
    /// # Panics
    /// When the record is open, which is a bug.
    pub(super) fn finished(record: Record, max_age: Duration) -> Self {
        let outcome = record.outcome.as_ref();
        let (status, progress) = match outcome.expect("the record is finished. This is a bug.") {
            Outcome::Completed(_) => (Status::Completed, 1.0),
            Outcome::Failed(failure) => (Status::Failed, failure.progress),
        };
        Self {
            status,
            stage: None,
            progress,
            queue_position: None,
            expires_at: record.completed_at.map(|at| at.plus(max_age)),
            revision: String::from("final"),
            record,
        }
    }

    pub fn completed(&self) -> Option<&Completed> {
        match &self.record.outcome {
            Some(Outcome::Completed(completed)) => Some(completed),
            _ => None,
        }
    }

    pub fn failure(&self) -> Option<&Failure> {
        match &self.record.outcome {
            Some(Outcome::Failed(failure)) => Some(failure),
            _ => None,
        }
    }

    /// The status object.
    pub fn status_json(&self) -> Value {
        let r = &self.record;
        let text = |t: Option<Timestamp>| t.map(|t| t.to_string());
        let available = self.status == Status::Completed;
        json!({
            "task_id": r.task_id,
            "status": self.status.as_str(),
            "progress": (f64::from(self.progress) * 1e4).round() / 1e4,
            "stage": self.stage,
            "created_at": r.created_at.to_string(),
            "started_at": text(r.started_at),
            "completed_at": text(r.completed_at),
            "queue_position": self.queue_position,
            "error": self.failure().map(|f| &f.message),
            "error_code": self.failure().map(|f| &f.word),
            "cancelled": self.failure().is_some_and(|f| f.cancelled),
            "result_available": available,
            "result_url": available.then(|| result_url(&r.task_id)),
            "expires_at": text(self.expires_at),
            "mode": r.request.utterance.kind.as_str(),
            "voice_id": r.request.voice_id,
            "format": r.request.format.name(),
        })
    }

    /// The result object of a completed task.
    pub fn result_json(&self, results: &std::path::Path) -> Option<Value> {
        let (r, c) = (&self.record, self.completed()?);
        let round = |x: f64, digits: f64| (x * digits).round() / digits;
        Some(json!({
            "success": true,
            "message": "Synthesis completed",
            "task_id": r.task_id,
            "audio_url": format!("/api/v1/audio/{}", c.file),
            "file_path": results.join(&c.file).to_string_lossy(),
            "file_size": c.bytes,
            "duration": round(c.duration_s, 1e3),
            "sample_rate": c.sample_rate_hz,
            "format": r.request.format.name(),
            "synthesis_time": round(c.synthesis_time_s, 1e3),
            "rtf": round(c.synthesis_time_s / c.duration_s.max(1e-3), 1e4),
            "seed": r.request.seed,
            "mode": r.request.utterance.kind.as_str(),
            "voice_id": r.request.voice_id,
            "normalized_text": c.normalized_text,
            "created_at": r.created_at.to_string(),
            "completed_at": r.completed_at.map(|t| t.to_string()),
            "expires_at": self.expires_at.map(|t| t.to_string()),
        }))
    }
}

pub fn status_url(task_id: &str) -> String {
    format!("/api/v1/async/tasks/{task_id}/status")
}

pub fn result_url(task_id: &str) -> String {
    format!("/api/v1/async/tasks/{task_id}/result")
}
