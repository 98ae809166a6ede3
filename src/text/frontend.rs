//! The front door of the room: a request's text in, what the engine speaks out.
//!
//! In: text, optionally with markup, and [`TextOptions`]. Out: [`Prepared`] parts: token ids to speak and pauses, in order.
//! Reference: `text_normalize` and the `frontend_*` methods in `cosyvoice/cli/frontend.py`, and `inference_*` in
//! `cosyvoice/cli/cosyvoice.py`.

use std::sync::Arc;
use std::time::Duration;

use super::language::Language;
use super::official::{self, is_only_punctuation};
use super::segment::{self, Limits};
use super::tags::{Run, Tags};
use super::{TextError, Tokenizer, normalize, wetext};

/// The token that separates an instruction from the text to speak.
const END_OF_PROMPT: &str = "<|endofprompt|>";

/// How much of the written form is put into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// Grammars and rules, per language; texts in a language without a grammar keep their digits.
    #[default]
    Auto,
    /// As `Auto`, and digits in any language are read.
    On,
    /// Nothing: the text is split and tokenised as it is. Markup still works.
    Off,
    /// Exactly the official front end: its grammars, its replacements, its splitter, no markup.
    Official,
}

impl std::str::FromStr for Normalization {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Normalization::Auto),
            "on" => Ok(Normalization::On),
            "off" => Ok(Normalization::Off),
            "official" => Ok(Normalization::Official),
            _ => Err(format!(
                "unknown text normalization {name:?}: expected auto, on, off or official"
            )),
        }
    }
}

/// What holds for every text.
#[derive(Clone, Debug)]
pub struct FrontendOptions {
    /// Longest segment, in tokens.
    pub max_segment_tokens: usize,
}

impl Default for FrontendOptions {
    /// The bound of the official splitter.
    fn default() -> Self {
        Self {
            max_segment_tokens: 80,
        }
    }
}

/// What a request says about its text.
#[derive(Clone, Debug, Default)]
pub struct TextOptions {
    /// The language of all of it; told from the script where not given.
    pub language: Option<Language>,
    pub normalization: Normalization,
}

/// A text ready for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// In order of speaking; at least one is speech.
    pub parts: Vec<Part>,
    /// The text as it is spoken.
    pub normalized_text: String,
}

impl Prepared {
    /// Number of text tokens in all parts.
    pub fn token_count(&self) -> usize {
        let tokens = |part: &Part| match part {
            Part::Speech { tokens, .. } => tokens.len(),
            Part::Pause { .. } => 0,
        };
        self.parts.iter().map(tokens).sum()
    }
}

/// One part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A segment to speak; `tokens` is not empty.
    Speech {
        text: String,
        tokens: Vec<i32>,
        language: Language,
    },
    /// Silence of exactly that length.
    Pause { duration: Duration },
}

/// A text that conditions the model: of a prompt recording, or an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedPrompt {
    pub text: String,
    /// Empty for an empty text.
    pub tokens: Vec<i32>,
}

/// Prepares texts; cheap to share, safe from many threads.
pub struct Frontend {
    tokenizer: Arc<Tokenizer>,
    tags: Tags,
    options: FrontendOptions,
}

impl Frontend {
    pub fn new(tokenizer: Arc<Tokenizer>, options: FrontendOptions) -> Self {
        let tags = Tags::of(&tokenizer);
        Self {
            tokenizer,
            tags,
            options,
        }
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Prepares a text to speak.
    ///
    /// # Errors
    /// [`TextError::NothingToSay`] when it holds nothing speakable; [`TextError::Official`] where the official behaviour was
    /// asked for and raises.
    pub fn prepare(&self, text: &str, options: &TextOptions) -> Result<Prepared, TextError> {
        if options.normalization == Normalization::Official {
            return self.prepare_official(text, options);
        }
        let (head, body) = match text.rfind(END_OF_PROMPT) {
            Some(at) => text.split_at(at + END_OF_PROMPT.len()),
            None => ("", text),
        };
        let normalized = self.normalized(body, options);
        let parts = self.segments(head, &normalized, options);
        finish(parts, format!("{head}{normalized}"))
    }

    /// Prepares the text of a prompt recording: normalised as a text to speak, but in one piece.
    ///
    /// # Errors
    /// As [`Frontend::prepare`], except that an empty text is allowed.
    pub fn prepare_prompt(
        &self,
        text: &str,
        options: &TextOptions,
    ) -> Result<PreparedPrompt, TextError> {
        let text = match options.normalization {
            Normalization::Official => self.official(text)?.text,
            _ => self.normalized(text, options),
        };
        Ok(self.prompt(text))
    }

    /// Prepares an instruction: as it is, ended by `<|endofprompt|>`, which is added where it is missing.
    pub fn prepare_instruction(&self, text: &str) -> PreparedPrompt {
        let mut text = text.to_owned();
        if !text.contains(END_OF_PROMPT) {
            text.push_str(END_OF_PROMPT);
        }
        self.prompt(text)
    }

    fn prompt(&self, text: String) -> PreparedPrompt {
        PreparedPrompt {
            tokens: self.tokenizer.encode(&text),
            text,
        }
    }

    fn official(&self, text: &str) -> Result<official::OfficialText, TextError> {
        official::text_normalize(
            text,
            |text, _| wetext::official_normalize(text),
            |text| self.tokenizer.count(text),
        )
    }

    fn prepare_official(&self, text: &str, options: &TextOptions) -> Result<Prepared, TextError> {
        let official = self.official(text)?;
        let language = |text: &str| {
            options
                .language
                .or_else(|| Language::detect(text))
                .unwrap_or(Language::English)
        };
        let parts = official
            .segments
            .into_iter()
            .map(|text| Part::Speech {
                tokens: self.tokenizer.encode(&text),
                language: language(&text),
                text,
            })
            .collect();
        finish(parts, official.text)
    }

    /// The spoken form of a text with tags.
    fn normalized(&self, text: &str, options: &TextOptions) -> String {
        if options.normalization == Normalization::Off {
            return text.to_owned();
        }
        let around = options
            .language
            .or_else(|| Language::detect(text))
            .unwrap_or(Language::English);
        let mut out = String::with_capacity(text.len());
        for run in self.tags.split(text) {
            match run {
                Run::Tag(tag) => out.push_str(tag),
                Run::Plain(plain) => {
                    out.push_str(&normalize::spoken(
                        plain,
                        options.language,
                        around,
                        options.normalization,
                    ));
                }
            }
        }
        out
    }

    fn segments(&self, head: &str, text: &str, options: &TextOptions) -> Vec<Part> {
        let reserved = self.tokenizer.count(head);
        let max = self
            .options
            .max_segment_tokens
            .saturating_sub(reserved)
            .max(1);
        let count = |text: &str| self.tokenizer.count(text);
        let mut language = options
            .language
            .or_else(|| Language::detect(text))
            .unwrap_or(Language::English);
        segment::split(
            text,
            &self.tags,
            &count,
            Limits {
                max,
                short: max / 4,
            },
        )
        .into_iter()
        .filter(|segment| is_speakable(segment, &self.tags))
        .map(|segment| {
            language = options
                .language
                .or_else(|| Language::detect(segment))
                .unwrap_or(language);
            let mut text = format!("{head}{segment}");
            segment::close(&mut text, language);
            Part::Speech {
                tokens: self.tokenizer.encode(&text),
                text,
                language,
            }
        })
        .collect()
    }
}

/// Whether anything in `text` can be spoken: a letter, a digit, or a tag that makes a sound.
fn is_speakable(text: &str, tags: &Tags) -> bool {
    tags.split(text).iter().any(|run| match run {
        Run::Plain(plain) => plain.chars().any(char::is_alphanumeric),
        Run::Tag(tag) => tag.starts_with('['),
    })
}

fn finish(mut parts: Vec<Part>, normalized_text: String) -> Result<Prepared, TextError> {
    parts.retain(|part| match part {
        Part::Speech { tokens, text, .. } => {
            !tokens.is_empty() && !is_only_punctuation(text.trim())
        }
        Part::Pause { .. } => true,
    });
    if parts.iter().any(|p| matches!(p, Part::Speech { .. })) {
        Ok(Prepared {
            parts,
            normalized_text,
        })
    } else {
        Err(TextError::NothingToSay)
    }
}
