//! The [`Synthesis`] of a loaded checkpoint.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::synthesis::{
    BuiltinVoice, Kind, ModelInfo, Prepared, Prompt, Synthesis, SynthesisError, Utterance,
};
use super::voices::hex;
use crate::audio;
use crate::engine::{self, EngineError, EngineStats, Job, Mode, Request, Synthesizer, VoiceChoice};
use crate::error::Error;
use crate::model::voice::{Voice, VoiceError};
use crate::text::{Language, Lexicon, TextError, TextOptions};

/// Largest prompt file that is decoded.
const MAX_PROMPT_BYTES: usize = 50 << 20;

/// A checkpoint that speaks for the tasks.
pub struct Speaker {
    synthesizer: Synthesizer,
    info: ModelInfo,
}

impl Speaker {
    /// The checkpoint of `dir`.
    pub fn new(synthesizer: Synthesizer, dir: &Path) -> Self {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned());
        let info = ModelInfo {
            name: name.unwrap_or_else(|| String::from("cosyvoice2")),
            device: synthesizer.device().to_owned(),
            sample_rate_hz: synthesizer.sample_rate_hz(),
            fingerprint: fingerprint(dir),
            workers: synthesizer.max_running(),
        };
        Self { synthesizer, info }
    }

    fn named(&self, name: String) -> Option<BuiltinVoice> {
        let store = self.synthesizer.voices();
        let description = match store.builtin().contains_key(&name) {
            true => "A voice of the model",
            false => "Added on the command line",
        };
        Some(BuiltinVoice {
            voice: store.get(&name).ok()?,
            name: name.clone(),
            voice_id: name,
            description: description.to_owned(),
            language: String::new(),
        })
    }

    /// Sft with a voice that has a prompt means: as well as this voice can.
    fn mode(&self, utterance: &Utterance, voice: &Voice) -> Option<Mode> {
        match utterance.kind {
            Kind::Sft => None,
            _ if voice.speech_tokens.is_empty() && utterance.kind != Kind::Instruct => None,
            Kind::ZeroShot => Some(Mode::ZeroShot),
            Kind::CrossLingual => Some(Mode::CrossLingual),
            Kind::Instruct => {
                let text = utterance.instruct_text.as_deref().unwrap_or_default();
                let instruction = self.synthesizer.frontend().prepare_instruction(text).tokens;
                Some(Mode::Instruct { instruction })
            }
        }
    }
}

/// Changes when a file of the folder does: names, sizes and times stand for contents of gigabytes.
fn fingerprint(dir: &Path) -> String {
    let mut files: Vec<(String, u64, u128)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            let modified = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name, meta.len(), modified.as_nanos()))
        })
        .collect();
    files.sort();
    hex(&Sha256::digest(format!("{files:?}"))[..16])
}

impl Synthesis for Speaker {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn builtin_voices(&self) -> Vec<BuiltinVoice> {
        let store = self.synthesizer.voices();
        let mut names = store.names();
        // Voices of the model come before those that the command line added.
        names.sort_by_key(|name| !store.builtin().contains_key(name));
        let mut voices: Vec<BuiltinVoice> =
            names.into_iter().filter_map(|n| self.named(n)).collect();
        add_numbered_names(&mut voices);
        voices
    }

    fn new_voices(&self) -> Vec<BuiltinVoice> {
        let store = self.synthesizer.voices();
        let none_before = store.names().is_empty();
        let names = store.read_new().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for new voices");
            Vec::new()
        });
        let mut voices = names.into_iter().filter_map(|n| self.named(n)).collect();
        if none_before {
            add_numbered_names(&mut voices);
        }
        voices
    }

    fn encode_prompt(
        &self,
        bytes: &[u8],
        text: Option<&str>,
        limit: Duration,
    ) -> Result<Prompt, SynthesisError> {
        let recording = audio::prompt::read(bytes, MAX_PROMPT_BYTES)?;
        if recording.seconds() > limit.as_secs_f64() {
            let limit_seconds = limit.as_secs_f64();
            return Err(audio::AudioError::TooLong { limit_seconds }.into());
        }
        let voice = self
            .synthesizer
            .encode_voice(bytes, text.unwrap_or_default());
        Ok(Prompt {
            voice: voice.map_err(|e| explain(e, "prompt_text"))?,
            duration: Duration::from_secs_f64(recording.seconds()),
        })
    }

    fn prepare(
        &self,
        utterance: &Utterance,
        voice: &Arc<Voice>,
    ) -> Result<Prepared, SynthesisError> {
        let language = utterance
            .language
            .as_deref()
            .map(str::parse::<Language>)
            .transpose();
        let lexicon = match utterance.lexicon.is_empty() {
            true => None,
            false => Some(Arc::new(
                Lexicon::from_pairs(&utterance.lexicon)
                    .map_err(|e| explain(e.into(), "lexicon"))?,
            )),
        };
        let text_options = TextOptions {
            language: language.map_err(|e| SynthesisError::Field {
                field: "language",
                word: "unknown_language",
                message: e.to_string(),
            })?,
            normalization: utterance.normalization,
            lexicon,
        };
        let prepared = self.synthesizer.prepare(&engine::Utterance {
            text: utterance.text.clone(),
            mode: self.mode(utterance, voice),
            voice: VoiceChoice::Given(Arc::clone(voice)),
            text_options,
            ..engine::Utterance::default()
        });
        let prepared = prepared.map_err(|e| explain(e, "text"))?;
        Ok(Prepared {
            segments: prepared.request.segments,
            mode: prepared.request.mode,
            normalized_text: prepared.normalized_text,
        })
    }

    fn submit(&self, request: Request) -> Result<Job, EngineError> {
        self.synthesizer.submit(request)
    }

    fn stats(&self) -> EngineStats {
        self.synthesizer.engine().stats()
    }
}

/// Clients count on `pretrained_voice_001`: a model whose voices have other names gets numbered ones beside them.
fn add_numbered_names(voices: &mut Vec<BuiltinVoice>) {
    const PREFIX: &str = "pretrained_voice_";
    if voices.iter().any(|v| v.voice_id.starts_with(PREFIX)) {
        return;
    }
    let numbered: Vec<BuiltinVoice> = voices
        .iter()
        .enumerate()
        .map(|(n, voice)| BuiltinVoice {
            voice_id: format!("{PREFIX}{:03}", n + 1),
            ..voice.clone()
        })
        .collect();
    voices.extend(numbered);
}

/// What a user can do about an error of text or voice.
fn explain(error: Error, field: &'static str) -> SynthesisError {
    let message = error.to_string();
    match error {
        Error::Audio(error) | Error::Voice(VoiceError::Audio(error)) => error.into(),
        Error::Text(TextError::NothingToSay) => SynthesisError::Field {
            field,
            word: "nothing_to_say",
            message,
        },
        Error::Text(TextError::TokenizerFile { .. }) => SynthesisError::Internal(message),
        Error::Text(error) => SynthesisError::Field {
            field,
            word: match error {
                TextError::Ssml { .. } => "malformed_ssml",
                TextError::Pause { .. } => "malformed_pause",
                TextError::Lexicon { .. } => "malformed_lexicon",
                TextError::Pinyin { .. } => "unknown_pinyin",
                _ => "unreadable_text",
            },
            message,
        },
        Error::VoiceLacks(_) | Error::NoVoiceEncoder => SynthesisError::VoiceUnsuitable(message),
        _ => SynthesisError::Internal(message),
    }
}
