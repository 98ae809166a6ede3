//! From a prompt recording to a [`Voice`], as `CosyVoiceFrontEnd.frontend_zero_shot` (`cli/frontend.py`).
//!
//! In: bytes or samples of a recording and the tokens of its text; out: speaker embedding, speech tokens and mel, the last two
//! trimmed so that they last equally long.

use super::Voice;
use crate::audio::features::{
    FbankParams, Features, MelParams, WhisperParams, kaldi_fbank, mel_spectrogram, subtract_mean,
    whisper_log_mel,
};
use crate::audio::{Audio, AudioError, prompt};
use crate::backend::BackendError;
use crate::checkpoint::Scope;
use crate::cpu::{Cpu, CpuOptions, WeightPrecision};
use crate::model::config::{MelConfig, SpeakerConfig, SpeechTokensConfig};
use crate::model::speaker::SpeakerEncoder;
use crate::model::speech_tokens::SpeechTokenizer;
use crate::tensor::Trace;

/// Why a recording did not become a voice.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VoiceError {
    /// The recording cannot be read or breaks a rule of prompts.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// Memory ran out.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The prompt encoders with their weights. They run on the CPU in f32 whatever the other models do: a voice is encoded once,
/// and its tokens must not depend on a precision.
pub struct VoiceEncoder {
    cpu: Cpu,
    speaker: SpeakerEncoder,
    tokenizer: SpeechTokenizer,
    mel: MelParams,
    /// Mel frames of a speech token.
    ratio: usize,
}

impl VoiceEncoder {
    /// Reads the weights of both encoders. `threads` is as in [`CpuOptions`], `ratio` the mel frames of a speech token.
    ///
    /// # Errors
    /// When memory runs out. Missing weights are noted in the scopes' files.
    pub fn load(
        threads: usize,
        (speaker, speaker_config): (&Scope<'_>, &SpeakerConfig),
        (tokens, tokens_config): (&Scope<'_>, &SpeechTokensConfig),
        mel: &MelConfig,
        ratio: usize,
    ) -> Result<Self, BackendError> {
        let cpu = Cpu::new(CpuOptions {
            threads,
            weights: WeightPrecision::F32,
        });
        Ok(Self {
            speaker: SpeakerEncoder::load(&cpu, speaker, speaker_config)?,
            tokenizer: SpeechTokenizer::load(&cpu, tokens, tokens_config)?,
            cpu,
            mel: MelParams::from(mel),
            ratio,
        })
    }

    /// A voice from the bytes of a recording of at most `max_bytes`.
    ///
    /// # Errors
    /// Undecodable bytes, a broken rule of [`prompt`], or no memory.
    pub fn encode_bytes(
        &self,
        bytes: &[u8],
        max_bytes: usize,
        prompt_text: Vec<i32>,
        trace: &Trace,
    ) -> Result<Voice, VoiceError> {
        self.encode(&prompt::read(bytes, max_bytes)?, prompt_text, trace)
    }

    /// A voice from samples.
    ///
    /// # Errors
    /// A broken rule of [`prompt`], or no memory.
    pub fn encode(
        &self,
        audio: &Audio,
        prompt_text: Vec<i32>,
        trace: &Trace,
    ) -> Result<Voice, VoiceError> {
        prompt::check(audio)?;
        let mut mel = mel_spectrogram(&prompt::at_rate(audio, self.mel.rate_hz), &self.mel)?;
        let mut tokens = self.speech_tokens(audio, trace)?;
        let length = tokens.len().min(mel.rows / self.ratio);
        tokens.truncate(length);
        mel.data.truncate(length * self.ratio * mel.bins);
        Ok(Voice {
            embedding: self.embedding(audio, trace)?,
            prompt_text,
            speech_tokens: tokens,
            mel: mel.data,
        })
    }

    /// All speech tokens of a recording, also the source of a voice conversion.
    ///
    /// # Errors
    /// A broken rule of [`prompt`], or no memory.
    pub fn speech_tokens(&self, audio: &Audio, trace: &Trace) -> Result<Vec<i32>, VoiceError> {
        prompt::check(audio)?;
        let params = WhisperParams::standard(self.tokenizer.config().num_mels);
        let features = whisper_log_mel(&prompt::at_rate(audio, params.rate_hz), &params)?;
        record(trace, "prompt.log_mel", &features);
        Ok(self.tokenizer.encode(&self.cpu, &features, trace)?)
    }

    /// The speaker embedding of a recording.
    ///
    /// # Errors
    /// A broken rule of [`prompt`], or no memory.
    pub fn embedding(&self, audio: &Audio, trace: &Trace) -> Result<Vec<f32>, VoiceError> {
        prompt::check(audio)?;
        let params = FbankParams::standard(self.speaker.config().feat_dim);
        let mut features = kaldi_fbank(&prompt::at_rate(audio, params.rate_hz), &params)?;
        subtract_mean(&mut features);
        record(trace, "prompt.fbank", &features);
        Ok(self.speaker.encode(&self.cpu, &features, trace)?)
    }
}

fn record(trace: &Trace, name: &str, features: &Features) {
    if trace.is_on() {
        trace.record_host(name, features.rows, features.bins, features.data.clone());
    }
}

impl From<&MelConfig> for MelParams {
    fn from(c: &MelConfig) -> Self {
        Self {
            n_fft: c.n_fft,
            num_mels: c.num_mels,
            rate_hz: c.sampling_rate as u32,
            hop: c.hop_size,
            window: c.win_size,
            min_hz: f64::from(c.fmin),
            max_hz: c.fmax.map(f64::from),
        }
    }
}
