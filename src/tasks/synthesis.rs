//! What tasks need of the models, as a trait: nothing above this line sees a tensor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audio::AudioError;
use crate::engine::{EngineError, EngineStats, Job, Mode, Request, Segment};
use crate::model::voice::Voice;
use crate::text::Normalization;

/// The four ways to speak, named as in the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Sft,
    ZeroShot,
    CrossLingual,
    Instruct,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Sft => "sft",
            Kind::ZeroShot => "zero_shot",
            Kind::CrossLingual => "cross_lingual",
            Kind::Instruct => "instruct",
        }
    }
}

/// What a user wants said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Utterance {
    pub kind: Kind,
    pub text: String,
    /// The instruction of [`Kind::Instruct`].
    pub instruct_text: Option<String>,
    /// Overrides the detection by script.
    pub language: Option<String>,
    #[serde(default)]
    pub normalization: Normalization,
    /// Word → what is read instead.
    #[serde(default)]
    pub lexicon: BTreeMap<String, String>,
}

/// Text ready for the engine.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub segments: Vec<Segment>,
    pub mode: Mode,
    pub normalized_text: String,
}

/// A prompt recording, encoded.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub voice: Voice,
    pub duration: Duration,
}

/// A voice that comes with the model.
#[derive(Clone, Debug)]
pub struct BuiltinVoice {
    pub voice_id: String,
    pub name: String,
    pub description: String,
    /// BCP 47; empty when unknown.
    pub language: String,
    pub voice: Arc<Voice>,
}

/// Facts of the loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    pub name: String,
    pub device: String,
    pub sample_rate_hz: u32,
    /// Changes when stored prompts must be encoded anew.
    pub fingerprint: String,
    /// Tasks that memory allows at the same time.
    pub workers: usize,
}

/// Why a request cannot be spoken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SynthesisError {
    /// A field's content is at fault; `word` is the error's short name, such as `empty_text`.
    #[error("{message}")]
    Field {
        field: &'static str,
        word: &'static str,
        message: String,
    },
    /// The recording cannot be read.
    #[error("{0}")]
    Undecodable(String),
    /// The voice lacks what this way of speaking needs.
    #[error("{0}")]
    VoiceUnsuitable(String),
    /// The recording or another part is too large.
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    Internal(String),
}

impl SynthesisError {
    /// The short name that users see.
    pub fn word(&self) -> &'static str {
        match self {
            SynthesisError::Field { word, .. } => word,
            SynthesisError::Undecodable(_) => "undecodable_audio",
            SynthesisError::VoiceUnsuitable(_) => "voice_unsuitable",
            SynthesisError::TooLarge(_) => "file_too_large",
            SynthesisError::Internal(_) => "internal_error",
        }
    }
}

impl From<AudioError> for SynthesisError {
    /// An error of a prompt recording.
    fn from(error: AudioError) -> Self {
        let message = error.to_string();
        let word = match error {
            AudioError::TooLong { .. } => "audio_too_long",
            AudioError::TooShort { .. } => "audio_too_short",
            AudioError::Silent { .. } => "audio_silent",
            AudioError::Rate { .. } => "audio_rate",
            AudioError::NotFinite => "audio_not_finite",
            AudioError::TooLarge { .. } => return SynthesisError::TooLarge(message),
            AudioError::Encode { .. } => return SynthesisError::Internal(message),
            _ => return SynthesisError::Undecodable(message),
        };
        SynthesisError::Field {
            field: "prompt_audio",
            word,
            message,
        }
    }
}

/// Text and recordings in, jobs out. Methods other than `submit`, `info` and `stats` may take long: call them off the runtime.
pub trait Synthesis: Send + Sync + 'static {
    fn info(&self) -> &ModelInfo;

    /// The first is the default voice.
    fn builtin_voices(&self) -> Vec<BuiltinVoice>;

    /// Those that have come since the last call without this server's doing, `voices add` for one.
    fn new_voices(&self) -> Vec<BuiltinVoice> {
        Vec::new()
    }

    /// Speech tokens, mel and speaker embedding of a recording in any supported container, at most `limit` long.
    ///
    /// # Errors
    /// [`SynthesisError::Undecodable`], or [`SynthesisError::Field`] when it is too long, too short, silent, or its text is unusable.
    fn encode_prompt(
        &self,
        audio: &[u8],
        text: Option<&str>,
        limit: Duration,
    ) -> Result<Prompt, SynthesisError>;

    /// Normalises, splits and tokenises.
    ///
    /// # Errors
    /// [`SynthesisError::Field`] for text that cannot be spoken, [`SynthesisError::VoiceUnsuitable`] for a voice without the parts `kind` needs.
    fn prepare(
        &self,
        utterance: &Utterance,
        voice: &Arc<Voice>,
    ) -> Result<Prepared, SynthesisError>;

    /// # Errors
    /// See [`EngineHandle::submit`](crate::engine::EngineHandle::submit).
    fn submit(&self, request: Request) -> Result<Job, EngineError>;

    fn stats(&self) -> EngineStats;
}
