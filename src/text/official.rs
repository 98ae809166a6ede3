//! The official front end, helper by helper, with its quirks: what it raises on, ours refuses with [`TextError::Official`].
//!
//! Reference: `cosyvoice/utils/frontend_utils.py` and `CosyVoiceFrontEnd.text_normalize` in `cosyvoice/cli/frontend.py`.

use super::TextError;
use super::inflect::spell_out_number;
use super::split::{SplitOptions, split_paragraph};
use super::unicode::{is_punctuation_or_symbol, strip};

/// Whether `text` holds a character of U+4E00 to U+9FFF.
pub fn contains_chinese(text: &str) -> bool {
    text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c))
}

/// `²` and `³` as words.
pub fn replace_corner_mark(text: &str) -> String {
    text.replace('²', "平方").replace('³', "立方")
}

/// Drops brackets and back quotes; a dash becomes a space.
pub fn remove_bracket(text: &str) -> String {
    let kept: String = text
        .chars()
        .filter(|c| !matches!(c, '（' | '）' | '【' | '】' | '`'))
        .collect();
    kept.replace("——", " ")
}

/// Keeps a blank only between two ASCII characters that are not blanks.
///
/// # Errors
/// [`TextError::Official`] when the text ends in a blank.
pub fn replace_blank(text: &str) -> Result<String, TextError> {
    let chars: Vec<char> = text.chars().collect();
    let solid = |c: char| c.is_ascii() && c != ' ';
    let mut out = String::with_capacity(text.len());
    for (i, &c) in chars.iter().enumerate() {
        if c != ' ' {
            out.push(c);
            continue;
        }
        let next = *chars
            .get(i + 1)
            .ok_or_else(|| TextError::official("replace_blank", "IndexError"))?;
        // Index -1 is the last character in Python.
        let previous = chars[i.checked_sub(1).unwrap_or(chars.len() - 1)];
        if solid(next) && solid(previous) {
            out.push(c);
        }
    }
    Ok(out)
}

/// Whether `text` is empty or holds only punctuation and symbols.
pub fn is_only_punctuation(text: &str) -> bool {
    text.chars().all(is_punctuation_or_symbol)
}

/// A text through the official front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfficialText {
    /// The whole text (`split=False`).
    pub text: String,
    /// Its segments (`split=True`).
    pub segments: Vec<String>,
}

impl OfficialText {
    fn untouched(text: &str) -> Self {
        Self {
            text: text.into(),
            segments: vec![text.into()],
        }
    }
}

/// The official `text_normalize`.
///
/// `normalize` is the written-to-spoken step with the language it is given (`true` = Chinese); pass the identity for the
/// behaviour without wetext. `count` gives the number of tokens of a text.
///
/// # Errors
/// [`TextError::Official`] wherever the official code raises, and what `normalize` returns.
pub fn text_normalize(
    text: &str,
    normalize: impl Fn(&str, bool) -> Result<String, TextError>,
    count: impl Fn(&str) -> usize,
) -> Result<OfficialText, TextError> {
    if text.is_empty() || (text.contains("<|") && text.contains("|>")) {
        return Ok(OfficialText::untouched(text));
    }
    let text = strip(text);
    let chinese = contains_chinese(text);
    let mut text = normalize(text, chinese)?;
    if chinese {
        text = replace_blank(&text.replace('\n', ""))?;
        text = replace_corner_mark(&text)
            .replace('.', "。")
            .replace(" - ", "，");
        text = remove_bracket(&text);
        let kept = text.trim_end_matches(['，', ',', '、']).len();
        if kept < text.len() {
            text.truncate(kept);
            text.push('。');
        }
    } else {
        text = spell_out_number(&text)?;
    }
    let mut segments = split_paragraph(&text, count, &SplitOptions::official(chinese))?;
    segments.retain(|s| !is_only_punctuation(s));
    Ok(OfficialText { text, segments })
}
