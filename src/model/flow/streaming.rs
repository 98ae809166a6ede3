//! Which flow calls a streamed utterance makes: the chunk rules of the reference (`cli/model.py`, `CosyVoice2Model.tts`)
//! as a pure state machine. In: how many speech tokens there are, and whether the language model has ended. Out: the next call.
//!
//! The first hop also fills up the prompt's last chunk, so that every later boundary falls on a chunk of the attention
//! masks. Hops double up to a limit; each call but the last sees a few look-ahead tokens that it does not speak.
//! The reference never resets the hop between requests, which is a fault: here each request starts anew.

/// First hop in speech tokens; the reference fixes it, whatever the checkpoint says.
pub const HOP_TOKENS: usize = 25;
/// Growth of the hop from call to call.
const HOP_GROWTH: usize = 2;
/// Largest hop, in first hops.
const HOP_LIMIT: usize = 4;

/// One call of the flow over the prompt and the first `tokens` speech tokens of an utterance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowCall {
    /// Speech tokens given, look-ahead included.
    pub tokens: usize,
    /// Attention in chunks instead of over the whole sequence.
    pub streaming: bool,
    /// No look-ahead is held back: the last tokens are spoken too.
    pub finalize: bool,
    /// Speech tokens whose mel earlier calls have delivered.
    pub token_offset: usize,
}

impl FlowCall {
    /// The single call of an utterance that is not streamed.
    pub fn offline(tokens: usize) -> Self {
        Self {
            tokens,
            streaming: false,
            finalize: true,
            token_offset: 0,
        }
    }
}

/// The calls of one streamed utterance.
#[derive(Clone, Debug)]
pub struct StreamSchedule {
    hop: usize,
    max_hop: usize,
    /// Tokens that the first hop adds to complete the prompt's last chunk.
    alignment: usize,
    lookahead: usize,
    token_offset: usize,
    finished: bool,
}

impl StreamSchedule {
    /// `hop` is the first hop ([`HOP_TOKENS`]), `lookahead` the encoder's `pre_lookahead_len`; all in speech tokens.
    pub fn new(hop: usize, lookahead: usize, prompt_tokens: usize) -> Self {
        Self {
            hop,
            max_hop: HOP_LIMIT * hop,
            alignment: prompt_tokens.next_multiple_of(hop) - prompt_tokens,
            lookahead,
            token_offset: 0,
            finished: false,
        }
    }

    fn next_hop(&self) -> usize {
        match self.token_offset {
            0 => self.hop + self.alignment,
            _ => self.hop,
        }
    }

    /// Speech tokens that the next call waits for, unless the language model ends before.
    pub fn tokens_wanted(&self) -> usize {
        self.token_offset + self.next_hop() + self.lookahead
    }

    /// Whether the last call has been given out.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The call to make now that `available` tokens exist, if any; `ended` says that no more will come.
    pub fn next(&mut self, available: usize, ended: bool) -> Option<FlowCall> {
        if self.finished {
            return None;
        }
        let token_offset = self.token_offset;
        let tokens = self.tokens_wanted();
        if available >= tokens {
            self.token_offset += self.next_hop();
            self.hop = self.max_hop.min(self.hop * HOP_GROWTH);
            return Some(FlowCall {
                tokens,
                streaming: true,
                finalize: false,
                token_offset,
            });
        }
        self.finished = ended;
        ended.then_some(FlowCall {
            token_offset,
            ..FlowCall::offline(available)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(mut schedule: StreamSchedule, arrivals: &[usize]) -> Vec<(usize, bool, usize)> {
        let mut calls = Vec::new();
        for (i, &available) in arrivals.iter().enumerate() {
            while let Some(call) = schedule.next(available, i + 1 == arrivals.len()) {
                assert_eq!(call.streaming, !call.finalize);
                calls.push((call.tokens, call.finalize, call.token_offset));
            }
        }
        assert!(schedule.is_finished());
        calls
    }

    #[test]
    fn hops_align_the_prompt_then_double_to_the_limit() {
        let all = [400];
        let expected = [
            (41, false, 0),
            (91, false, 38),
            (191, false, 88),
            (291, false, 188),
            (391, false, 288),
            (400, true, 388),
        ];
        assert_eq!(calls(StreamSchedule::new(25, 3, 87), &all), expected);
        // An aligned prompt adds nothing.
        assert_eq!(calls(StreamSchedule::new(25, 3, 75), &[30])[0].0, 28);
    }

    #[test]
    fn arrival_of_tokens_does_not_change_the_calls() {
        for total in [1, 27, 28, 29, 103, 250] {
            let one_by_one: Vec<usize> = (0..=total).chain([total]).collect();
            let schedule = || StreamSchedule::new(25, 3, 11);
            assert_eq!(calls(schedule(), &one_by_one), calls(schedule(), &[total]));
        }
    }

    #[test]
    fn the_last_call_always_has_something_to_say() {
        for total in 1..300 {
            let last = *calls(StreamSchedule::new(25, 3, 30), &[total])
                .last()
                .unwrap();
            assert!(last.1 && last.0 == total && last.2 < total, "{total}");
        }
    }
}
