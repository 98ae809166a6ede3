//! How text and voice become the input rows of the language model, and how long the answer may be.
//!
//! In: text tokens and the parts of a voice that the mode uses. Out: `[sos] prompt text, text [task] prompt speech`.
//! Reference: `Qwen2LM.inference` (`cosyvoice/llm/llm.py`) and the `frontend_*` methods of `cosyvoice/cli/frontend.py`.

use super::InputToken;

/// Fewest speech tokens per text token of the target.
const MIN_RATIO: usize = 2;
/// Most speech tokens per text token of the target.
const MAX_RATIO: usize = 20;

/// Inputs that do not fit the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    #[error("there is no text to speak")]
    NoText,
    #[error("text token {id} is outside the model's vocabulary of {size}")]
    TextToken { id: i32, size: usize },
    #[error("speech token {id} of the prompt is outside the model's {size} speech tokens")]
    SpeechToken { id: i32, size: usize },
}

/// Sizes of the two vocabularies, and the ids that follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    pub text: usize,
    /// Speech tokens proper; the special ones follow them.
    pub speech: usize,
}

impl Vocabulary {
    /// Special ids after the speech tokens proper: end, a spare one, and "more text, please". All of them stop a generation.
    pub const SPECIAL: usize = 3;

    /// Ends an utterance.
    pub fn end(self) -> i32 {
        self.speech as i32
    }

    /// In a mixed sequence: the next tokens are text again.
    pub fn fill(self) -> i32 {
        self.speech as i32 + 2
    }

    /// Whether an id stands for sound.
    pub fn is_speech(self, id: i32) -> bool {
        (0..self.speech as i32).contains(&id)
    }

    /// # Errors
    /// The first text token that has no embedding.
    pub fn check_text(self, tokens: &[i32]) -> Result<(), PromptError> {
        let size = self.text;
        match tokens.iter().find(|&&id| !in_range(id, size)) {
            Some(&id) => Err(PromptError::TextToken { id, size }),
            None => Ok(()),
        }
    }

    /// # Errors
    /// The first prompt token that is not a speech token proper.
    pub fn check_speech(self, tokens: &[i32]) -> Result<(), PromptError> {
        let size = self.speech;
        match tokens.iter().find(|&&id| !in_range(id, size)) {
            Some(&id) => Err(PromptError::SpeechToken { id, size }),
            None => Ok(()),
        }
    }
}

fn in_range(id: i32, size: usize) -> bool {
    usize::try_from(id).is_ok_and(|id| id < size)
}

/// What stands before the text and before the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditioning<'a> {
    pub prompt_text: &'a [i32],
    pub prompt_speech: &'a [i32],
}

impl<'a> Conditioning<'a> {
    /// A known speaker, or the timbre of a prompt alone (cross-lingual): the language model sees nothing of the voice.
    pub const NONE: Self = Self {
        prompt_text: &[],
        prompt_speech: &[],
    };

    /// Continue a recording: its text and its speech tokens.
    pub fn zero_shot(prompt_text: &'a [i32], prompt_speech: &'a [i32]) -> Self {
        Self {
            prompt_text,
            prompt_speech,
        }
    }

    /// An instruction in words, in place of the prompt's text; no speech tokens.
    pub fn instruct(instruction: &'a [i32]) -> Self {
        Self {
            prompt_text: instruction,
            prompt_speech: &[],
        }
    }

    /// # Errors
    /// A token that the model does not know.
    pub fn check(&self, vocabulary: Vocabulary) -> Result<(), PromptError> {
        vocabulary.check_text(self.prompt_text)?;
        vocabulary.check_speech(self.prompt_speech)
    }

    /// All input rows before the first answer.
    pub(super) fn assemble(&self, text: &[i32]) -> Vec<InputToken> {
        let mut rows =
            Vec::with_capacity(2 + self.prompt_text.len() + text.len() + self.prompt_speech.len());
        rows.push(InputToken::Sos);
        rows.extend(self.prompt_text.iter().map(|&id| InputToken::Text(id)));
        rows.extend(text.iter().map(|&id| InputToken::Text(id)));
        rows.push(InputToken::Task);
        rows.extend(self.prompt_speech.iter().map(|&id| InputToken::Speech(id)));
        rows
    }
}

/// Bounds of an answer in speech tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The end token is not drawn before so many tokens.
    pub min: usize,
    pub max: usize,
}

impl Limits {
    /// The reference's bounds for a target text of `tokens` tokens (the prompt's text does not count).
    pub fn of_text(tokens: usize) -> Self {
        Self {
            min: MIN_RATIO * tokens,
            max: MAX_RATIO * tokens,
        }
    }
}
