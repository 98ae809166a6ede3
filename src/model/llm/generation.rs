//! The state of one sequence of the language model: what to feed next, what was drawn, when to stop.
//!
//! In: a prompt, then one drawn token at a time. Out: input rows, sampling rows, speech tokens. No tensor is seen here; the caller
//! owns the KV cache and runs [`Llm::step`](super::Llm::step) as
//!
//! ```text
//! while generation.stop().is_none():
//!     rows = some or all of generation.pending(), at positions generation.context()..
//!     run them; generation.advance(rows)
//!     if generation.wants_token(): draw from the logits of the last row with generation.sample_row(..); generation.accept(token)
//! ```
//!
//! Reference: `Qwen2LM.inference_wrapper` and `sampling_ids` (`cosyvoice/llm/llm.py`).

use super::InputToken;
use super::mixed::{Mixed, MixedStep};
use super::prompt::{Conditioning, Limits, PromptError, Vocabulary};
use crate::backend::{SampleParams, SampleRow, Uniforms};

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model drew the end token, or the special id given, which ends a sequence all the same.
    End(i32),
    /// As many tokens as the text may have.
    MaxLength,
    /// A mixed sequence drew a special id where the reference gives up: the rest of its text stays unspoken.
    Unexpected(i32),
}

enum Script {
    /// All text is known at the start.
    Whole(Limits),
    /// Text arrives while speech is drawn.
    Mixed(Mixed),
}

/// One sequence, from its prompt to its last token.
pub struct Generation {
    /// Every row fed or to be fed, in order.
    inputs: Vec<InputToken>,
    /// Rows that are in the KV cache.
    cached: usize,
    /// Everything drawn or forced, in order: what the sampler looks back on.
    history: Vec<i32>,
    vocabulary: Vocabulary,
    script: Script,
    stop: Option<Stop>,
}

impl Generation {
    /// A sequence whose text is known.
    ///
    /// # Errors
    /// No text, or a token that the model does not know.
    pub fn new(
        vocabulary: Vocabulary,
        conditioning: Conditioning<'_>,
        text: &[i32],
    ) -> Result<Self, PromptError> {
        conditioning.check(vocabulary)?;
        vocabulary.check_text(text)?;
        if text.is_empty() {
            return Err(PromptError::NoText);
        }
        Ok(Self {
            inputs: conditioning.assemble(text),
            cached: 0,
            history: Vec::new(),
            vocabulary,
            script: Script::Whole(Limits::of_text(text.len())),
            stop: None,
        })
    }

    /// A sequence whose text arrives in pieces ([`push_text`](Self::push_text), [`close_text`](Self::close_text)) and is mixed with
    /// speech: `mix_ratio[0]` text tokens, then `mix_ratio[1]` speech tokens, and so on.
    ///
    /// # Errors
    /// A token that the model does not know.
    pub fn streaming(
        vocabulary: Vocabulary,
        conditioning: Conditioning<'_>,
        mix_ratio: [usize; 2],
    ) -> Result<Self, PromptError> {
        conditioning.check(vocabulary)?;
        Ok(Self {
            inputs: vec![InputToken::Sos],
            cached: 0,
            history: Vec::new(),
            vocabulary,
            script: Script::Mixed(Mixed::new(conditioning, mix_ratio)),
            stop: None,
        })
    }

    /// Adds a piece of text to a [`streaming`](Self::streaming) sequence. The pieces matter: the reference takes at most one group of
    /// text tokens per piece; its own front end makes every token a piece.
    ///
    /// # Errors
    /// A token that the model does not know.
    ///
    /// # Panics
    /// When the sequence is not streaming or its text was closed.
    pub fn push_text(&mut self, piece: &[i32]) -> Result<(), PromptError> {
        self.vocabulary.check_text(piece)?;
        self.mixed().push(piece);
        self.turn();
        Ok(())
    }

    /// No more text will come.
    ///
    /// # Panics
    /// When the sequence is not streaming.
    pub fn close_text(&mut self) {
        self.mixed().close();
        self.turn();
    }

    fn mixed(&mut self) -> &mut Mixed {
        match &mut self.script {
            Script::Mixed(mixed) => mixed,
            Script::Whole(_) => {
                panic!("text pushed to a sequence whose text is known. This is a bug.")
            }
        }
    }

    /// Lets a mixed script go as far as it can without a token.
    fn turn(&mut self) {
        if let Script::Mixed(mixed) = &mut self.script {
            mixed.turn(&mut self.inputs, self.history.len());
        }
    }

    /// Rows to run next, at positions [`context`](Self::context) and on. Empty while a token is to be drawn, while text is awaited, and at the end.
    pub fn pending(&self) -> &[InputToken] {
        let runnable = match &self.script {
            Script::Whole(_) => true,
            Script::Mixed(mixed) => mixed.runnable(),
        };
        if runnable && self.stop.is_none() {
            &self.inputs[self.cached..]
        } else {
            &[]
        }
    }

    /// Every row fed or to be fed so far, in order.
    pub fn inputs(&self) -> &[InputToken] {
        &self.inputs
    }

    /// Positions that are in the KV cache.
    pub fn context(&self) -> usize {
        self.cached
    }

    /// Whether a token is to be drawn once all of [`pending`](Self::pending) has run.
    pub fn draws_after_pending(&self) -> bool {
        match &self.script {
            Script::Whole(_) => true,
            Script::Mixed(mixed) => mixed.runnable() && !mixed.forced(self.history.len()),
        }
    }

    /// Notes that the first `rows` pending rows have run.
    ///
    /// # Panics
    /// When so many were not pending.
    pub fn advance(&mut self, rows: usize) {
        assert!(
            rows <= self.pending().len(),
            "{rows} rows were not pending. This is a bug."
        );
        self.cached += rows;
        if self.cached < self.inputs.len() || rows == 0 {
            return;
        }
        if let Script::Mixed(mixed) = &mut self.script
            && mixed.forced(self.history.len())
        {
            mixed.fill(&mut self.history, self.vocabulary.fill());
            self.turn();
        }
    }

    /// Whether the logits of the last row that ran are to be sampled now.
    pub fn wants_token(&self) -> bool {
        self.stop.is_none() && self.cached == self.inputs.len() && self.draws_after_pending()
    }

    /// How to draw the next token: a function of this sequence and `seed` alone.
    pub fn sample_row(&self, params: SampleParams, seed: u64) -> SampleRow<'_> {
        let step = self.history.len() as u32;
        self.sample_row_with(params, Uniforms::Philox { seed, step })
    }

    /// The same with given random numbers.
    pub fn sample_row_with(&self, params: SampleParams, uniforms: Uniforms) -> SampleRow<'_> {
        let ends = match &self.script {
            Script::Whole(limits) => self.history.len() >= limits.min,
            Script::Mixed(mixed) => mixed.may_end(),
        };
        SampleRow {
            params,
            uniforms,
            history: &self.history,
            forbidden: (!ends).then(|| self.vocabulary.end()),
        }
    }

    /// Takes the drawn token; returns it when it is sound.
    ///
    /// # Panics
    /// When no token was wanted.
    pub fn accept(&mut self, token: i32) -> Option<i32> {
        assert!(self.wants_token(), "a token came unasked. This is a bug.");
        if !self.vocabulary.is_speech(token) {
            self.special(token);
            return None;
        }
        self.history.push(token);
        self.inputs.push(InputToken::Speech(token));
        let max = match &mut self.script {
            Script::Whole(limits) => Some(limits.max),
            Script::Mixed(mixed) => mixed.spoke(self.inputs.len()),
        };
        if max.is_some_and(|max| self.speech_tokens().count() >= max) {
            self.stop = Some(Stop::MaxLength);
        }
        Some(token)
    }

    fn special(&mut self, token: i32) {
        let Script::Mixed(mixed) = &mut self.script else {
            self.stop = Some(Stop::End(token));
            return;
        };
        match mixed.special(token, self.vocabulary) {
            MixedStep::End => self.stop = Some(Stop::End(token)),
            MixedStep::Unexpected => self.stop = Some(Stop::Unexpected(token)),
            MixedStep::Fill => {
                mixed.fill(&mut self.history, token);
                self.turn();
            }
        }
    }

    /// Why the sequence ended, once it has.
    pub fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// Speech tokens so far, in order.
    pub fn speech_tokens(&self) -> impl Iterator<Item = i32> + '_ {
        let vocabulary = self.vocabulary;
        self.history
            .iter()
            .copied()
            .filter(move |&id| vocabulary.is_speech(id))
    }

    /// Most positions that the sequence can take in the cache, where that is known.
    pub fn max_positions(&self) -> Option<usize> {
        match &self.script {
            // The last token is never fed.
            Script::Whole(limits) => {
                Some(self.inputs.len() - self.history.len() + limits.max.saturating_sub(1))
            }
            Script::Mixed(_) => None,
        }
    }

    /// Forgets what is in the cache: everything is pending again. Running it gives the same cache, value by value.
    pub fn rewind(&mut self) {
        self.cached = 0;
    }
}
