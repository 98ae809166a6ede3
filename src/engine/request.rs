//! What goes into the engine and what comes out.

use std::sync::Arc;
use std::time::Duration;

use crate::model::voice::Voice;

/// How the voice and the text condition the language model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A known speaker: no prompt at all.
    Sft,
    /// Continue the prompt recording and its text.
    ZeroShot,
    /// The prompt's timbre only: its text and speech tokens are kept from the language model.
    CrossLingual,
    /// The prompt's timbre, and an instruction in words.
    Instruct { instruction: Vec<i32> },
}

/// One utterance: already normalised, split and tokenised text, and a voice.
#[derive(Clone, Debug)]
pub struct Request {
    /// Text tokens of each segment, in order. Segments are synthesised side by side and joined in order.
    pub segments: Vec<Segment>,
    pub mode: Mode,
    pub voice: Arc<Voice>,
    /// 0.5 to 2.0; other than 1.0 only without `stream`.
    pub speed: f32,
    /// Same request and seed, same samples.
    pub seed: u64,
    /// Emit [`Event::Audio`] while synthesising, by the official streaming rules.
    pub stream: bool,
    /// Requests of one client share its bound; empty for none.
    pub client: String,
    /// Recorded random numbers in place of the seed's, for comparison with a recorded run. Only for requests of one segment.
    pub draws: Option<Arc<Draws>>,
}

/// Random numbers of a recorded run, in the order of their use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draws {
    /// Of the sampler.
    pub uniforms: Vec<f64>,
    /// Pool of the excitation's noise, row-major `[rows, harmonics]`.
    pub noise: Vec<f32>,
    pub harmonics: usize,
    /// First row of the pool that each vocoder call uses; rows wrap around.
    pub noise_offsets: Vec<usize>,
}

/// One part of a request's text.
#[derive(Clone, Debug, PartialEq)]
pub enum Segment {
    /// Text tokens to speak; not empty.
    Speech(Vec<i32>),
    /// Speech tokens that are there already (voice conversion); the language model is left out.
    SpeechTokens(Vec<i32>),
    /// Silence of so many samples.
    Pause { samples: usize },
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Queued,
    Llm,
    Flow,
    Vocoder,
}

impl Stage {
    /// The word that users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Queued => "queued",
            Stage::Llm => "llm",
            Stage::Flow => "flow",
            Stage::Vocoder => "vocoder",
        }
    }
}

/// What happens to a request, in order; `Done` or `Failed` comes last, exactly once.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first step of work was done.
    Started,
    /// Share of the expected work done, 0 to 1, never going back.
    Progress {
        stage: Stage,
        fraction: f32,
    },
    /// The next samples, mono, at the model's rate.
    Audio(Vec<f32>),
    Done(Summary),
    Failed(EngineError),
}

/// Figures of a finished request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub samples: usize,
    pub sample_rate_hz: u32,
    pub text_tokens: usize,
    pub speech_tokens: usize,
    /// From admission to the last sample.
    pub synthesis_time: Duration,
    /// From admission to the first sample.
    pub first_audio: Duration,
}

/// Why a request was not taken or did not finish.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    #[error("the engine's queue is full ({limit} requests)")]
    QueueFull { limit: usize },
    #[error("the request was cancelled")]
    Cancelled,
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Backend(#[from] crate::backend::BackendError),
    #[error("the model produced no speech for this text")]
    NoSpeech,
    #[error("the engine has stopped")]
    Stopped,
    /// A bug met while computing this request; the engine goes on.
    #[error("internal error in the engine: {0}")]
    Internal(String),
}
