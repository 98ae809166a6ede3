//! Files that are either whole or absent: written aside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Suffix of files that are being written; one found at start is a leftover.
pub(super) const PARTIAL: &str = ".partial";

/// A written and synced file that is not in place yet; dropping it removes it.
pub(super) struct Partial {
    aside: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Partial {
    /// Writes `bytes` beside `path`.
    pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(
            ".{}{PARTIAL}",
            WRITES.fetch_add(1, Ordering::Relaxed)
        ));
        let partial = Self {
            aside: aside.into(),
            path: path.to_owned(),
            published: false,
        };
        let mut file = File::create(&partial.aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(partial)
    }

    /// Puts the file in place, over one that is there, and syncs the folder.
    pub(super) fn publish(mut self) -> io::Result<()> {
        fs::rename(&self.aside, &self.path)?;
        self.published = true;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            remove(&self.aside);
        }
    }
}

/// Both steps at once.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Partial::write(path, bytes)?.publish()
}

/// Removes a file that may be gone already; anything else is logged.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file");
    }
}
