//! Voices: those of the model, those that users register, and prompts that came with a task.
//!
//! A prompt is encoded once and kept as `prompts/<digest>.safetensors`, named by what it was made from (model, recording, text).
//! A registered voice is `voices/<id>.json` with its recording `voices/<id>.prompt` beside it, from which it is encoded anew when
//! the model changes. Tasks point to digests, so editing or deleting a voice never changes a task that was accepted.

mod catalog;
mod file;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

pub use catalog::{Changes, NewVoice, VoiceInfo, is_valid_id};

use super::files;
use super::record::VoiceSource;
use super::synthesis::{BuiltinVoice, Synthesis, SynthesisError};
use crate::model::voice::Voice;

/// Prompts encoded at the same time; more wait.
const ENCODERS: usize = 2;
/// How long a prompt that nothing points to is kept for the next request with the same recording.
const UNUSED_PROMPT: Duration = Duration::from_secs(600);

/// Why a voice cannot be had, made or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VoiceError {
    #[error("Voice with ID '{0}' not found")]
    NotFound(String),
    #[error("Voice with ID '{0}' already exists")]
    Exists(String),
    #[error("Voice '{0}' comes with the model and cannot be changed")]
    Protected(String),
    #[error(transparent)]
    Prompt(#[from] SynthesisError),
    #[error("the voice store failed: {0}")]
    Storage(String),
}

impl VoiceError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |e| VoiceError::Storage(format!("{path}: {e}"))
    }
}

/// An encoded voice in memory. While one is alive its file stays.
#[derive(Debug)]
pub struct Loaded {
    pub source: VoiceSource,
    pub voice: Arc<Voice>,
    /// Seconds of the recording; 0 when unknown.
    pub duration_s: f64,
}

#[derive(Default)]
struct State {
    voices: BTreeMap<String, VoiceInfo>,
    /// Ids that are being written.
    reserved: HashSet<String>,
    loaded: HashMap<String, Weak<Loaded>>,
}

/// All voices of a server.
pub struct Voices {
    folder: PathBuf,
    prompts: PathBuf,
    synthesis: Arc<dyn Synthesis>,
    builtin: RwLock<Arc<[BuiltinVoice]>>,
    limit: Duration,
    encoders: Semaphore,
    state: Mutex<State>,
}

impl Voices {
    /// Opens the voices below `data`; recordings may be at most `limit` long.
    ///
    /// # Errors
    /// When the folders cannot be made or read. A voice that cannot be read is logged and left alone.
    pub fn open(
        data: &Path,
        synthesis: Arc<dyn Synthesis>,
        limit: Duration,
    ) -> Result<Self, VoiceError> {
        let (folder, prompts) = (data.join("voices"), data.join("prompts"));
        for path in [&folder, &prompts] {
            std::fs::create_dir_all(path).map_err(VoiceError::io(path))?;
        }
        let state = State {
            voices: catalog::read_all(&folder)?,
            ..State::default()
        };
        Ok(Self {
            builtin: RwLock::new(synthesis.builtin_voices().into()),
            folder,
            prompts,
            synthesis,
            limit,
            encoders: Semaphore::new(ENCODERS),
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The voices of the model, as far as they were seen; the first is the default.
    pub fn builtin(&self) -> Arc<[BuiltinVoice]> {
        Arc::clone(&self.builtin.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes up voices that were added beside this server.
    pub async fn look_again(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let look = move || {
            let new = this.synthesis.new_voices();
            if !new.is_empty() {
                let mut builtin = this.builtin.write().unwrap_or_else(PoisonError::into_inner);
                *builtin = builtin.iter().cloned().chain(new).collect();
            }
            Ok(())
        };
        // A panic in there was logged; the voices that are known stay.
        let _ = blocking(look).await;
    }

    /// The voices that users registered, by id.
    pub fn registered(&self) -> Vec<VoiceInfo> {
        self.state().voices.values().cloned().collect()
    }

    pub fn get(&self, voice_id: &str) -> Option<VoiceInfo> {
        self.state().voices.get(voice_id).cloned()
    }

    fn is_builtin(&self, voice_id: &str) -> bool {
        self.builtin().iter().any(|b| b.voice_id == voice_id)
    }

    /// The voice of this id, ready for the engine.
    ///
    /// # Errors
    /// [`VoiceError::NotFound`]; others when its file is gone or unreadable and it cannot be encoded anew.
    pub async fn resolve(self: &Arc<Self>, voice_id: &str) -> Result<Arc<Loaded>, VoiceError> {
        if !self.is_builtin(voice_id) && self.get(voice_id).is_none() {
            self.look_again().await;
        }
        if let Some(b) = self.builtin().iter().find(|b| b.voice_id == voice_id) {
            return Ok(Arc::new(Loaded {
                source: VoiceSource::Builtin(voice_id.to_owned()),
                voice: Arc::clone(&b.voice),
                duration_s: 0.0,
            }));
        }
        let not_found = || VoiceError::NotFound(voice_id.to_owned());
        let info = self.get(voice_id).ok_or_else(not_found)?;
        let path = self.folder.join(format!("{voice_id}.prompt"));
        let read = move || std::fs::read(&path).map_err(VoiceError::io(&path));
        if info.fingerprint == self.synthesis.info().fingerprint {
            let this = Arc::clone(self);
            let digest = info.prompt.clone();
            if let Ok(loaded) = blocking(move || this.load_prompt(&digest)).await {
                return Ok(loaded);
            }
        }
        let recording = Bytes::from(blocking(read).await?);
        let text = Some(info.prompt_text.clone()).filter(|t| !t.is_empty());
        let loaded = self.encode(recording, text).await?;
        self.refresh(info, &loaded).await?;
        Ok(loaded)
    }

    /// The voice that a stored task points to.
    ///
    /// # Errors
    /// When it is gone: a prompt's file was removed by hand, or the model has no such voice.
    pub async fn load(self: &Arc<Self>, source: &VoiceSource) -> Result<Arc<Loaded>, VoiceError> {
        match source {
            VoiceSource::Builtin(id) if self.is_builtin(id) => self.resolve(id).await,
            VoiceSource::Builtin(id) => Err(VoiceError::NotFound(id.clone())),
            VoiceSource::Prompt(digest) => {
                let (this, digest) = (Arc::clone(self), digest.clone());
                blocking(move || this.load_prompt(&digest)).await
            }
        }
    }

    /// Encodes a recording, or finds it encoded already. On disk before it returns.
    ///
    /// # Errors
    /// [`VoiceError::Prompt`] when the recording cannot serve.
    pub async fn encode(
        self: &Arc<Self>,
        recording: Bytes,
        text: Option<String>,
    ) -> Result<Arc<Loaded>, VoiceError> {
        let _permit = self.encoders.acquire().await;
        let this = Arc::clone(self);
        blocking(move || this.encode_now(&recording, text.as_deref())).await
    }

    fn encode_now(&self, recording: &[u8], text: Option<&str>) -> Result<Arc<Loaded>, VoiceError> {
        let digest = self.digest(recording, text);
        if let Ok(loaded) = self.load_prompt(&digest) {
            return Ok(loaded);
        }
        let prompt = self.synthesis.encode_prompt(recording, text, self.limit)?;
        let loaded = Arc::new(Loaded {
            source: VoiceSource::Prompt(digest.clone()),
            voice: Arc::new(prompt.voice),
            duration_s: prompt.duration.as_secs_f64(),
        });
        // Registered before the file exists, so that a sweep cannot come between.
        self.state()
            .loaded
            .insert(digest.clone(), Arc::downgrade(&loaded));
        let path = self.prompt_path(&digest);
        files::write(&path, &file::encode(&loaded.voice, loaded.duration_s)?)
            .map_err(VoiceError::io(&path))?;
        Ok(loaded)
    }

    fn digest(&self, recording: &[u8], text: Option<&str>) -> String {
        let mut hash = Sha256::new();
        hash.update(self.synthesis.info().fingerprint.as_bytes());
        hash.update([0, u8::from(text.is_some())]);
        hash.update(text.unwrap_or_default().as_bytes());
        hash.update([0]);
        hash.update(recording);
        hex(&hash.finalize())
    }

    fn prompt_path(&self, digest: &str) -> PathBuf {
        self.prompts.join(format!("{digest}.safetensors"))
    }

    fn load_prompt(&self, digest: &str) -> Result<Arc<Loaded>, VoiceError> {
        if let Some(loaded) = self.state().loaded.get(digest).and_then(Weak::upgrade) {
            return Ok(loaded);
        }
        let path = self.prompt_path(digest);
        let (voice, duration_s) = file::read(&path)?;
        let touched = std::fs::File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        touched.map_err(VoiceError::io(&path))?;
        let loaded = Arc::new(Loaded {
            source: VoiceSource::Prompt(digest.to_owned()),
            voice: Arc::new(voice),
            duration_s,
        });
        self.state()
            .loaded
            .insert(digest.to_owned(), Arc::downgrade(&loaded));
        Ok(loaded)
    }

    /// Removes encoded prompts that no voice, no digest of `in_use` and no memory points to. Blocks on the disk.
    pub(super) fn sweep(&self, in_use: &HashSet<String>) {
        let Ok(entries) = std::fs::read_dir(&self.prompts) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|n| n.strip_suffix(".safetensors"));
            let age = entry.metadata().and_then(|m| m.modified()).ok();
            let fresh = age.is_some_and(|t| t.elapsed().unwrap_or_default() < UNUSED_PROMPT);
            let mut state = self.state();
            state.loaded.retain(|_, weak| weak.strong_count() > 0);
            let used = digest.is_some_and(|d| {
                in_use.contains(d)
                    || state.loaded.contains_key(d)
                    || state.voices.values().any(|v| v.prompt == d)
            });
            // Under the lock: a request that wants this prompt now finds it gone and encodes it again.
            if !used && !fresh {
                files::remove(&entry.path());
            }
        }
    }
}

/// Runs `work` where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VoiceError> + Send + 'static,
) -> Result<T, VoiceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(VoiceError::Storage(e.to_string())))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
