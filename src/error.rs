//! The error that crosses from the library to a command or a route: one variant per layer.

/// Anything that can go wrong on the way from text to audio.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An op of a backend failed: out of memory or a lost device.
    #[error(transparent)]
    Backend(#[from] crate::backend::BackendError),
    /// A checkpoint that cannot be used, with everything that is wrong with it.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// The operating system refused a file.
    #[error("{path}: {source}")]
    Io {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
}

/// Shorthand used above the layers.
pub type Result<T> = std::result::Result<T, Error>;
