//! The script of a sequence whose text arrives while it speaks: groups of text and speech tokens take turns.
//!
//! In: pieces of text, and what the sampler drew. Out: input rows. After each group of speech tokens the model asks for text with the
//! fill token (forced when the group is full, though it may come earlier); once the text is closed, all that is left of it and the task
//! mark follow, and the end token may be drawn. Quirks of the reference that change the tokens are kept: each piece of text lets at most one group of
//! text in; a fill token is never fed itself; when the text closes right after one, the rows that led to it are fed once more.
//! Reference: `Qwen2LM.inference_bistream` (`cosyvoice/llm/llm.py`).

use std::collections::VecDeque;

use super::InputToken;
use super::prompt::{Conditioning, Limits, Vocabulary};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing can run before the next piece of text.
    Waiting,
    /// Drawing the speech tokens of a group.
    Speaking,
    /// All text is in; drawing to the end.
    Last,
}

/// What a special token means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MixedStep {
    Fill,
    End,
    Unexpected,
}

pub(super) struct Mixed {
    text_group: usize,
    speech_group: usize,
    /// Prompt speech tokens that have not found their text yet.
    prompt_speech: VecDeque<i32>,
    /// Text that has arrived and is not among the inputs.
    text: VecDeque<i32>,
    /// Pieces that have not been looked at.
    pieces: VecDeque<Vec<i32>>,
    closed: bool,
    /// Text tokens of the target so far.
    target: usize,
    phase: Phase,
    /// First of the rows that lead to the next token.
    head: usize,
    /// Length of the history at which a fill token is forced.
    next_fill: usize,
}

impl Mixed {
    pub(super) fn new(conditioning: Conditioning<'_>, mix_ratio: [usize; 2]) -> Self {
        let [text_group, speech_group] = mix_ratio.map(|n| n.max(1));
        Self {
            text_group,
            speech_group,
            prompt_speech: conditioning.prompt_speech.iter().copied().collect(),
            text: conditioning.prompt_text.iter().copied().collect(),
            pieces: VecDeque::new(),
            closed: false,
            target: 0,
            phase: Phase::Waiting,
            head: 0,
            next_fill: speech_group - conditioning.prompt_speech.len() % speech_group,
        }
    }

    pub(super) fn push(&mut self, piece: &[i32]) {
        assert!(!self.closed, "text came after its end. This is a bug.");
        self.target += piece.len();
        self.pieces.push_back(piece.to_vec());
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether the inputs may run.
    pub(super) fn runnable(&self) -> bool {
        self.phase != Phase::Waiting
    }

    /// Whether the end token may be drawn.
    pub(super) fn may_end(&self) -> bool {
        self.phase == Phase::Last
    }

    /// Whether the next token is a fill token whatever the logits say.
    pub(super) fn forced(&self, drawn: usize) -> bool {
        self.phase == Phase::Speaking && drawn == self.next_fill
    }

    /// Notes a fill token, drawn or forced.
    pub(super) fn fill(&mut self, history: &mut Vec<i32>, token: i32) {
        self.next_fill = history.len() + self.speech_group + 1;
        history.push(token);
        self.phase = Phase::Waiting;
    }

    /// Notes a speech token, the last of `rows` input rows. Returns how many there may be, once that is known.
    pub(super) fn spoke(&mut self, rows: usize) -> Option<usize> {
        self.head = rows - 1;
        (self.phase == Phase::Last).then(|| Limits::of_text(self.target).max)
    }

    pub(super) fn special(&self, token: i32, vocabulary: Vocabulary) -> MixedStep {
        match self.phase {
            Phase::Speaking if token == vocabulary.fill() => MixedStep::Fill,
            Phase::Last if token == vocabulary.end() => MixedStep::End,
            _ => MixedStep::Unexpected,
        }
    }

    /// Goes as far as possible without a token. `drawn` is the length of the history.
    pub(super) fn turn(&mut self, inputs: &mut Vec<InputToken>, drawn: usize) {
        while self.phase == Phase::Waiting {
            if let Some(piece) = self.pieces.pop_front() {
                self.text.extend(piece);
                self.take_prompt(inputs);
                self.take_text(inputs, drawn);
            } else if self.closed {
                self.finish(inputs, drawn);
            } else {
                return;
            }
        }
    }

    fn take_prompt(&mut self, inputs: &mut Vec<InputToken>) {
        while !self.prompt_speech.is_empty() && self.text.len() >= self.text_group {
            inputs.extend(self.text.drain(..self.text_group).map(InputToken::Text));
            let n = self.speech_group.min(self.prompt_speech.len());
            inputs.extend(self.prompt_speech.drain(..n).map(InputToken::Speech));
        }
    }

    fn take_text(&mut self, inputs: &mut Vec<InputToken>, drawn: usize) {
        if !self.prompt_speech.is_empty() {
            return;
        }
        // With a prompt the first group is there already.
        if drawn > 0 || inputs.len() == 1 {
            if self.text.len() < self.text_group {
                return;
            }
            if drawn > 0 {
                self.head = inputs.len();
            }
            inputs.extend(self.text.drain(..self.text_group).map(InputToken::Text));
        }
        self.phase = Phase::Speaking;
    }

    fn finish(&mut self, inputs: &mut Vec<InputToken>, drawn: usize) {
        if drawn > 0 {
            let again = self.head..inputs.len();
            self.head = inputs.len();
            inputs.extend_from_within(again);
        }
        inputs.extend(self.text.drain(..).map(InputToken::Text));
        inputs.push(InputToken::Task);
        self.phase = Phase::Last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::llm::{Generation, Stop};
    use proptest::prelude::*;

    const VOCABULARY: Vocabulary = Vocabulary {
        text: 100,
        speech: 50,
    };

    fn run(generation: &mut Generation) -> Vec<InputToken> {
        let rows = generation.pending().to_vec();
        generation.advance(rows.len());
        rows
    }

    #[test]
    fn text_and_speech_take_turns_and_the_row_before_the_last_fill_is_fed_again() {
        use InputToken::{Sos, Speech, Task, Text};
        let mut g = Generation::streaming(VOCABULARY, Conditioning::NONE, [2, 3]).unwrap();
        assert!(g.pending().is_empty());
        g.push_text(&[1]).unwrap();
        assert!(g.pending().is_empty(), "one token is less than a group");
        g.push_text(&[2, 3]).unwrap();
        assert_eq!(run(&mut g), [Sos, Text(1), Text(2)]);
        for token in [7, 8, 9] {
            assert!(g.wants_token());
            assert_eq!(g.accept(token), Some(token));
            assert_eq!(run(&mut g), [Speech(token)]);
        }
        assert!(!g.wants_token(), "the fourth token is a forced fill");
        assert!(g.pending().is_empty());
        g.close_text();
        assert_eq!(run(&mut g), [Speech(9), Text(3), Task]);
        assert!(g.wants_token());
        assert_eq!(g.accept(VOCABULARY.end()), None);
        assert_eq!(g.stop(), Some(Stop::End(VOCABULARY.end())));
        assert_eq!(g.speech_tokens().collect::<Vec<_>>(), [7, 8, 9]);
    }

    #[test]
    fn a_prompt_brings_its_own_groups_and_a_drawn_fill_asks_for_text() {
        use InputToken::{Sos, Speech, Text};
        let conditioning = Conditioning::zero_shot(&[1, 2, 3], &[10, 11, 12, 13]);
        let mut g = Generation::streaming(VOCABULARY, conditioning, [2, 3]).unwrap();
        g.push_text(&[4]).unwrap();
        let rows = [
            Sos,
            Text(1),
            Text(2),
            Speech(10),
            Speech(11),
            Speech(12),
            Text(3),
            Text(4),
            Speech(13),
        ];
        assert_eq!(run(&mut g), rows);
        assert_eq!(g.accept(VOCABULARY.fill()), None);
        assert!(g.pending().is_empty());
        g.push_text(&[5, 6, 7, 8]).unwrap();
        assert_eq!(run(&mut g), [Text(5), Text(6)], "one group per piece");
        assert_eq!(g.context(), rows.len() + 2);
        g.rewind();
        assert_eq!(g.pending().len(), rows.len() + 2);
    }

    #[test]
    fn a_special_token_in_the_wrong_place_stops() {
        let mut g = Generation::streaming(VOCABULARY, Conditioning::NONE, [1, 3]).unwrap();
        g.push_text(&[1]).unwrap();
        run(&mut g);
        assert_eq!(g.accept(51), None);
        assert_eq!(g.stop(), Some(Stop::Unexpected(51)));
        assert!(g.pending().is_empty());
    }

    /// Runs what can run, in chunks, drawing tokens in turn from `draws`; whether the sequence has ended.
    fn go(g: &mut Generation, chunk: usize, draws: &mut impl Iterator<Item = i32>) -> bool {
        loop {
            while !g.pending().is_empty() {
                g.advance(g.pending().len().min(chunk));
            }
            if !g.wants_token() {
                return g.stop().is_some();
            }
            g.accept(draws.next().expect("endless"));
        }
    }

    proptest! {
        /// However text arrives and whatever is drawn: all text is fed, in order, the sequence ends, and chunks do not matter.
        #[test]
        fn all_text_is_fed_in_order_and_the_sequence_ends(
            prompt in 0usize..12,
            prompt_speech in 0usize..20,
            pieces in proptest::collection::vec(1usize..5, 1..12),
            draws in proptest::collection::vec(0i32..50, 1..80),
            early_fill in 0usize..90,
            ratio in (1usize..5, 1usize..7),
        ) {
            // Text is numbered from the prompt's first token on.
            let total = prompt + pieces.iter().sum::<usize>();
            let text: Vec<i32> = (0..total as i32).collect();
            let speech: Vec<i32> = (0..prompt_speech as i32).collect();
            let run = |chunk: usize| {
                let conditioning = Conditioning::zero_shot(&text[..prompt], &speech);
                let mut g = Generation::streaming(VOCABULARY, conditioning, [ratio.0, ratio.1]).unwrap();
                // One fill token comes unforced; in the last part it would end the sequence, as would any draw of 50.
                let mut draws = draws.iter().copied().cycle().enumerate()
                    .map(|(i, d)| if i == early_fill { VOCABULARY.fill() } else { d });
                let (mut rest, mut ended) = (&text[prompt..], false);
                for &n in &pieces {
                    g.push_text(&rest[..n]).unwrap();
                    rest = &rest[n..];
                    ended = go(&mut g, chunk, &mut draws);
                    assert!(!ended, "ended before its text did");
                }
                g.close_text();
                ended |= go(&mut g, chunk, &mut draws);
                assert!(ended, "stuck");
                assert!(matches!(g.stop(), Some(Stop::MaxLength | Stop::Unexpected(_))));
                g.rewind();
                (g.inputs().to_vec(), g.speech_tokens().collect::<Vec<_>>())
            };
            let (inputs, tokens) = run(usize::MAX);
            let mut next = 0;
            for input in &inputs {
                // Rows that are fed again count once.
                if let InputToken::Text(id) = *input && id >= next {
                    prop_assert_eq!(id, next);
                    next += 1;
                }
            }
            prop_assert_eq!(next, total as i32);
            prop_assert_eq!(inputs.iter().filter(|i| **i == InputToken::Task).count(), 1);
            prop_assert_eq!((inputs, tokens), run(1));
        }
    }
}
