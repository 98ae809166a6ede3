//! Registered voices: their metadata on disk, and making, changing and deleting them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::{Timestamp, files};
use super::{Loaded, VoiceError, Voices, blocking};
use crate::tasks::VoiceSource;

const MAX_ID_BYTES: usize = 64;

/// A registered voice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VoiceInfo {
    pub voice_id: String,
    pub name: String,
    pub description: String,
    pub voice_type: String,
    pub language: String,
    pub prompt_text: String,
    pub audio_format: String,
    /// Seconds of the recording.
    pub duration_s: f64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Digest of the encoded prompt.
    pub prompt: String,
    /// Of the model that encoded it.
    pub fingerprint: String,
}

/// What a voice is made from.
#[derive(Clone, Debug)]
pub struct NewVoice {
    pub voice_id: String,
    pub name: String,
    pub description: String,
    pub voice_type: String,
    pub language: String,
    pub prompt_text: String,
    pub audio_format: String,
    pub recording: Bytes,
}

/// What is to change; `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub name: Option<String>,
    pub description: Option<String>,
    pub voice_type: Option<String>,
    pub language: Option<String>,
    pub prompt_text: Option<String>,
    pub audio_format: Option<String>,
    pub recording: Option<Bytes>,
}

/// Whether a voice may be called so: letters, digits, `_`, `-` and `.`, starting with a letter or digit, at most 64 bytes.
pub fn is_valid_id(id: &str) -> bool {
    let first = id.chars().next().is_some_and(char::is_alphanumeric);
    let rest = id.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
    first && rest && id.len() <= MAX_ID_BYTES
}

/// Reads every voice of the folder; what cannot be read is logged and skipped.
pub(super) fn read_all(folder: &Path) -> Result<BTreeMap<String, VoiceInfo>, VoiceError> {
    let mut voices = BTreeMap::new();
    for entry in std::fs::read_dir(folder)
        .map_err(VoiceError::io(folder))?
        .flatten()
    {
        let path = entry.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("json") => {}
            Some("partial") => {
                files::remove(&path);
                continue;
            }
            _ => continue,
        }
        let text = std::fs::read(&path).map_err(|e| e.to_string());
        match text.and_then(|t| serde_json::from_slice::<VoiceInfo>(&t).map_err(|e| e.to_string()))
        {
            Ok(info) => {
                voices.insert(info.voice_id.clone(), info);
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "a voice cannot be read"),
        }
    }
    Ok(voices)
}

/// Keeps others from writing the same voice.
struct Reservation<'a> {
    voices: &'a Voices,
    voice_id: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.voices.state().reserved.remove(&self.voice_id);
    }
}

impl Voices {
    fn reserve(&self, voice_id: &str) -> Result<Reservation<'_>, VoiceError> {
        if self.state().reserved.insert(voice_id.to_owned()) {
            return Ok(Reservation {
                voices: self,
                voice_id: voice_id.to_owned(),
            });
        }
        Err(VoiceError::Exists(voice_id.to_owned()))
    }

    /// Registers a voice.
    ///
    /// # Errors
    /// [`VoiceError::Exists`], or [`VoiceError::Prompt`] when the recording cannot serve.
    pub async fn create(self: &Arc<Self>, new: NewVoice) -> Result<VoiceInfo, VoiceError> {
        let reservation = self.reserve(&new.voice_id)?;
        self.look_again().await;
        if self.is_builtin(&new.voice_id) || self.get(&new.voice_id).is_some() {
            return Err(VoiceError::Exists(new.voice_id));
        }
        let text = Some(new.prompt_text.clone()).filter(|t| !t.is_empty());
        let loaded = self.encode(new.recording.clone(), text).await?;
        let now = Timestamp::now();
        let mut info = VoiceInfo {
            voice_id: new.voice_id,
            name: new.name,
            description: new.description,
            voice_type: new.voice_type,
            language: new.language,
            prompt_text: new.prompt_text,
            audio_format: new.audio_format,
            duration_s: 0.0,
            created_at: now,
            updated_at: now,
            prompt: String::new(),
            fingerprint: String::new(),
        };
        self.describe(&mut info, &loaded);
        self.save(info.clone(), Some(new.recording)).await?;
        drop(reservation);
        Ok(info)
    }

    /// Changes a voice; a new recording or prompt text is encoded.
    ///
    /// # Errors
    /// [`VoiceError::NotFound`], [`VoiceError::Protected`], or [`VoiceError::Prompt`].
    pub async fn update(
        self: &Arc<Self>,
        voice_id: &str,
        changes: Changes,
    ) -> Result<VoiceInfo, VoiceError> {
        let reservation = self.reserve(voice_id)?;
        let mut info = self.changeable(voice_id)?;
        let encode = changes.recording.is_some() || changes.prompt_text.is_some();
        let set = |field: &mut String, value: Option<String>| {
            if let Some(value) = value {
                *field = value;
            }
        };
        set(&mut info.name, changes.name);
        set(&mut info.description, changes.description);
        set(&mut info.voice_type, changes.voice_type);
        set(&mut info.language, changes.language);
        set(&mut info.prompt_text, changes.prompt_text);
        set(&mut info.audio_format, changes.audio_format);
        info.updated_at = Timestamp::now();
        if encode {
            let recording = match &changes.recording {
                Some(recording) => recording.clone(),
                None => {
                    let path = self.folder.join(format!("{voice_id}.prompt"));
                    blocking(move || std::fs::read(&path).map_err(VoiceError::io(&path)))
                        .await?
                        .into()
                }
            };
            let text = Some(info.prompt_text.clone()).filter(|t| !t.is_empty());
            let loaded = self.encode(recording, text).await?;
            self.describe(&mut info, &loaded);
        }
        self.save(info.clone(), changes.recording).await?;
        drop(reservation);
        Ok(info)
    }

    /// Deletes a voice. Tasks that were accepted with it keep its prompt.
    ///
    /// # Errors
    /// [`VoiceError::NotFound`] or [`VoiceError::Protected`].
    pub async fn delete(self: &Arc<Self>, voice_id: &str) -> Result<(), VoiceError> {
        let reservation = self.reserve(voice_id)?;
        self.changeable(voice_id)?;
        let json = self.folder.join(format!("{voice_id}.json"));
        let prompt = self.folder.join(format!("{voice_id}.prompt"));
        blocking(move || {
            std::fs::remove_file(&json).map_err(VoiceError::io(&json))?;
            files::remove(&prompt);
            Ok(())
        })
        .await?;
        self.state().voices.remove(voice_id);
        drop(reservation);
        Ok(())
    }

    fn changeable(&self, voice_id: &str) -> Result<VoiceInfo, VoiceError> {
        if self.is_builtin(voice_id) {
            return Err(VoiceError::Protected(voice_id.to_owned()));
        }
        let found = self.get(voice_id);
        found.ok_or_else(|| VoiceError::NotFound(voice_id.to_owned()))
    }

    fn describe(&self, info: &mut VoiceInfo, loaded: &Loaded) {
        if let VoiceSource::Prompt(digest) = &loaded.source {
            info.prompt.clone_from(digest);
        }
        if loaded.duration_s > 0.0 {
            info.duration_s = (loaded.duration_s * 1e3).round() / 1e3;
        }
        info.fingerprint
            .clone_from(&self.synthesis.info().fingerprint);
    }

    /// Points a voice to its prompt as the present model encodes it.
    pub(super) async fn refresh(
        self: &Arc<Self>,
        mut info: VoiceInfo,
        loaded: &Loaded,
    ) -> Result<(), VoiceError> {
        self.describe(&mut info, loaded);
        self.save(info, None).await
    }

    async fn save(
        self: &Arc<Self>,
        info: VoiceInfo,
        recording: Option<Bytes>,
    ) -> Result<(), VoiceError> {
        let this = Arc::clone(self);
        blocking(move || {
            if let Some(recording) = recording {
                let path = this.folder.join(format!("{}.prompt", info.voice_id));
                files::write(&path, &recording).map_err(VoiceError::io(&path))?;
            }
            let path = this.folder.join(format!("{}.json", info.voice_id));
            let text = serde_json::to_vec_pretty(&info);
            let text = text.map_err(|e| VoiceError::Storage(e.to_string()))?;
            files::write(&path, &text).map_err(VoiceError::io(&path))?;
            this.state().voices.insert(info.voice_id.clone(), info);
            Ok(())
        })
        .await
    }
}
