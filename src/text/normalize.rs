//! Written to spoken form, sentence by sentence, each in its own language.
//!
//! In: plain text without tags. Out: the text as it is spoken.

use super::frontend::Normalization;
use super::inflect::spell_out_number;
use super::language::Language;
use super::unicode::decimal;
use super::wetext::{CHINESE, ENGLISH, JAPANESE};

/// The spoken form of `text`, in `forced` where that is given, else in the language of each sentence; `around` is the
/// language of what has no letters.
pub(super) fn spoken(
    text: &str,
    forced: Option<Language>,
    around: Language,
    normalization: Normalization,
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut around = around;
    for sentence in sentences(text) {
        let language = forced
            .or_else(|| Language::detect(sentence))
            .unwrap_or(around);
        around = language;
        let body = sentence.trim();
        let start = sentence.len() - sentence.trim_start().len();
        out.push_str(&sentence[..start]);
        out.push_str(&sentence_spoken(body, language, normalization));
        out.push_str(&sentence[start + body.len()..]);
    }
    out
}

fn sentence_spoken(text: &str, language: Language, normalization: Normalization) -> String {
    if !text.chars().any(|c| decimal(c).is_some()) {
        return text.to_owned();
    }
    let grammar = match language {
        Language::Chinese => &CHINESE,
        Language::English => &ENGLISH,
        Language::Japanese => &JAPANESE,
        Language::Korean | Language::Other => {
            return match normalization {
                Normalization::On => spell_out_number(text).unwrap_or_else(|_| text.to_owned()),
                _ => text.to_owned(),
            };
        }
    };
    grammar
        .normalize(text)
        .map_or_else(|| text.to_owned(), |t| t.trim().to_owned())
}

/// `text` in sentences, with their closing marks and white space.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(['。', '！', '？', '\n', '!', '?'])
}
