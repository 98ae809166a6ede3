//! Voices by name: those of the checkpoint, and those that were added, one file each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::model::voice::{Voice, VoiceDims, VoiceFileError};

const EXTENSION: &str = "safetensors";
const MAX_NAME_BYTES: usize = 64;
/// Suffix of the voices that a server registers in the same folder.
const REGISTERED: &str = "json";
/// A folder that changed so recently may change again within the same tick of its clock.
const SETTLED: Duration = Duration::from_secs(1);

/// Named voices. Additions are on disk before they can be used.
pub struct VoiceStore {
    dir: PathBuf,
    dims: VoiceDims,
    /// Voices of the checkpoint.
    builtin: BTreeMap<String, Arc<Voice>>,
    added: RwLock<BTreeMap<String, Arc<Voice>>>,
    /// When the folder had last changed as it was read.
    read_at: Mutex<Option<SystemTime>>,
}

impl VoiceStore {
    /// Reads the voices in `dir`, which may not exist yet.
    ///
    /// # Errors
    /// An unreadable folder. A voice that does not fit the checkpoint is left out with a warning.
    pub fn open(dir: &Path, dims: VoiceDims, builtin: BTreeMap<String, Voice>) -> Result<Self> {
        let store = Self {
            dir: dir.to_owned(),
            dims,
            builtin: builtin.into_iter().map(|(n, v)| (n, Arc::new(v))).collect(),
            added: RwLock::default(),
            read_at: Mutex::default(),
        };
        store.read_new()?;
        Ok(store)
    }

    /// Takes up the voices that another process has added since; their names. What it removed stays until the next start.
    ///
    /// # Errors
    /// An unreadable folder. A voice that does not fit the checkpoint is left out with a warning.
    pub fn read_new(&self) -> Result<Vec<String>> {
        let changed = match std::fs::metadata(&self.dir).and_then(|m| m.modified()) {
            Ok(changed) => changed,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io(&self.dir, source)),
        };
        let mut read_at = self.read_at.lock().unwrap_or_else(PoisonError::into_inner);
        if *read_at == Some(changed) {
            return Ok(Vec::new());
        }
        let settled = changed.elapsed().is_ok_and(|age| age > SETTLED);
        let entries = std::fs::read_dir(&self.dir).map_err(|source| io(&self.dir, source))?;
        let mut new = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(name) = voice_name(&path).filter(|name| !self.read().contains_key(name))
            else {
                continue;
            };
            match load(&path, &self.dims) {
                Ok(voice) => {
                    self.write().insert(name.clone(), Arc::new(voice));
                    new.push(name);
                }
                // Voices of several checkpoints may share a folder.
                Err(error) => tracing::warn!(%error, "a voice is left out"),
            }
        }
        *read_at = settled.then_some(changed);
        new.sort();
        Ok(new)
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
        let mut added = self.write();
        let registered = self.dir.join(format!("{name}.{REGISTERED}"));
        if added.contains_key(name) || self.builtin.contains_key(name) || registered.exists() {
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
        let mut added = self.write();
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

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Voice>>> {
        self.added.write().unwrap_or_else(PoisonError::into_inner)
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
