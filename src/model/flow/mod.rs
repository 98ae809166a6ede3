//! Speech tokens to mel: upsampling conformer encoder, then causal conditional flow matching
//! (`flow/flow.py` of the reference, `CausalMaskedDiffWithXvec`).
//!
//! Everything is ragged: [`Flow::encode`] takes utterances of any lengths and modes, [`Flow::euler_step`] advances
//! utterances at any steps, so that a scheduler can let them join and leave between Euler steps. What an utterance
//! becomes depends on its own input alone.

mod cfm;
mod encoder;
mod estimator;
mod layers;
mod noise;
mod positions;
mod prefix;
pub mod streaming;

pub use cfm::FlowState;
pub use noise::fixed_noise;
pub use prefix::FlowPrefix;

use cfm::{Cfm, CfmWorkspace, Schedule};
use encoder::{Encoder, EncoderWorkspace, TokenSpan};
use estimator::Estimator;

use std::ops::Range;

use super::config::FlowConfig;
use super::voice::Voice;
use crate::backend::{Backend, Epilogue, Result};
use crate::checkpoint::Scope;
use crate::tensor::{Ids, Segments, Tensor, Trace};

/// Floor of the speaker embedding's norm (`torch.nn.functional.normalize`).
const NORM_EPS: f32 = 1e-12;

/// What the flow is to speak.
#[derive(Clone, Copy, Debug)]
pub struct FlowInput<'a> {
    /// Speaker embedding, and the prompt's speech tokens and mel if there are any.
    pub voice: &'a Voice,
    /// Speech tokens after the prompt. Negative ids count as 0.
    pub tokens: &'a [i32],
    /// Attention in chunks instead of over the whole sequence.
    pub streaming: bool,
    /// Speak the last tokens too, instead of taking them as look-ahead.
    pub finalize: bool,
}

/// Why an input cannot be spoken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowInputError {
    #[error("the flow takes speaker embeddings of {expected} values, found {found}")]
    Embedding { expected: usize, found: usize },
    #[error("the prompt's mel has {found} values, which is not a multiple of {mels} channels")]
    PromptMel { mels: usize, found: usize },
    #[error("speech token {token} is outside of the vocabulary of {vocabulary}")]
    Token { token: i32, vocabulary: usize },
    #[error("{frames} mel frames do not reach past the prompt's {prompt}")]
    NothingToSpeak { frames: usize, prompt: usize },
    #[error("{frames} mel frames with the prompt are more than the flow's limit of {limit}")]
    TooLong { frames: usize, limit: usize },
}

/// The token-to-mel model.
pub struct Flow<B: Backend> {
    config: FlowConfig,
    /// `[V, I]`
    embedding: B::Embedding,
    speaker: B::Linear,
    encoder: Encoder<B>,
    encoder_proj: B::Linear,
    cfm: Cfm<B>,
    /// `[noise_len, C]`
    noise: Tensor<B>,
}

/// Buffers of the flow; one serves calls of any sizes, one at a time.
pub struct FlowWorkspace<B: Backend> {
    embedded: Tensor<B>,
    encoded: Tensor<B>,
    mu: Tensor<B>,
    ids: Ids<B>,
    tables: Ids<B>,
    encoder: EncoderWorkspace<B>,
    cfm: CfmWorkspace<B>,
}

impl<B: Backend> FlowWorkspace<B> {
    /// Empty buffers; they grow with use.
    ///
    /// # Errors
    /// When the backend cannot allocate.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            embedded: backend.alloc(0, 0)?,
            encoded: backend.alloc(0, 0)?,
            mu: backend.alloc(0, 0)?,
            ids: backend.ids(&[])?,
            tables: backend.ids(&[])?,
            encoder: EncoderWorkspace::new(backend)?,
            cfm: CfmWorkspace::new(backend)?,
        })
    }
}

impl<B: Backend> Flow<B> {
    /// Loads the tensors of `flow.pt`.
    ///
    /// # Errors
    /// When the backend cannot hold the weights. What is wrong with the checkpoint is noted in `scope`'s file.
    pub fn load(backend: &B, scope: &Scope<'_>, config: &FlowConfig) -> Result<Self> {
        let mels = config.output_size;
        if config.encoder.up_stride != config.token_mel_ratio {
            let (expected, found) = (config.token_mel_ratio, config.encoder.up_stride);
            scope.complain("encoder.up_layer", expected, found);
        }
        let schedule = Schedule::new(&config.cfm);
        let estimator = scope.at("decoder").at("estimator");
        let table = scope.weight(
            "input_embedding.weight",
            &[config.vocab_size, config.input_size],
        );
        let speaker = scope.at("spk_embed_affine_layer");
        let proj = scope.at("encoder_proj");
        let noise_len = config.cfm.noise_len;
        Ok(Self {
            embedding: backend.pack_embedding(&table)?,
            speaker: layers::linear(backend, &speaker, config.spk_embed_dim, mels)?,
            encoder: Encoder::load(
                backend,
                &scope.at("encoder"),
                &config.encoder,
                config.pre_lookahead_len,
            )?,
            encoder_proj: layers::linear(backend, &proj, config.encoder.output_size, mels)?,
            cfm: Cfm {
                estimator: Estimator::load(backend, &estimator, &config.estimator, &schedule.t)?,
                schedule,
                cfg_rate: config.cfm.inference_cfg_rate,
                mels,
                chunk: config.estimator.static_chunk_size,
            },
            noise: backend.tensor(noise_len, mels, &fixed_noise(mels, noise_len))?,
            config: config.clone(),
        })
    }

    /// Mel channels.
    pub fn mels(&self) -> usize {
        self.config.output_size
    }

    /// Mel frames per speech token.
    pub fn frames_per_token(&self) -> usize {
        self.config.token_mel_ratio
    }

    /// Speech tokens that a call that is not the last holds back.
    pub fn lookahead_tokens(&self) -> usize {
        self.config.pre_lookahead_len
    }

    /// Euler steps of an utterance.
    pub fn steps(&self) -> usize {
        self.cfm.schedule.t.len()
    }

    /// Values that a [`FlowPrefix`] keeps per mel frame it covers.
    pub fn prefix_values_per_frame(&self) -> usize {
        let estimator = &self.cfm.estimator;
        2 * self.steps() * estimator.layers() * estimator.channels()
    }

    /// Mel frames that an input will have, the prompt's included.
    ///
    /// # Errors
    /// When [`Flow::encode`] could not take it.
    pub fn check(&self, input: &FlowInput<'_>) -> std::result::Result<usize, FlowInputError> {
        let (voice, mels, vocabulary) = (input.voice, self.mels(), self.config.vocab_size);
        if voice.embedding.len() != self.config.spk_embed_dim {
            return Err(FlowInputError::Embedding {
                expected: self.config.spk_embed_dim,
                found: voice.embedding.len(),
            });
        }
        if !voice.mel.len().is_multiple_of(mels) {
            let found = voice.mel.len();
            return Err(FlowInputError::PromptMel { mels, found });
        }
        let mut tokens = voice.speech_tokens.iter().chain(input.tokens);
        if let Some(&token) = tokens.find(|&&t| t >= 0 && t as usize >= vocabulary) {
            return Err(FlowInputError::Token { token, vocabulary });
        }
        let frames = self.encoder.output_rows(self.span(input));
        let (prompt, limit) = (voice.mel.len() / mels, self.config.cfm.noise_len);
        if frames <= prompt {
            return Err(FlowInputError::NothingToSpeak { frames, prompt });
        }
        if frames > limit {
            return Err(FlowInputError::TooLong { frames, limit });
        }
        Ok(frames)
    }

    fn span(&self, input: &FlowInput<'_>) -> TokenSpan {
        TokenSpan {
            tokens: input.voice.speech_tokens.len() + input.tokens.len(),
            finalize: input.finalize,
            streaming: input.streaming,
        }
    }

    /// Encodes the inputs and sets `states` (as many) to the beginning of the ODE.
    ///
    /// # Errors
    /// When the backend fails.
    ///
    /// # Panics
    /// On an input that [`Flow::check`] refuses.
    pub fn encode(
        &self,
        backend: &B,
        inputs: &[FlowInput<'_>],
        states: &mut [&mut FlowState<B>],
        ws: &mut FlowWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        assert_eq!(inputs.len(), states.len(), "flow: one state per input");
        let check = |i| {
            self.check(i)
                .expect("flow inputs are checked. This is a bug.")
        };
        let lengths: Vec<usize> = inputs.iter().map(check).collect();
        if inputs.is_empty() {
            return Ok(());
        }
        self.embed(backend, inputs, ws)?;
        let spans: Vec<TokenSpan> = inputs.iter().map(|i| self.span(i)).collect();
        self.encoder.forward(
            backend,
            &ws.embedded,
            &spans,
            &mut ws.encoder,
            &mut ws.encoded,
            trace,
        )?;
        let segments = Segments::new(backend, &lengths)?;
        backend.resize(&mut ws.mu, segments.total(), self.mels())?;
        let proj = &self.encoder_proj;
        backend.linear(&ws.encoded, proj, Epilogue::None, &mut ws.mu)?;
        trace.record(backend, "flow.encoder_proj", &ws.mu)?;
        let speakers = self.project_speakers(backend, inputs, trace)?;
        for (b, (input, state)) in inputs.iter().zip(states).enumerate() {
            let rows = segments.range(b);
            self.start(backend, input, rows, &ws.mu, state)?;
            backend.copy_rows(&speakers, b, &mut state.speaker, 0, 1)?;
        }
        Ok(())
    }

    /// Sets a state to the beginning of the ODE; `rows` are the utterance's in `mu`.
    fn start(
        &self,
        backend: &B,
        input: &FlowInput<'_>,
        rows: Range<usize>,
        mu: &Tensor<B>,
        state: &mut FlowState<B>,
    ) -> Result<()> {
        let mels = self.mels();
        let chunk = self.whole_chunk();
        // A prefix serves chunked attention alone, and only within the utterance.
        state.prefix = (state.given.take())
            .filter(|p| input.streaming && chunk > 0 && p.frames() < rows.len());
        let first = state.prefix.as_ref().map_or(0, FlowPrefix::frames);
        if let Some(prefix) = &mut state.prefix {
            // The last rows of a final call had no look-ahead: they would come out differently in a longer one.
            let kept = if input.finalize { 0 } else { rows.len() };
            prefix.grow_by((kept / chunk * chunk).saturating_sub(first));
        }
        let count = rows.len() - first;
        for t in [&mut state.x, &mut state.mu, &mut state.cond] {
            backend.resize(t, count, mels)?;
        }
        backend.resize(&mut state.speaker, 1, mels)?;
        backend.copy_rows(&self.noise, first, &mut state.x, 0, count)?;
        backend.copy_rows(mu, rows.start + first, &mut state.mu, 0, count)?;
        let prompt = input.voice.mel.get(first * mels..).unwrap_or_default();
        let mut condition = prompt.to_vec();
        condition.resize(count * mels, 0.0);
        backend.upload(&condition, &mut state.cond)?;
        state.first_frame = first;
        state.prompt_frames = input.voice.mel.len() / mels;
        state.step = 0;
        state.steps = self.steps();
        state.streaming = input.streaming;
        Ok(())
    }

    /// Mel frames of which whole numbers are whole chunks of every chunked attention; 0 when one has no chunks.
    fn whole_chunk(&self) -> usize {
        let encoder = self.config.encoder.static_chunk_size * self.config.encoder.up_stride;
        least_common_multiple(encoder, self.cfm.chunk)
    }

    /// Token embeddings of all inputs, packed, in `ws.embedded`.
    fn embed(
        &self,
        backend: &B,
        inputs: &[FlowInput<'_>],
        ws: &mut FlowWorkspace<B>,
    ) -> Result<()> {
        let tokens: Vec<i32> = inputs
            .iter()
            .flat_map(|i| i.voice.speech_tokens.iter().chain(i.tokens))
            .map(|&t| t.max(0))
            .collect();
        backend.upload_ids(&tokens, &mut ws.ids)?;
        backend.upload_ids(&vec![0; tokens.len()], &mut ws.tables)?;
        backend.resize(&mut ws.embedded, tokens.len(), self.config.input_size)?;
        let table = [&self.embedding];
        backend.embed(&table, &ws.tables, &ws.ids, None, &mut ws.embedded)
    }

    /// Unit-length speaker embeddings, projected to `[B, C]`.
    fn project_speakers(
        &self,
        backend: &B,
        inputs: &[FlowInput<'_>],
        trace: &Trace,
    ) -> Result<Tensor<B>> {
        let embeddings: Vec<f32> = inputs
            .iter()
            .flat_map(|i| i.voice.embedding.iter().copied())
            .collect();
        let mut x = backend.tensor(inputs.len(), self.config.spk_embed_dim, &embeddings)?;
        backend.l2_normalize(&mut x, NORM_EPS)?;
        let mut speakers = backend.alloc(inputs.len(), self.mels())?;
        backend.linear(&x, &self.speaker, Epilogue::None, &mut speakers)?;
        trace.record(backend, "flow.spk_embed_affine_layer", &speakers)?;
        Ok(speakers)
    }

    /// Advances every state by one Euler step, each from where it is. With tracing on, the states should be at the same step.
    ///
    /// # Errors
    /// When the backend fails.
    ///
    /// # Panics
    /// On a state that is done.
    pub fn euler_step(
        &self,
        backend: &B,
        states: &mut [&mut FlowState<B>],
        ws: &mut FlowWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let running = states.iter().all(|s| !s.is_done());
        assert!(
            running,
            "flow: a finished state cannot step. This is a bug."
        );
        self.cfm.step(backend, states, &mut ws.cfm, trace)
    }

    /// The spoken mel of a finished state, without the prompt and the first `token_offset` speech tokens: `out [T, C]`.
    ///
    /// # Errors
    /// When the backend fails.
    pub fn mel(
        &self,
        backend: &B,
        state: &FlowState<B>,
        token_offset: usize,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        let spoken = state.prompt_frames + token_offset * self.frames_per_token();
        let first = spoken.checked_sub(state.first_frame);
        let first = first.expect("what a prefix covers has been spoken. This is a bug.");
        let rows = state.frames().saturating_sub(first);
        backend.resize(out, rows, self.mels())?;
        if rows > 0 {
            backend.copy_rows(&state.x, first, out, 0, rows)?;
        }
        Ok(())
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x).unwrap_or(0) * b
}

/// Frames of a mel of `frames` frames spoken at `speed` times the normal pace.
///
/// The speed counts as the shortest decimal that an f32 keeps: 0.8 means 0.8 even when it has been an f32 on the way,
/// because a frame more or less hangs on that.
pub fn frames_at_speed(frames: usize, speed: f64) -> usize {
    let decimal = (speed as f32).to_string().parse().unwrap_or(speed);
    (frames as f64 / decimal) as usize
}

/// Speeds a mel up or slows it down by linear interpolation (`cli/model.py`): `mel [T, C]` → `out [T / speed, C]`.
///
/// # Errors
/// When the backend fails.
pub fn change_speed<B: Backend>(
    backend: &B,
    mel: &Tensor<B>,
    speed: f64,
    out: &mut Tensor<B>,
) -> Result<()> {
    let (rows, mels) = mel.shape();
    let frames = frames_at_speed(rows, speed);
    backend.resize(out, frames, mels)?;
    let (from, to) = (
        Segments::new(backend, &[rows])?,
        Segments::new(backend, &[frames])?,
    );
    backend.interpolate_rows(mel, &from, out, &to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_means_its_decimal() {
        for (frames, speed, expected) in [(52, 0.8_f32, 65), (52, 1.3, 40), (100, 2.0, 50)] {
            assert_eq!(frames_at_speed(frames, f64::from(speed)), expected);
        }
        assert_eq!(frames_at_speed(52, 0.8), 65);
    }

    #[test]
    fn whole_chunks_are_whole_for_both() {
        let multiples =
            [(50, 50), (50, 20), (0, 50), (0, 0)].map(|(a, b)| least_common_multiple(a, b));
        assert_eq!(multiples, [50, 100, 0, 0]);
    }
}
