//! The words that byte pair encoding works on, as Qwen2 cuts them.
//!
//! In: text. Out: its pieces, which concatenate to it.
//! Reference: the pattern of `Qwen2Tokenizer` in transformers,
//! `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.

use super::unicode::is_letter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    LineEnd,
    /// White space within a line.
    Blank,
    Other,
}

impl Class {
    fn of(c: char) -> Class {
        match c {
            'a'..='z' | 'A'..='Z' | '\u{4e00}'..='\u{9fff}' => Class::Letter,
            '0'..='9' => Class::Number,
            '\r' | '\n' => Class::LineEnd,
            _ if c.is_whitespace() => Class::Blank,
            _ if c.is_ascii() => Class::Other,
            _ if is_letter(c) => Class::Letter,
            _ if c.is_numeric() => Class::Number,
            _ => Class::Other,
        }
    }
}

/// `text` cut into words.
pub(super) fn pretokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let (word, tail) = rest.split_at(word(rest, first));
        rest = tail;
        Some(word)
    })
}

/// Length of the word that `text`, which starts with `first`, begins with.
fn word(text: &str, first: char) -> usize {
    let len = first.len_utf8();
    let rest = &text[len..];
    let class = Class::of(first);
    let second = rest.chars().next().map(Class::of);
    match class {
        Class::Letter => len + run(rest, |c| c == Class::Letter),
        Class::Number => len,
        Class::Other if first == '\'' && contraction(rest) > 0 => len + contraction(rest),
        Class::Blank | Class::Other if second == Some(Class::Letter) => {
            len + run(rest, |c| c == Class::Letter)
        }
        Class::Other => len + marks(rest),
        Class::Blank if first == ' ' && second == Some(Class::Other) => len + marks(rest),
        Class::Blank | Class::LineEnd => spaces(text),
    }
}

fn run(text: &str, wanted: impl Fn(Class) -> bool) -> usize {
    text.find(|c| !wanted(Class::of(c))).unwrap_or(text.len())
}

/// `[^\s\p{L}\p{N}]*[\r\n]*`
fn marks(text: &str) -> usize {
    let len = run(text, |c| c == Class::Other);
    len + run(&text[len..], |c| c == Class::LineEnd)
}

/// White space: up to its last line end, or all but the last character, which belongs to what follows.
fn spaces(text: &str) -> usize {
    let len = run(text, |c| matches!(c, Class::Blank | Class::LineEnd));
    let space = &text[..len];
    if let Some(end) = space.rfind(['\r', '\n']) {
        return end + 1;
    }
    match space.char_indices().next_back() {
        Some((last, _)) if last > 0 && len < text.len() => last,
        _ => len,
    }
}

/// Length of the rest of a contraction after its apostrophe; 0 where it is none. `ſ` is an `s` in another case.
fn contraction(rest: &str) -> usize {
    let mut chars = rest.chars().map(|c| c.to_ascii_lowercase());
    match (chars.next(), chars.next()) {
        (Some('s' | 't' | 'm' | 'd'), _) => 1,
        (Some('ſ'), _) => 'ſ'.len_utf8(),
        (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_the_pattern_cuts_them() {
        for (text, words) in [
            (
                "I'm  here,\n\nok",
                vec!["I", "'m", " ", " here", ",\n\n", "ok"],
            ),
            ("it'S 12%", vec!["it", "'S", " ", "1", "2", "%"]),
            ("a \r\n  b\u{a0}c", vec!["a", " \r\n", " ", " b", "\u{a0}c"]),
            ("你好，world。 ", vec!["你好", "，world", "。", " "]),
            (" ?! (x) 'tis", vec![" ?!", " (", "x", ")", " '", "tis"]),
            ("e\u{301}a ①½", vec!["e", "\u{301}a", " ", "①", "½"]),
        ] {
            assert_eq!(pretokens(text).collect::<Vec<_>>(), words, "{text:?}");
        }
    }
}
