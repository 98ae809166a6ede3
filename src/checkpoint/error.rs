//! What can be wrong with a checkpoint.

use std::fmt;
use std::path::PathBuf;

/// Why a checkpoint cannot be used. [`CheckpointError::Unusable`] lists everything at once.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused a file.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The folder is neither the official layout nor ours.
    #[error(
        "{}: not a CosyVoice2 checkpoint: found neither cosyvoice2.yaml (official layout) nor config.json (converted layout)",
        dir.display()
    )]
    NotACheckpoint { dir: PathBuf },
    /// All problems of a checkpoint.
    #[error("{}: {} problem{} in the checkpoint{}", dir.display(), problems.len(), if problems.len() == 1 { "" } else { "s" }, List(problems))]
    Unusable {
        dir: PathBuf,
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong, in which file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {what}")]
pub struct Problem {
    /// File name within the checkpoint.
    pub file: String,
    pub what: Fault,
}

/// What is wrong with a file or tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file is not there.
    #[error("file is missing")]
    FileMissing,
    /// The file is not what its name says, or it is cut off.
    #[error("cannot be read: {0}")]
    Format(String),
    /// A configuration value is missing, of the wrong kind, or not supported.
    #[error("{key}: expected {expected}, found {found}")]
    Config {
        key: String,
        expected: String,
        found: String,
    },
    #[error("tensor {tensor}: expected {expected:?}, found nothing")]
    TensorMissing {
        tensor: String,
        expected: Vec<usize>,
    },
    #[error("tensor {tensor}: expected {expected:?}, found {found:?}")]
    TensorShape {
        tensor: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("tensor {tensor}: expected floating-point values, found {found}")]
    TensorDtype { tensor: String, found: String },
    #[error("tensor {tensor}: unexpected, found {found:?}")]
    TensorUnexpected { tensor: String, found: Vec<usize> },
}

impl Fault {
    /// A malformed file.
    pub fn format(message: impl fmt::Display) -> Self {
        Self::Format(message.to_string())
    }

    /// A configuration value that is not as it must be.
    pub fn config(
        key: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::Config {
            key: key.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Puts the fault into a file.
    pub fn of(self, file: impl Into<String>) -> Problem {
        Problem {
            file: file.into(),
            what: self,
        }
    }
}

/// Result of reading a checkpoint.
pub type Result<T> = std::result::Result<T, CheckpointError>;

struct List<'a>(&'a [Problem]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|p| write!(f, "\n  {p}"))
    }
}
