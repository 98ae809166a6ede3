//! The front door of the room: a request's text in, what the engine speaks out.
//!
//! In: text, optionally with markup, and [`TextOptions`]. Out: [`Prepared`] parts: token ids to speak and pauses, in order.
//! Reference: `text_normalize` and the `frontend_*` methods in `cosyvoice/cli/frontend.py`, and `inference_*` in
//! `cosyvoice/cli/cosyvoice.py`.

use std::sync::Arc;
use std::time::Duration;

use super::language::Language;
use super::lexicon::Lexicon;
use super::markup::{self, Item};
use super::official;
use super::segment;
use super::tags::{Run, Tags};
use super::{TextError, Tokenizer, normalize, pinyin, wetext};

/// The token that separates an instruction from the text to speak.
const END_OF_PROMPT: &str = "<|endofprompt|>";

/// How much of the written form is put into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// Longest segment, in tokens. The official mode splits as the official code does, which lets a long sentence be longer.
    pub max_segment_tokens: usize,
    /// Words for every request; a request's own lexicon comes first.
    pub lexicon: Option<Arc<Lexicon>>,
}

impl Default for FrontendOptions {
    /// The bound of the official splitter, and no lexicon.
    fn default() -> Self {
        Self {
            max_segment_tokens: 80,
            lexicon: None,
        }
    }
}

/// What a request says about its text.
#[derive(Clone, Debug, Default)]
pub struct TextOptions {
    /// The language of all of it; told from the script, sentence by sentence, where not given.
    pub language: Option<Language>,
    pub normalization: Normalization,
    /// Words to read in a given way.
    pub lexicon: Option<Arc<Lexicon>>,
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

/// What stands between two pauses, or a pause.
enum Block {
    Text(String),
    Pause(Duration),
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

    /// Prepares a text to speak. Markup (pauses, SSML) works in every mode but the official one.
    ///
    /// # Errors
    /// [`TextError::NothingToSay`] when it holds nothing speakable; [`TextError::Pause`], [`TextError::Ssml`] and
    /// [`TextError::Pinyin`] for markup; [`TextError::Official`] where the official behaviour was asked for and raises.
    pub fn prepare(&self, text: &str, options: &TextOptions) -> Result<Prepared, TextError> {
        if options.normalization == Normalization::Official {
            return self.prepare_official(text, options);
        }
        let (head, body) = match text.rfind(END_OF_PROMPT) {
            Some(at) => text.split_at(at + END_OF_PROMPT.len()),
            None => ("", text),
        };
        let mut parts = Vec::new();
        let mut spoken = head.to_owned();
        for block in self.blocks(body, options)? {
            match block {
                Block::Text(text) => {
                    if !spoken.is_empty() && !spoken.ends_with(['>', ']']) {
                        spoken.push(' ');
                    }
                    spoken.push_str(text.trim());
                    parts.extend(self.segments(head, &text, options));
                }
                Block::Pause(duration) => {
                    spoken.push_str(&format!("[pause:{}ms]", duration.as_secs_f64() * 1e3));
                    parts.push(Part::Pause { duration });
                }
            }
        }
        finish(parts, spoken)
    }

    /// Prepares the text of a prompt recording: normalised as a text to speak, but in one piece. Pauses in it are dropped.
    ///
    /// # Errors
    /// As [`Frontend::prepare`], except that an empty text is allowed.
    pub fn prepare_prompt(
        &self,
        text: &str,
        options: &TextOptions,
    ) -> Result<PreparedPrompt, TextError> {
        if options.normalization == Normalization::Official {
            return Ok(self.prompt(self.official(text)?.text));
        }
        let mut whole = String::new();
        for block in self.blocks(text, options)? {
            if let Block::Text(text) = block {
                if !whole.is_empty() {
                    whole.push(' ');
                }
                whole.push_str(text.trim());
            }
        }
        Ok(self.prompt(whole))
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

    /// The text between pauses, spoken, with the pauses.
    fn blocks(&self, text: &str, options: &TextOptions) -> Result<Vec<Block>, TextError> {
        pinyin::check(text, &self.tags)?;
        let mut around = options
            .language
            .or_else(|| Language::detect(text))
            .unwrap_or(Language::English);
        let mut blocks = Vec::new();
        let mut current = String::new();
        for item in markup::parse(text, &self.tags)? {
            match item {
                Item::Text {
                    text,
                    language,
                    say_as,
                } => {
                    let language = language.or(options.language);
                    match say_as {
                        Some(kind) => {
                            current.push_str(&kind.read(&text, language.unwrap_or(around)))
                        }
                        None => self.speak(&text, language, &mut around, options, &mut current),
                    }
                }
                Item::End => end_sentence(&mut current, around),
                Item::Pause(duration) => {
                    push_text(&mut blocks, &mut current, options);
                    blocks.push(Block::Pause(duration));
                }
            }
        }
        push_text(&mut blocks, &mut current, options);
        Ok(blocks)
    }

    /// Appends the spoken form of a text with tags and words of the lexicons.
    fn speak(
        &self,
        text: &str,
        language: Option<Language>,
        around: &mut Language,
        options: &TextOptions,
        out: &mut String,
    ) {
        for run in self.tags.split(text) {
            match run {
                Run::Tag(tag) => out.push_str(tag),
                Run::Plain(plain) => {
                    let mut start = 0;
                    for (from, to, replacement) in self.lexicon_words(plain, options) {
                        read(&plain[start..from], language, *around, options, out);
                        out.push_str(replacement);
                        start = to;
                    }
                    read(&plain[start..], language, *around, options, out);
                    // What follows without letters, behind a tag say, is read in the language of what stands before it.
                    let sentence = plain
                        .rsplit(['。', '！', '？', '\n'])
                        .find(|s| Language::detect(s).is_some());
                    *around = sentence.and_then(Language::detect).unwrap_or(*around);
                }
            }
        }
    }

    /// Words of the lexicons in `text`: from, to, replacement.
    fn lexicon_words<'a>(
        &'a self,
        text: &str,
        options: &'a TextOptions,
    ) -> Vec<(usize, usize, &'a str)> {
        let lexicons: Vec<&Lexicon> = [&options.lexicon, &self.options.lexicon]
            .into_iter()
            .filter_map(|l| l.as_deref().filter(|l| !l.is_empty()))
            .collect();
        let mut words = Vec::new();
        let mut position = 0;
        while let (false, Some(c)) = (lexicons.is_empty(), text[position..].chars().next()) {
            match lexicons.iter().find_map(|l| l.at(text, position)) {
                Some((len, replacement)) => {
                    words.push((position, position + len, replacement));
                    position += len;
                }
                None => position += c.len_utf8(),
            }
        }
        words
    }

    /// Segments of a block, each after `head`; with it they are within the limit. A head so long that it leaves less than a
    /// quarter of that to the text counts as three quarters.
    fn segments(&self, head: &str, text: &str, options: &TextOptions) -> Vec<Part> {
        let count = |text: &str| self.tokenizer.count(text);
        let (limit, head_tokens) = (self.options.max_segment_tokens, count(head));
        let max = limit.saturating_sub(head_tokens).max(limit / 4).max(1);
        let mut language = options
            .language
            .or_else(|| Language::detect(text))
            .unwrap_or(Language::English);
        let limits = segment::Limits {
            max,
            short: max / 4,
        };
        let mut parts = Vec::new();
        for segment in segment::split(text, &self.tags, &count, limits) {
            language = options
                .language
                .or_else(|| Language::detect(segment))
                .unwrap_or(language);
            let finish = |segment: &str| {
                let mut text = format!("{head}{segment}");
                segment::close(&mut text, language);
                text
            };
            if !is_speakable(segment, &self.tags) {
                continue;
            }
            let encode = |text: &str| self.tokenizer.encode(text);
            let texts = segment::within(segment, &self.tags, &encode, max + head_tokens, &finish);
            parts.extend(
                texts
                    .into_iter()
                    // What was cut off a segment that is too long may be marks alone.
                    .filter(|(text, _)| is_speakable(text, &self.tags))
                    .map(|(text, tokens)| Part::Speech {
                        text,
                        tokens,
                        language,
                    }),
            );
        }
        parts
    }
}

/// Appends the spoken form of a text without tags.
fn read(
    text: &str,
    language: Option<Language>,
    around: Language,
    options: &TextOptions,
    out: &mut String,
) {
    match options.normalization {
        Normalization::Off => out.push_str(text),
        mode => out.push_str(&normalize::spoken(text, language, around, mode)),
    }
}

/// Ends the sentence that `text` has come to.
fn end_sentence(text: &mut String, around: Language) {
    text.truncate(text.trim_end().len());
    let sentence = text
        .rsplit(['.', '!', '?', '。', '！', '？'])
        .find_map(Language::detect);
    segment::close(text, sentence.unwrap_or(around));
    if !text.is_empty() {
        text.push(' ');
    }
}

fn push_text(blocks: &mut Vec<Block>, current: &mut String, options: &TextOptions) {
    if !current.trim().is_empty() {
        let text = match options.normalization {
            Normalization::Off => std::mem::take(current),
            _ => normalize::lines(current),
        };
        blocks.push(Block::Text(text));
    }
    current.clear();
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
        Part::Speech { tokens, .. } => !tokens.is_empty(),
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
