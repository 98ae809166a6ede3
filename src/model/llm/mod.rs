//! The language model: text tokens in, speech tokens out.
//!
//! A Qwen2 decoder over a paged KV cache with three input embeddings (text, speech, and the two marks "start of sequence" and
//! "task") and one head over speech tokens. [`Llm::step`] advances a ragged batch in which prefill chunks and decode rows mix;
//! [`Generation`] is the state of one sequence: what to feed next, what was drawn, when to stop. It is pure: it never sees a tensor.
//!
//! Reference: `Qwen2LM` and `Qwen2Encoder` of CosyVoice2 (`cosyvoice/llm/llm.py`), Qwen2 (arXiv 2407.10671).

mod block;
mod decoder;
mod generation;
mod mixed;
mod prompt;

pub use decoder::{Llm, LlmWorkspace, StepSequence};
pub use generation::{Generation, Stop};
pub use prompt::{Conditioning, Limits, PromptError, Vocabulary};

/// One input row of the language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputToken {
    Text(i32),
    Speech(i32),
    /// The speech token that was drawn last for a slot (see [`Sample::draw`](crate::backend::Sample::draw)) and is not known here yet.
    Drawn(u32),
    /// Start of the sequence.
    Sos,
    /// Ends the text: speech follows.
    Task,
}

impl InputToken {
    /// `(table, id)` for [`Memory::embed`](crate::backend::Memory::embed) over the tables text, speech, marks.
    fn lookup(self) -> (i32, i32) {
        match self {
            InputToken::Text(id) => (0, id),
            InputToken::Speech(id) => (1, id),
            InputToken::Drawn(slot) => (1, !(slot as i32)),
            InputToken::Sos => (2, 0),
            InputToken::Task => (2, 1),
        }
    }
}
