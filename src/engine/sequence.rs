//! One part of a request on its way through the stages: state and rules, no computation.
//!
//! A sequence may be in several stages at once: while the language model still draws tokens, a streamed sequence already has a flow call
//! under way and a chunk at the vocoder.

use std::sync::Arc;
use std::time::Duration;

use super::blocks::{PageLease, PagePool};
use super::request::{EngineError, Mode, Request, Segment};
use super::scheduler::{LlmState, View};
use crate::backend::{Backend, SampleParams, SampleRow, Sampled, Uniforms};
use crate::model::flow::streaming::{FlowCall, HOP_TOKENS, StreamSchedule};
use crate::model::flow::{FlowInput, FlowPrefix, FlowState};
use crate::model::llm::{Conditioning, Generation, PromptError, Vocabulary};
use crate::model::voice::Voice;
use crate::tensor::Tensor;

/// Sizes of the models that the rules need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    pub(super) vocabulary: Vocabulary,
    pub(super) token_mel_ratio: usize,
    pub(super) pre_lookahead_len: usize,
}

/// Mel that waits for the vocoder.
pub(super) struct PendingMel<B: Backend> {
    /// New frames `[T, mels]`.
    pub(super) mel: Tensor<B>,
    /// Frames of the utterance before these.
    pub(super) first_frame: usize,
    /// No more will come.
    pub(super) last: bool,
}

/// What the vocoder keeps between the chunks of a streamed sequence.
pub(super) struct VocoderCache<B: Backend> {
    /// Last frames, `[8, mels]`.
    pub(super) mel: Tensor<B>,
    /// Their excitation `[8 · hop, 1]`.
    pub(super) source: Tensor<B>,
    /// Their samples, held back to be faded into the next chunk.
    pub(super) speech: Vec<f32>,
}

/// One part of a request.
pub(super) struct Sequence<B: Backend> {
    /// The request and the part's place in it.
    pub(super) job: u64,
    pub(super) part: usize,
    arrival: u64,
    client: u64,
    pub(super) request: Arc<Request>,
    /// What the flow sees of the voice.
    flow_voice: Arc<Voice>,
    /// Seed of this part: parts of one request draw different numbers.
    pub(super) seed: u64,
    /// When it last got service.
    pub(super) served: Duration,
    /// When the audio sent so far runs out.
    pub(super) audio_until: Option<Duration>,
    /// The language model's side; `None` when the speech tokens were given.
    pub(super) generation: Option<Generation>,
    lease: Option<PageLease>,
    admitted: bool,
    text_tokens: usize,
    tokens: Vec<i32>,
    /// Recorded random numbers that were used, and vocoder calls that were made.
    uniforms_used: usize,
    vocoder_calls: usize,
    /// Chunk rules of a streamed sequence.
    schedule: Option<StreamSchedule>,
    /// The flow call that is ready or under way.
    pub(super) call: Option<FlowCall>,
    pub(super) flow: Option<FlowState<B>>,
    /// What the streamed flow calls so far leave for the next, and the most frames that it covers once the running call is done.
    pub(super) prefix: Option<FlowPrefix<B>>,
    pub(super) prefix_frames: usize,
    /// Whether the last call was made.
    flow_ended: bool,
    pub(super) mel: Option<PendingMel<B>>,
    pub(super) cache: Option<VocoderCache<B>>,
    /// Everything was delivered.
    pub(super) done: bool,
    failure: Option<EngineError>,
    dims: Dims,
}

/// The parts of a request that are spoken (pauses are not sequences), with their places.
pub(super) struct Arrival {
    pub(super) job: u64,
    pub(super) first: u64,
    pub(super) client: u64,
    pub(super) now: Duration,
}

impl<B: Backend> Sequence<B> {
    /// Part `part` of a request; `None` for a pause.
    ///
    /// # Errors
    /// Tokens that the model does not know.
    pub(super) fn new(
        request: &Arc<Request>,
        part: usize,
        arrival: &Arrival,
        dims: Dims,
    ) -> Result<Option<Self>, PromptError> {
        let voice = &request.voice;
        let conditioning = match &request.mode {
            Mode::Sft | Mode::CrossLingual => Conditioning::NONE,
            Mode::ZeroShot => Conditioning::zero_shot(&voice.prompt_text, &voice.speech_tokens),
            Mode::Instruct { instruction } => Conditioning::instruct(instruction),
        };
        let (generation, tokens, text_tokens) = match &request.segments[part] {
            Segment::Pause { .. } => return Ok(None),
            Segment::SpeechTokens(tokens) => {
                dims.vocabulary.check_speech(tokens)?;
                (None, tokens.clone(), 0)
            }
            Segment::Speech(text) => {
                let generation = Generation::new(dims.vocabulary, conditioning, text)?;
                (Some(generation), Vec::new(), text.len())
            }
        };
        let flow_voice = match request.mode {
            Mode::Sft => Arc::new(Voice {
                embedding: voice.embedding.clone(),
                ..Voice::default()
            }),
            _ => Arc::clone(voice),
        };
        let schedule = request.stream.then(|| {
            let prompt_tokens = flow_voice.speech_tokens.len();
            StreamSchedule::new(HOP_TOKENS, dims.pre_lookahead_len, prompt_tokens)
        });
        let mut sequence = Self {
            job: arrival.job,
            part,
            arrival: arrival.first + part as u64,
            client: arrival.client,
            request: Arc::clone(request),
            flow_voice,
            seed: part_seed(request.seed, part),
            served: arrival.now,
            audio_until: None,
            generation,
            lease: None,
            admitted: false,
            text_tokens,
            tokens,
            uniforms_used: 0,
            vocoder_calls: 0,
            schedule,
            call: None,
            flow: None,
            prefix: None,
            prefix_frames: 0,
            flow_ended: false,
            mel: None,
            cache: None,
            done: false,
            failure: None,
            dims,
        };
        sequence.poll_flow();
        Ok(Some(sequence))
    }

    /// What the scheduler has to know.
    pub(super) fn view(&self, pool: &PagePool) -> View {
        let llm = match &self.generation {
            _ if !self.admitted => LlmState::Waiting {
                pages: self.pages(pool),
            },
            Some(g) if g.stop().is_none() => match g.pending().len() {
                0 => LlmState::Idle,
                1 => LlmState::Decode,
                rows => LlmState::Prefill { rows },
            },
            _ => LlmState::Idle,
        };
        View {
            arrival: self.arrival,
            client: self.client,
            stream: self.request.stream,
            audio_until: self.audio_until,
            served: self.served,
            llm,
            // Chunks of one sequence are vocoded in order: the next waits for the one before.
            flow: self
                .call
                .filter(|_| self.admitted && self.mel.is_none())
                .map(|c| self.frames(c)),
            vocoder: self.mel.as_ref().map(|m| m.mel.rows()),
        }
    }

    /// Most pages that the sequence can come to need: taken at admission, so that none ever waits half-way.
    fn pages(&self, pool: &PagePool) -> usize {
        let positions = self.generation.as_ref().and_then(Generation::max_positions);
        pool.pages_for(positions.unwrap_or(0))
    }

    /// Whether the pool could ever hold it.
    pub(super) fn fits(&self, pool: &PagePool) -> bool {
        self.pages(pool) <= pool.total()
    }

    /// Takes its slot and pages; `false` when the pages are not there.
    pub(super) fn admit(&mut self, pool: &PagePool) -> bool {
        let lease = pool.lease(self.pages(pool) * pool.page_size());
        self.admitted = lease.is_some();
        self.lease = lease;
        self.admitted
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// Its pages in the KV cache.
    pub(super) fn kv_pages(&self) -> &[u32] {
        self.lease.as_ref().map_or(&[], PageLease::pages)
    }

    /// How to draw the next token; `None` when none is wanted.
    pub(super) fn sample_row(&self, params: SampleParams) -> Option<SampleRow<'_>> {
        let generation = self.generation.as_ref()?;
        let Some(draws) = &self.request.draws else {
            return Some(generation.sample_row(params, self.seed));
        };
        let uniform = |i: usize| {
            draws
                .uniforms
                .get(self.uniforms_used + i)
                .copied()
                .unwrap_or(0.5)
        };
        let given = Uniforms::Given([uniform(0), uniform(1)]);
        Some(generation.sample_row_with(params, given))
    }

    /// Recorded noise of the next vocoder call, `[rows, harmonics]`; `None` when the seed makes it.
    pub(super) fn next_noise(&mut self, rows: usize) -> Option<Vec<f32>> {
        let draws = self.request.draws.as_ref()?;
        let first = draws
            .noise_offsets
            .get(self.vocoder_calls)
            .copied()
            .unwrap_or(0);
        self.vocoder_calls += 1;
        let width = draws.harmonics;
        let pool = draws.noise.len() / width.max(1);
        let row = |t: usize| &draws.noise[(first + t) % pool * width..][..width];
        Some((0..rows).flat_map(row).copied().collect())
    }

    /// What tells it from all others.
    pub(super) fn key(&self) -> (u64, usize) {
        (self.job, self.part)
    }

    /// Where its last token stays on the device: no other sequence has its first page.
    pub(super) fn slot(&self) -> Option<u32> {
        self.kv_pages().first().copied()
    }

    pub(super) fn wants_token(&self) -> bool {
        (self.generation.as_ref()).is_some_and(Generation::wants_token)
    }

    /// Notes that its token was asked for. The next row goes ahead, unless recorded random numbers are used: how many a token took decides which
    /// come next.
    pub(super) fn run_ahead(&mut self) {
        let slot = self.slot().filter(|_| self.request.draws.is_none());
        if let Some(generation) = &mut self.generation {
            generation.run_ahead(slot);
        }
    }

    /// Takes a drawn token; whether it was one: after the end it is nothing.
    pub(super) fn accept(&mut self, sampled: Sampled) -> bool {
        let Some(generation) = &mut self.generation else {
            return false;
        };
        if generation.stop().is_some() {
            return false;
        }
        self.uniforms_used += sampled.draws as usize;
        self.tokens.extend(generation.accept(sampled.token));
        if generation.stop().is_some() {
            // The cache is not needed any more: let others have the pages now.
            self.lease = None;
        }
        self.poll_flow();
        true
    }

    /// Speech tokens so far.
    pub(super) fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    pub(super) fn text_tokens(&self) -> usize {
        self.text_tokens
    }

    fn llm_ended(&self) -> bool {
        self.generation.as_ref().is_none_or(|g| g.stop().is_some())
    }

    /// Decides on the next flow call when none is under way.
    pub(super) fn poll_flow(&mut self) {
        if self.call.is_some() || self.flow_ended {
            return;
        }
        let (available, ended) = (self.tokens.len(), self.llm_ended());
        self.call = match &mut self.schedule {
            Some(schedule) => schedule.next(available, ended),
            None => ended.then(|| FlowCall::offline(available)),
        };
        self.flow_ended = self.call.is_some_and(|c| c.finalize);
        if self.flow_ended && available == 0 {
            // The model had nothing to say for this part.
            self.call = None;
            self.done = true;
        }
    }

    /// Input of the flow call that is ready.
    pub(super) fn flow_input(&self) -> Option<FlowInput<'_>> {
        let call = self.call?;
        Some(FlowInput {
            voice: &self.flow_voice,
            tokens: &self.tokens[..call.tokens],
            streaming: call.streaming,
            finalize: call.finalize,
        })
    }

    /// Mel frames of a flow call, the prompt's included.
    pub(super) fn frames(&self, call: FlowCall) -> usize {
        (self.flow_voice.speech_tokens.len() + call.tokens) * self.dims.token_mel_ratio
    }

    /// Marks the sequence's request as failed; the first error stays.
    pub(super) fn fail(&mut self, error: EngineError) {
        self.failure.get_or_insert(error);
    }

    /// Why the request failed, if it did.
    pub(super) fn take_failure(&mut self) -> Option<EngineError> {
        self.failure.take()
    }

    /// Share of the sequence's work that is done, by the usual lengths of the stages: the language model's tokens against their expected
    /// number, then Euler steps, then the vocoder.
    pub(super) fn share(&self, flow_steps: f32) -> f32 {
        const LLM: f32 = 0.35;
        const FLOW: f32 = 0.5;
        const VOCODER: f32 = 1.0 - LLM - FLOW;
        if self.done {
            return 1.0;
        }
        let expected = (self.text_tokens * EXPECTED_TOKENS_PER_TEXT_TOKEN).max(1) as f32;
        let llm = if self.llm_ended() {
            1.0
        } else {
            (self.tokens.len() as f32 / expected).min(0.95)
        };
        let total = if self.llm_ended() {
            self.tokens.len() as f32
        } else {
            expected
        };
        let spoken = |tokens: usize| (tokens as f32 / total.max(1.0)).min(1.0);
        let (offset, to) = self.call.map_or((0, 0), |c| (c.token_offset, c.tokens));
        let before = if self.call.is_some() {
            spoken(offset)
        } else {
            f32::from(u8::from(self.flow_ended))
        };
        let flow = before + (spoken(to) - before).max(0.0) * flow_steps;
        LLM * llm + FLOW * flow.min(1.0) + VOCODER * before.min(flow)
    }
}

/// Speech tokens that a text token usually becomes; only for the display of progress.
const EXPECTED_TOKENS_PER_TEXT_TOKEN: usize = 6;

/// A different seed for every part (SplitMix64's mixing function); the first part keeps the request's own.
fn part_seed(seed: u64, part: usize) -> u64 {
    if part == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add((part as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
