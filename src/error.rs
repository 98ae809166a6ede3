//! The error that crosses from the library to a command or a route: one variant per layer.

use std::path::PathBuf;

/// Anything that can go wrong on the way from text to audio.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An op of a backend failed: out of memory or a lost device.
    #[error(transparent)]
    Backend(#[from] crate::backend::BackendError),
    /// A model folder that cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// A text that cannot be spoken.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
    /// A recording that cannot be read or used, or audio that cannot be written.
    #[error(transparent)]
    Audio(#[from] crate::audio::AudioError),
    /// A recording that did not become a voice.
    #[error(transparent)]
    Voice(#[from] crate::model::voice::VoiceError),
    /// A voice file that cannot be used.
    #[error("{path}: {source}")]
    VoiceFile {
        path: PathBuf,
        source: crate::model::voice::VoiceFileError,
    },
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// The operating system refused a file.
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Nobody to speak.
    #[error("the model has no voice of its own and none was added: give a recording")]
    NoVoices,
    /// No such voice.
    #[error("there is no voice '{name}' (there are: {known})")]
    UnknownVoice { name: String, known: String },
    /// A name that cannot be a voice's.
    #[error("'{0}' cannot name a voice: up to 64 letters, digits, '_', '-' and '.'")]
    VoiceName(String),
    /// A name that is taken.
    #[error("there is a voice '{0}' already")]
    VoiceExists(String),
    /// The voice does not have what the mode needs.
    #[error("this voice lacks {0}, which the mode needs")]
    VoiceLacks(&'static str),
    /// The checkpoint cannot encode recordings.
    #[error(
        "this checkpoint has no speaker encoder and speech tokenizer (campplus.onnx, speech_tokenizer_v2.onnx): it cannot encode recordings"
    )]
    NoVoiceEncoder,
}

/// Shorthand used above the layers.
pub type Result<T> = std::result::Result<T, Error>;
