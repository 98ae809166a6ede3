//! Voices by name: those of the checkpoint, and those that were added, one file each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result};
use crate::model::voice::{Voice, VoiceDims, VoiceFileError};

const EXTENSION: &str = "safetensors";
const MAX_NAME_BYTES: usize = 64;

/// Named voices. Additions are on disk before they can be used.
pub struct VoiceStore {
    dir: PathBuf,
    dims: VoiceDims,
    /// Voices of the checkpoint.
    builtin: BTreeMap<String, Arc<Voice>>,
    added: RwLock<BTreeMap<String, Arc<Voice>>>,
}

impl VoiceStore {
    /// Reads the voices in `dir`, which may not exist yet.
    ///
    /// # Errors
    /// An unreadable folder. A voice that does not fit the checkpoint is left out with a warning.
    pub fn open(dir: &Path, dims: VoiceDims, builtin: BTreeMap<String, Voice>) -> Result<Self> {
        let mut added = BTreeMap::new();
        match std::fs::read_dir(dir) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    let path = entry.path();
                    let Some(name) = voice_name(&path) else {
                        continue;
                    };
                    match load(&path, &dims) {
                        Ok(voice) => {
                            added.insert(name, Arc::new(voice));
                        }
                        // Voices of several checkpoints may share a folder.
                        Err(error) => tracing::warn!(%error, "a voice is left out"),
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(io(dir, source));
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            dims,
            builtin: builtin.into_iter().map(|(n, v)| (n, Arc::new(v))).collect(),
            added: RwLock::new(added),
        })
    }

    /// The voice of that name.
    ///
    /// # Errors
    /// [`Error::UnknownVoice`], with the names that there are.
    pub fn get(&self, name: &str) -> Result<Arc<Voice>> {
        if let Some(voice) = self.read().get(name).or_else(|| self.builtin.get(name)) {
            return Ok(Arc::clone(voice));
        }
        Err(Error::UnknownVoice {
            name: name.to_owned(),
            known: self.names().join(", "),
        })
    }

    /// All names in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.builtin.keys().cloned().collect();
        names.extend(self.read().keys().cloned());
        names.sort();
        names.dedup();
        names
    }

    /// The checkpoint's own voices.
    pub fn builtin(&self) -> &BTreeMap<String, Arc<Voice>> {
        &self.builtin
    }

    /// Keeps a voice under a new name.
    ///
    /// # Errors
    /// A name that is taken or cannot name a file, or a disk that refuses.
    pub fn add(&self, name: &str, voice: Voice) -> Result<()> {
        let sound = !name.is_empty()
            && name.len() <= MAX_NAME_BYTES
            && name
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
            && !name.starts_with('.');
        if !sound {
            return Err(Error::VoiceName(name.to_owned()));
        }
        let mut added = self.added.write().unwrap_or_else(PoisonError::into_inner);
        if added.contains_key(name) || self.builtin.contains_key(name) {
            return Err(Error::VoiceExists(name.to_owned()));
        }
        let path = self.path(name);
        std::fs::create_dir_all(&self.dir).map_err(|source| io(&self.dir, source))?;
        save(&path, &voice, self.dims.mels)?;
        added.insert(name.to_owned(), Arc::new(voice));
        Ok(())
    }

    /// Forgets a voice that was added.
    ///
    /// # Errors
    /// A name that was not added, or a disk that refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut added = self.added.write().unwrap_or_else(PoisonError::into_inner);
        if !added.contains_key(name) {
            return Err(Error::UnknownVoice {
                name: name.to_owned(),
                known: added.keys().cloned().collect::<Vec<_>>().join(", "),
            });
        }
        let path = self.path(name);
        std::fs::remove_file(&path).map_err(|source| io(&path, source))?;
        added.remove(name);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{EXTENSION}"))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Voice>>> {
        self.added.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn voice_name(path: &Path) -> Option<String> {
    (path.extension()? == EXTENSION).then(|| path.file_stem()?.to_str().map(str::to_owned))?
}

fn load(path: &Path, dims: &VoiceDims) -> Result<Voice> {
    let bytes = std::fs::read(path).map_err(|source| io(path, source))?;
    let unfit = |source: VoiceFileError| Error::VoiceFile {
        path: path.to_owned(),
        source,
    };
    let voice = Voice::from_bytes(&bytes).map_err(unfit)?;
    voice.check(dims).map_err(unfit)?;
    Ok(voice)
}

/// Written beside its place and moved there, so that it is whole or absent.
fn save(path: &Path, voice: &Voice, mels: usize) -> Result<()> {
    let bytes = voice.to_bytes(mels).map_err(|source| Error::VoiceFile {
        path: path.to_owned(),
        source,
    })?;
    let partial = path.with_extension("part");
    std::fs::write(&partial, bytes).map_err(|source| io(&partial, source))?;
    std::fs::rename(&partial, path).map_err(|source| io(path, source))
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}
