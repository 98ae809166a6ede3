//! What can be wrong with a text, a tokenizer or a lexicon.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Why a text cannot be prepared for the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The text holds nothing that can be spoken: white space, punctuation or emoji only.
    #[error("the text has nothing to say: it holds only white space, punctuation or symbols")]
    NothingToSay,
    /// The official front end raises on this text, and the official behaviour was asked for.
    #[error("the official front end cannot process this text: {function} raises {exception}")]
    Official {
        function: &'static str,
        exception: &'static str,
    },
    /// A tokenizer file is missing or malformed.
    #[error("{path}: {reason}")]
    TokenizerFile { path: PathBuf, reason: String },
    /// A pause mark is malformed or too long.
    #[error("pause at {found:?}: {reason}")]
    Pause { found: String, reason: String },
    /// The text is SSML that is malformed, or uses what is not supported.
    #[error("SSML at byte {offset}: {reason}")]
    Ssml { offset: usize, reason: String },
    /// A lexicon entry is malformed; entries count from 1.
    #[error("lexicon entry {entry}: {reason}")]
    Lexicon { entry: usize, reason: String },
    /// The text holds inline pinyin and the checkpoint's tokenizer has no tokens for it.
    #[error("this checkpoint does not read inline pinyin such as {found}")]
    Pinyin { found: String },
}

impl TextError {
    pub(super) fn official(function: &'static str, exception: &'static str) -> Self {
        TextError::Official {
            function,
            exception,
        }
    }

    pub(super) fn tokenizer(path: &Path, reason: &(impl Display + ?Sized)) -> Self {
        TextError::TokenizerFile {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }
}
