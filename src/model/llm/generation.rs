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
//! A device that draws without being waited for goes one step ahead: [`Generation::run_ahead`] in place of `accept` lets the next row run with
//! whatever was drawn, and `accept` follows when the token is known.
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
    /// Draws that were asked for and are not known yet, and how many of them are rows at the end of `inputs` already.
    unknown: usize,
    rows_ahead: usize,
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
            unknown: 0,
            rows_ahead: 0,
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
            unknown: 0,
            rows_ahead: 0,
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
        self.stop.is_none()
            && self.unknown == self.rows_ahead
            && self.cached == self.inputs.len()
            && self.draws_after_pending()
    }

    /// Notes that the token that is wanted was asked for and will be [`accept`](Self::accept)ed later. With a slot, the next row runs with the
    /// token that is drawn there, if there will be such a row unless the sequence ends.
    ///
    /// # Panics
    /// When no token was wanted.
    pub fn run_ahead(&mut self, slot: Option<u32>) {
        assert!(self.wants_token(), "a draw nobody wants. This is a bug.");
        self.unknown += 1;
        let Script::Whole(limits) = &self.script else {
            return;
        };
        if let Some(slot) = slot
            && self.history.len() + self.unknown < limits.max
        {
            self.inputs.push(InputToken::Drawn(slot));
            self.rows_ahead += 1;
        }
    }

    /// How to draw the next token: a function of this sequence and `seed` alone.
    pub fn sample_row(&self, params: SampleParams, seed: u64) -> SampleRow<'_> {
        let step = (self.history.len() + self.unknown) as u32;
        self.sample_row_with(params, Uniforms::Philox { seed, step })
    }

    /// The same with given random numbers.
    ///
    /// # Panics
    /// When more than one token is not known yet: a device keeps the last one only.
    pub fn sample_row_with(&self, params: SampleParams, uniforms: Uniforms) -> SampleRow<'_> {
        assert!(self.unknown <= 1, "two steps ahead. This is a bug.");
        let ends = match &self.script {
            Script::Whole(limits) => self.history.len() + self.unknown >= limits.min,
            Script::Mixed(mixed) => mixed.may_end(),
        };
        SampleRow {
            params,
            uniforms,
            history: &self.history,
            ahead: self.unknown > 0,
            forbidden: (!ends).then(|| self.vocabulary.end()),
        }
    }

    /// Takes the drawn token, the first of those that are not known yet; returns it when it is sound. What was drawn ahead is nothing after the
    /// end and is not to be accepted.
    ///
    /// # Panics
    /// When no token was wanted, or after the end.
    pub fn accept(&mut self, token: i32) -> Option<i32> {
        assert!(
            self.stop.is_none() && (self.unknown > 0 || self.wants_token()),
            "a token came unasked. This is a bug."
        );
        self.unknown = self.unknown.saturating_sub(1);
        let row = self.inputs.len() - self.rows_ahead;
        if !self.vocabulary.is_speech(token) {
            // Rows that ran ahead came after the end.
            self.inputs.truncate(row);
            self.cached = self.cached.min(row);
            self.rows_ahead = 0;
            self.special(token);
            return None;
        }
        self.history.push(token);
        if self.rows_ahead > 0 {
            self.inputs[row] = InputToken::Speech(token);
            self.rows_ahead -= 1;
        } else {
            self.inputs.push(InputToken::Speech(token));
        }
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
                let known = self.inputs.len() - self.rows_ahead;
                Some(known - self.history.len() + limits.max.saturating_sub(1))
            }
            Script::Mixed(_) => None,
        }
    }

    /// Forgets what is in the cache: everything is pending again. Running it gives the same cache, value by value. Not for sequences that are
    /// ahead.
    pub fn rewind(&mut self) {
        self.cached = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use proptest::prelude::*;

    const VOCABULARY: Vocabulary = Vocabulary {
        text: 100,
        speech: 50,
    };
    const PARAMS: SampleParams = SampleParams {
        top_p: 0.8,
        top_k: 25,
        window: 10,
        repetition_rate: 0.1,
    };
    const SLOT: u32 = 7;

    /// What a sequence asked for (step, known tokens, whether one more is ahead, forbidden id), and what became of it.
    struct Course {
        draws: Vec<(Uniforms, usize, bool, Option<i32>)>,
        inputs: Vec<InputToken>,
        tokens: Vec<i32>,
        stop: Option<Stop>,
    }

    /// Runs a sequence whose `n`-th draw is `draw(n)`, at most one step ahead of what is known where `ahead` says so.
    fn course(text: &[i32], ahead: bool, draw: impl Fn(usize) -> i32) -> Course {
        let mut g = Generation::new(VOCABULARY, Conditioning::NONE, text).unwrap();
        let mut draws = Vec::new();
        let mut unread = VecDeque::new();
        loop {
            g.advance(g.pending().len());
            if g.wants_token() {
                let row = g.sample_row(PARAMS, 3);
                draws.push((row.uniforms, row.history.len(), row.ahead, row.forbidden));
                unread.push_back(draw(draws.len() - 1));
                g.run_ahead(ahead.then_some(SLOT));
            }
            let keep = usize::from(!g.pending().is_empty());
            while unread.len() > keep
                && let Some(token) = unread.pop_front()
            {
                if g.stop().is_none() {
                    g.accept(token);
                }
            }
            if g.pending().is_empty() && unread.is_empty() {
                return Course {
                    draws,
                    inputs: g.inputs().to_vec(),
                    tokens: g.speech_tokens().collect(),
                    stop: g.stop(),
                };
            }
        }
    }

    #[test]
    fn the_row_after_an_unknown_token_runs_with_its_slot() {
        let mut g = Generation::new(VOCABULARY, Conditioning::NONE, &[1]).unwrap();
        g.advance(g.pending().len());
        g.run_ahead(Some(SLOT));
        assert_eq!(g.pending(), [InputToken::Drawn(SLOT)]);
        g.advance(1);
        assert!(g.sample_row(PARAMS, 0).ahead);
        g.run_ahead(Some(SLOT));
        assert_eq!(g.accept(4), Some(4));
        assert_eq!(
            g.inputs()[g.inputs().len() - 2..],
            [InputToken::Speech(4), InputToken::Drawn(SLOT)]
        );
        assert_eq!(g.accept(VOCABULARY.end()), None);
        assert_eq!(g.stop(), Some(Stop::End(VOCABULARY.end())));
        assert_eq!(g.inputs().last(), Some(&InputToken::Speech(4)));
        assert!(g.pending().is_empty() && !g.wants_token());
    }

    proptest! {
        /// Going ahead changes nothing: the same draws are asked for, the same tokens come out, and no row lies beyond the last that may be.
        #[test]
        fn going_ahead_changes_nothing(
            text in proptest::collection::vec(0i32..100, 1..6),
            tokens in proptest::collection::vec(0i32..50, 1..20),
            end in 0usize..150,
        ) {
            let draw = |n: usize| if n == end { 50 } else { tokens[n % tokens.len()] };
            let (known, ahead) = (course(&text, false, draw), course(&text, true, draw));
            prop_assert_eq!(&known.inputs, &ahead.inputs);
            prop_assert_eq!(&known.tokens, &ahead.tokens);
            prop_assert_eq!(known.stop, ahead.stop);
            prop_assert!(ahead.draws.len() <= known.draws.len() + 1, "one draw too many at most");
            for (known, ahead) in known.draws.iter().zip(&ahead.draws) {
                prop_assert_eq!((known.0, known.3), (ahead.0, ahead.3));
                prop_assert_eq!(known.1, ahead.1 + usize::from(ahead.2));
                prop_assert!(!known.2);
            }
        }
    }
}
