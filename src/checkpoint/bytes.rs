//! The bytes of a file: mapped, owned, or absent (a table of shapes alone).

use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

/// Read-only contents of a file.
#[derive(Debug)]
pub enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
    /// No bytes at all: every tensor reads as zeros.
    Absent,
    /// No bytes and no table: whatever is asked for is there, with values that follow from this seed.
    Random(u64),
}

impl Bytes {
    /// Maps a file.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub fn map(path: &Path) -> std::io::Result<Self> {
        let file = std::fs::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only. As with every mapped model file, the contract with the user is
        // that nobody truncates a checkpoint while it is loaded.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self::Mapped(map))
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
            Self::Absent | Self::Random(_) => &[],
        }
    }

    /// Lets the operating system drop the pages wholly inside `range`; reading them again reads the file again.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            const PAGE: usize = 4096;
            let start = range.start.next_multiple_of(PAGE);
            let end = range.end.min(map.len()) / PAGE * PAGE;
            if start < end {
                // SAFETY: on a private read-only file mapping DONTNEED only drops clean pages: the next access faults
                // the same bytes back in, so outstanding borrows stay valid.
                let advised = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        start,
                        end - start,
                    )
                };
                if let Err(error) = advised {
                    tracing::debug!(%error, "madvise");
                }
            }
        }
    }
}
