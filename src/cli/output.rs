//! Where audio goes: a file that appears whole or not at all, or standard output.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::audio::encode::set_wav_lengths;

/// A file being written beside its place, moved there by [`Output::finish`].
pub(super) enum Output {
    File {
        path: PathBuf,
        partial: PathBuf,
        writer: BufWriter<File>,
    },
    Stdout(io::Stdout),
}

impl Output {
    /// `-` is standard output.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(io::stdout()));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".part");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial)
            .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", partial.display()))?;
        Ok(Self::File {
            path: path.to_owned(),
            partial,
            writer: BufWriter::new(file),
        })
    }

    /// Writes the lengths into the header of a wav file that was streamed. Nothing to do for standard output, which cannot go back.
    pub(super) fn set_wav_lengths(&mut self) -> io::Result<()> {
        self.flush()?;
        match self {
            Self::File { writer, .. } => set_wav_lengths(writer.get_mut()),
            Self::Stdout(_) => Ok(()),
        }
    }

    /// Puts the finished file in its place.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.flush()?;
        if let Self::File { path, partial, .. } = &self {
            std::fs::rename(partial, path)
                .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display()))?;
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::File { writer, .. } => writer.write(buf),
            Self::Stdout(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File { writer, .. } => writer.flush(),
            Self::Stdout(out) => out.flush(),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::File { partial, .. } = self {
            // After `finish` there is nothing left to remove.
            let _ = std::fs::remove_file(partial);
        }
    }
}
