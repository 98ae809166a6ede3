//! A checkpoint ready to speak: front end, voices and engine in one place.
//!
//! Text and recordings go in as users have them; [`Synthesizer::prepare`] turns them into a [`Request`] of the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::device::{Device, Starting};
use super::request::{EngineError, Mode, Request, Segment};
use super::voices::VoiceStore;
use super::{EngineHandle, Job};
use crate::checkpoint::Checkpoint;
use crate::cpu::{CpuOptions, WeightPrecision};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::voice::{Voice, VoiceDims, VoiceEncoder};
use crate::tensor::Trace;
use crate::text::{Frontend, FrontendOptions, Lexicon, Part, TextOptions, Tokenizer};

/// How a checkpoint is loaded and run.
#[derive(Clone, Debug)]
pub struct SynthesizerOptions {
    pub device: Device,
    /// CPU threads; 0 = one per core.
    pub threads: usize,
    /// Precision of the weights on the CPU.
    pub weights: WeightPrecision,
    /// Folder of the voices that were added.
    pub voices_dir: PathBuf,
    /// Words that every text is read with.
    pub lexicon: Option<Arc<Lexicon>>,
    /// Sequences in synthesis at the same time; 0 = as many as memory allows.
    pub max_running: usize,
    /// Requests that may wait.
    pub queue_limit: usize,
    /// Keep named intermediates of everything that is computed.
    pub trace: bool,
}

impl Default for SynthesizerOptions {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            threads: 0,
            weights: WeightPrecision::F32,
            voices_dir: PathBuf::from("data/voices"),
            lexicon: None,
            max_running: 8,
            queue_limit: 1024,
            trace: false,
        }
    }
}

/// Largest prompt file: 30 s of stereo at 192 kHz in 32 bits fit.
const MAX_PROMPT_BYTES: usize = 50 << 20;

/// A text to speak and how.
#[derive(Clone, Debug)]
pub struct Utterance {
    pub text: String,
    /// Without it, what the voice has decides: a prompt with its text, a prompt alone, or an embedding.
    pub mode: Option<Mode>,
    pub voice: VoiceChoice,
    /// 0.5 to 2.0.
    pub speed: f32,
    pub seed: u64,
    pub stream: bool,
    pub text_options: TextOptions,
}

impl Default for Utterance {
    fn default() -> Self {
        Self {
            text: String::new(),
            mode: None,
            voice: VoiceChoice::Named(String::new()),
            speed: 1.0,
            seed: 0,
            stream: false,
            text_options: TextOptions::default(),
        }
    }
}

/// Whose voice.
#[derive(Clone, Debug)]
pub enum VoiceChoice {
    /// One of [`Synthesizer::voices`].
    Named(String),
    Given(Arc<Voice>),
}

/// An utterance as the engine takes it.
#[derive(Clone, Debug)]
pub struct PreparedUtterance {
    pub request: Request,
    /// The text as it will be read.
    pub normalized_text: String,
}

/// A loaded checkpoint with its engine.
pub struct Synthesizer {
    engine: EngineHandle,
    frontend: Frontend,
    encoder: Option<VoiceEncoder>,
    voices: VoiceStore,
    config: ModelConfig,
    device: String,
    max_running: usize,
    trace: Arc<Trace>,
}

impl Synthesizer {
    /// Loads the checkpoint in `dir` and starts its engine.
    ///
    /// # Errors
    /// Everything that is wrong with the checkpoint, a device that is not there, an unreadable voice folder.
    pub fn open(dir: &Path, options: &SynthesizerOptions) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let config = checkpoint.config().clone();
        let tokenizer = Arc::new(Tokenizer::load(&checkpoint.tokenizer_dir())?);
        let frontend = FrontendOptions {
            lexicon: options.lexicon.clone(),
            ..FrontendOptions::default()
        };
        let frontend = Frontend::new(tokenizer, frontend);
        let encoder = voice_encoder(&checkpoint, options.threads)?;
        checkpoint.finish()?;
        let dims = voice_dims(&config);
        let voices = VoiceStore::open(&options.voices_dir, dims, checkpoint.voices()?)?;
        let trace = Arc::new(if options.trace {
            Trace::on()
        } else {
            Trace::off()
        });
        drop(checkpoint);
        let started = Starting {
            dir,
            cpu: CpuOptions {
                threads: options.threads,
                weights: options.weights,
            },
            max_running: options.max_running,
            queue_limit: options.queue_limit,
            trace: Arc::clone(&trace),
        }
        .run(&options.device)?;
        Ok(Self {
            engine: started.engine,
            frontend,
            encoder,
            voices,
            config,
            device: started.device.to_string(),
            max_running: started.max_running,
            trace,
        })
    }

    /// Sizes and rates of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the models run.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Sequences that may be in synthesis at the same time.
    pub fn max_running(&self) -> usize {
        self.max_running
    }

    /// Samples per second of the audio.
    pub fn sample_rate_hz(&self) -> u32 {
        self.config.sample_rate as u32
    }

    /// Known voices: the model's own and those that were added.
    pub fn voices(&self) -> &VoiceStore {
        &self.voices
    }

    /// The voice of a request that names none: the first of the checkpoint's, else the first that was added.
    ///
    /// # Errors
    /// [`Error::NoVoices`].
    pub fn default_voice(&self) -> Result<String> {
        let builtin = self.voices.builtin().keys().next().cloned();
        builtin
            .or_else(|| self.voices.names().into_iter().next())
            .ok_or(Error::NoVoices)
    }

    /// The text front end.
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// The engine behind it.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// What has been traced so far; empty unless asked for when opening.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Encodes a recording and what is said in it (may be empty) as a voice.
    ///
    /// # Errors
    /// A recording that cannot serve, or a checkpoint without the encoders.
    pub fn encode_voice(&self, audio: &[u8], text: &str) -> Result<Voice> {
        let encoder = self.encoder.as_ref().ok_or(Error::NoVoiceEncoder)?;
        let prompt = self
            .frontend
            .prepare_prompt(text, &TextOptions::default())?;
        Ok(encoder.encode_bytes(audio, MAX_PROMPT_BYTES, prompt.tokens, &self.trace)?)
    }

    /// Turns an utterance into a request.
    ///
    /// # Errors
    /// Text that cannot be spoken, an unknown voice, a voice without what the mode needs.
    pub fn prepare(&self, utterance: &Utterance) -> Result<PreparedUtterance> {
        let voice = match &utterance.voice {
            VoiceChoice::Named(name) => self.voices.get(name)?,
            VoiceChoice::Given(voice) => Arc::clone(voice),
        };
        let mode = utterance
            .mode
            .clone()
            .unwrap_or_else(|| implied_mode(&voice));
        check_voice(&mode, &voice)?;
        let prepared = self
            .frontend
            .prepare(&utterance.text, &utterance.text_options)?;
        let rate_hz = f64::from(self.sample_rate_hz());
        let segments = prepared
            .parts
            .into_iter()
            .map(|part| match part {
                Part::Speech { tokens, .. } => Segment::Speech(tokens),
                Part::Pause { duration } => Segment::Pause {
                    samples: (duration.as_secs_f64() * rate_hz).round() as usize,
                },
            })
            .collect();
        Ok(PreparedUtterance {
            request: Request {
                segments,
                mode,
                voice,
                speed: utterance.speed,
                seed: utterance.seed,
                stream: utterance.stream,
                client: String::new(),
                draws: None,
            },
            normalized_text: prepared.normalized_text,
        })
    }

    /// Sends a request to the engine.
    ///
    /// # Errors
    /// See [`EngineHandle::submit`].
    pub fn submit(&self, request: Request) -> std::result::Result<Job, EngineError> {
        self.engine.submit(request)
    }
}

/// The encoders of prompts, when the checkpoint has both.
fn voice_encoder(checkpoint: &Checkpoint, threads: usize) -> Result<Option<VoiceEncoder>> {
    let config = checkpoint.config();
    let parts = (
        checkpoint.speaker().zip(config.speaker.as_ref()),
        checkpoint
            .speech_tokens()
            .zip(config.speech_tokens.as_ref()),
    );
    let (Some((speaker, speaker_config)), Some((tokens, tokens_config))) = parts else {
        return Ok(None);
    };
    Ok(Some(VoiceEncoder::load(
        threads,
        (&speaker, speaker_config),
        (&tokens, tokens_config),
        &config.feat_extractor,
        config.token_mel_ratio,
    )?))
}

fn voice_dims(config: &ModelConfig) -> VoiceDims {
    VoiceDims {
        embedding: config.flow.spk_embed_dim,
        mels: config.flow.output_size,
        ratio: config.token_mel_ratio,
        speech_vocabulary: config.llm.speech_token_size,
        text_vocabulary: config.llm.text_vocab_size,
    }
}

/// What a voice is made for, going by what it has.
fn implied_mode(voice: &Voice) -> Mode {
    match (voice.speech_tokens.is_empty(), voice.prompt_text.is_empty()) {
        (true, _) => Mode::Sft,
        (false, true) => Mode::CrossLingual,
        (false, false) => Mode::ZeroShot,
    }
}

fn check_voice(mode: &Mode, voice: &Voice) -> Result<()> {
    let lacks = match mode {
        Mode::ZeroShot if voice.speech_tokens.is_empty() => "a prompt recording",
        Mode::ZeroShot if voice.prompt_text.is_empty() => "the text of its prompt recording",
        Mode::CrossLingual if voice.speech_tokens.is_empty() => "a prompt recording",
        _ => return Ok(()),
    };
    Err(Error::VoiceLacks(lacks))
}
