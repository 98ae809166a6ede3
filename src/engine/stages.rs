//! The computation of one iteration: each method runs one stage for the sequences that the scheduler chose, as one batch.

use std::collections::VecDeque;
use std::sync::Arc;

use super::request::{EngineError, Request};
use super::sequence::{Dims, PendingMel, Sequence};
use super::vocode::VocodeStage;
use crate::backend::{Backend, SampleParams};
use crate::model::flow::{Flow, FlowInput, FlowState, FlowWorkspace, change_speed};
use crate::model::llm::{Llm, LlmWorkspace, StepSequence};
use crate::model::vocoder::Hift;
use crate::tensor::{Ids, Trace};

/// Values that the prefixes of streamed flow calls may take, over all sequences: 2 GiB in f32.
const PREFIX_VALUES: usize = 1 << 29;

/// Euler steps and vocoder calls that the device may be behind: one in work, one that waits. With more, the first audio of a stream would wait for all
/// that was asked before.
const BACKLOG: usize = 2;

/// The models of one checkpoint on one device. Nothing on the device goes from the language model to the others: tokens come to the host in between.
pub(super) struct Models<B: Backend> {
    /// Runs flow and vocoder.
    pub(super) backend: B,
    /// Runs the language model, where it need not wait for the others.
    pub(super) urgent: Option<B>,
    pub(super) llm: Llm<B>,
    pub(super) flow: Flow<B>,
    pub(super) hift: Hift<B>,
}

impl<B: Backend> Models<B> {
    fn llm_backend(&self) -> &B {
        self.urgent.as_ref().unwrap_or(&self.backend)
    }
}

/// Models, KV cache and workspaces of one engine.
pub(super) struct Stages<B: Backend> {
    models: Models<B>,
    kv: B::KvCache,
    page_size: usize,
    sampling: SampleParams,
    llm_ws: LlmWorkspace<B>,
    flow_ws: FlowWorkspace<B>,
    vocoder: VocodeStage<B>,
    /// The last token of each sequence that decodes, by its first page.
    tokens: Ids<B>,
    /// Draws that are not read yet, oldest first.
    draws: VecDeque<Draws<B>>,
    /// The ends of Euler steps and vocoder calls that may not be done yet, oldest first.
    backlog: VecDeque<B::Mark>,
    trace: Arc<Trace>,
    tokens_drawn: u64,
}

/// Draws of one step and whose they are: job and part.
struct Draws<B: Backend> {
    drawn: B::Drawn,
    sequences: Vec<(u64, usize)>,
}

impl<B: Backend> Stages<B> {
    /// # Errors
    /// When the device has no room for the cache of `pages` pages.
    pub(super) fn new(
        models: Models<B>,
        pages: usize,
        page_size: usize,
        trace: Arc<Trace>,
    ) -> Result<Self, EngineError> {
        let (backend, llm_backend) = (&models.backend, models.llm_backend());
        Ok(Self {
            kv: llm_backend.alloc_kv(models.llm.kv_shape(pages, page_size))?,
            page_size,
            sampling: models.llm.config().sampling,
            llm_ws: LlmWorkspace::new(llm_backend)?,
            flow_ws: FlowWorkspace::new(backend)?,
            vocoder: VocodeStage::new(backend, &models.hift)?,
            tokens: llm_backend.ids(&vec![0; pages])?,
            draws: VecDeque::new(),
            backlog: VecDeque::new(),
            trace,
            tokens_drawn: 0,
            models,
        })
    }

    pub(super) fn sample_rate_hz(&self) -> u32 {
        self.models.hift.sample_rate_hz()
    }

    pub(super) fn tokens_drawn(&self) -> u64 {
        self.tokens_drawn
    }

    pub(super) fn dims(&self) -> Dims {
        Dims {
            vocabulary: self.models.llm.vocabulary(),
            token_mel_ratio: self.models.flow.frames_per_token(),
            pre_lookahead_len: self.models.flow.lookahead_tokens(),
        }
    }

    /// Whether the models can take a request at all.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self, request: &Request) -> Result<(), EngineError> {
        let invalid = |text: String| Err(EngineError::Invalid(text));
        if !(0.5..=2.0).contains(&request.speed) {
            return invalid(format!("speed {} is outside of 0.5 to 2.0", request.speed));
        }
        if request.stream && request.speed != 1.0 {
            return invalid("the speed can be changed only without streaming".to_owned());
        }
        let probe = FlowInput {
            voice: &request.voice,
            // More than any look-ahead, so that only the voice decides.
            tokens: &[0; 64],
            streaming: false,
            finalize: true,
        };
        self.models
            .flow
            .check(&probe)
            .map(|_| ())
            .map_err(|e| EngineError::Invalid(e.to_string()))
    }

    /// Runs the given rows of each sequence and asks for a token for those whose pending rows are all done. Takes the tokens that were asked for
    /// before, but for as many steps as the device may be ahead.
    pub(super) fn llm_step(
        &mut self,
        sequences: &mut [Sequence<B>],
        rows: &[(usize, usize)],
    ) -> Result<(), EngineError> {
        let (backend, llm) = (self.models.llm_backend(), &self.models.llm);
        let steps: Vec<StepSequence<'_>> = rows
            .iter()
            .filter_map(|&(i, n)| {
                let generation = sequences[i].generation.as_ref()?;
                let pending = generation.pending();
                Some(StepSequence {
                    inputs: &pending[..n],
                    context: generation.context(),
                    pages: sequences[i].kv_pages(),
                    logits: n == pending.len() && generation.draws_after_pending(),
                })
            })
            .collect();
        llm.step(
            backend,
            self.page_size,
            &steps,
            Some(&self.tokens),
            &mut self.kv,
            &mut self.llm_ws,
            &self.trace,
        )?;
        drop(steps);
        for &(i, n) in rows {
            if let Some(generation) = &mut sequences[i].generation {
                generation.advance(n);
            }
        }
        self.draw(sequences, rows)?;
        self.settle(sequences, B::DRAWS_AHEAD)
    }

    fn draw(
        &mut self,
        sequences: &mut [Sequence<B>],
        rows: &[(usize, usize)],
    ) -> Result<(), EngineError> {
        let wanting: Vec<usize> = rows
            .iter()
            .map(|r| r.0)
            .filter(|&i| sequences[i].wants_token())
            .collect();
        if wanting.is_empty() {
            return Ok(());
        }
        let (sample_rows, slots): (Vec<_>, Vec<_>) = wanting
            .iter()
            .filter_map(|&i| {
                let sequence = &sequences[i];
                Some((sequence.sample_row(self.sampling)?, sequence.slot()?))
            })
            .unzip();
        let drawn = self.models.llm_backend().draw(
            self.llm_ws.logits(),
            &sample_rows,
            &slots,
            &mut self.tokens,
        )?;
        drop(sample_rows);
        self.draws.push_back(Draws {
            drawn,
            sequences: wanting.iter().map(|&i| sequences[i].key()).collect(),
        });
        for i in wanting {
            sequences[i].run_ahead();
        }
        Ok(())
    }

    /// Hands out drawn tokens until at most `keep` steps are not read yet; waits for the device where it has to.
    pub(super) fn settle(
        &mut self,
        sequences: &mut [Sequence<B>],
        keep: usize,
    ) -> Result<(), EngineError> {
        while self.draws.len() > keep
            && let Some(draws) = self.draws.pop_front()
        {
            let drawn = self.models.llm_backend().drawn(draws.drawn)?;
            for (key, sampled) in draws.sequences.into_iter().zip(drawn) {
                // Cancelled and failed ones are gone.
                if let Some(sequence) = sequences.iter_mut().find(|s| s.key() == key) {
                    self.tokens_drawn += u64::from(sequence.accept(sampled));
                }
            }
        }
        Ok(())
    }

    /// Leaves what was asked for to nobody.
    pub(super) fn forget_draws(&mut self) {
        self.draws.clear();
    }

    /// Whether tokens were asked for and are not read yet.
    pub(super) fn is_ahead(&self) -> bool {
        !self.draws.is_empty()
    }

    /// One Euler step for each of `chosen`; a call that is new is encoded first, one that is finished leaves its mel.
    pub(super) fn flow_step(
        &mut self,
        sequences: &mut [Sequence<B>],
        chosen: &[usize],
    ) -> Result<(), EngineError> {
        let new: Vec<usize> = chosen
            .iter()
            .copied()
            .filter(|&i| sequences[i].flow.is_none())
            .collect();
        self.encode(sequences, &new)?;
        let Models { backend, flow, .. } = &self.models;
        let mut states: Vec<&mut FlowState<B>> = sequences
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| chosen.contains(i))
            .filter_map(|(_, s)| s.flow.as_mut())
            .collect();
        flow.euler_step(backend, &mut states, &mut self.flow_ws, &self.trace)?;
        drop(states);
        for &i in chosen {
            if sequences[i].flow.as_ref().is_some_and(FlowState::is_done) {
                self.take_mel(&mut sequences[i])?;
            }
        }
        self.backlog.push_back(self.models.backend.mark()?);
        Ok(())
    }

    /// Whether flow and vocoder have enough to do.
    pub(super) fn is_behind(&mut self) -> Result<bool, EngineError> {
        let backend = &self.models.backend;
        while let Some(mark) = self.backlog.front()
            && backend.is_reached(mark)?
        {
            self.backlog.pop_front();
        }
        Ok(self.backlog.len() >= BACKLOG)
    }

    /// Waits until they can take more.
    pub(super) fn catch_up(&mut self) -> Result<(), EngineError> {
        while self.backlog.len() >= BACKLOG
            && let Some(mark) = self.backlog.pop_front()
        {
            self.models.backend.reach(&mark)?;
        }
        Ok(())
    }

    fn encode(&mut self, sequences: &mut [Sequence<B>], new: &[usize]) -> Result<(), EngineError> {
        if new.is_empty() {
            return Ok(());
        }
        let Models { backend, flow, .. } = &self.models;
        let mut states = Vec::with_capacity(new.len());
        for _ in new {
            states.push(FlowState::new(backend)?);
        }
        self.lend_prefixes(sequences, new, &mut states);
        let inputs: Vec<FlowInput<'_>> = new
            .iter()
            .filter_map(|&i| sequences[i].flow_input())
            .collect();
        for input in &inputs {
            flow.check(input)
                .map_err(|e| EngineError::Invalid(e.to_string()))?;
        }
        let mut refs: Vec<&mut FlowState<B>> = states.iter_mut().collect();
        flow.encode(backend, &inputs, &mut refs, &mut self.flow_ws, &self.trace)?;
        for (&i, state) in new.iter().zip(states) {
            sequences[i].flow = Some(state);
        }
        Ok(())
    }

    /// Has streamed calls start from what the calls before left, as long as there is memory to keep it.
    fn lend_prefixes(
        &self,
        sequences: &mut [Sequence<B>],
        new: &[usize],
        states: &mut [FlowState<B>],
    ) {
        let limit = PREFIX_VALUES / self.models.flow.prefix_values_per_frame().max(1);
        let mut kept: usize = sequences.iter().map(|s| s.prefix_frames).sum();
        for (&i, state) in new.iter().zip(states) {
            let sequence = &mut sequences[i];
            let prefix = sequence.prefix.take();
            kept -= std::mem::take(&mut sequence.prefix_frames);
            let streaming = sequence.call.filter(|call| call.streaming);
            let frames = streaming.map_or(0, |call| sequence.frames(call));
            if frames > 0 && kept + frames <= limit {
                kept += frames;
                sequence.prefix_frames = frames;
                state.set_prefix(prefix.unwrap_or_default());
            }
        }
    }

    /// Hands the mel of a finished call on to the vocoder.
    fn take_mel(&mut self, sequence: &mut Sequence<B>) -> Result<(), EngineError> {
        let (Some(mut state), Some(call)) = (sequence.flow.take(), sequence.call.take()) else {
            return Ok(());
        };
        sequence.prefix = state.take_prefix();
        let Models { backend, flow, .. } = &self.models;
        let mut mel = backend.alloc_f32(0, 0)?;
        flow.mel(backend, &state, call.token_offset, &mut mel)?;
        if sequence.request.speed != 1.0 {
            let mut changed = backend.alloc_f32(0, 0)?;
            change_speed(
                backend,
                &mel,
                f64::from(sequence.request.speed),
                &mut changed,
            )?;
            mel = changed;
        }
        sequence.mel = Some(PendingMel {
            mel,
            first_frame: call.token_offset * flow.frames_per_token(),
            last: call.finalize,
        });
        sequence.poll_flow();
        Ok(())
    }

    /// Share of the Euler steps of a sequence's call that are done.
    pub(super) fn flow_share(&self, sequence: &Sequence<B>) -> f32 {
        sequence.flow.as_ref().map_or(0.0, |state| {
            1.0 - state.steps_left() as f32 / self.models.flow.steps() as f32
        })
    }

    /// Vocodes the waiting mel of each of `chosen`: `(sequence, samples, last)`.
    pub(super) fn vocode(
        &mut self,
        sequences: &mut [Sequence<B>],
        chosen: &[usize],
    ) -> Result<Vec<(usize, Vec<f32>, bool)>, EngineError> {
        let Models { backend, hift, .. } = &self.models;
        self.vocoder
            .run(backend, hift, sequences, chosen, &self.trace)
    }
}
