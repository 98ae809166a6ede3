//! Written to spoken form, sentence by sentence, each in its own language: rules, grammar, rules.
//!
//! In: plain text without tags. Out: the text as it is spoken. Memory and time are linear in the text.

use super::frontend::Normalization;
use super::inflect::spell_out_number;
use super::language::{Language, Script};
use super::rules;
use super::unicode::decimal;
use super::wetext::{CHINESE, ENGLISH, JAPANESE};

/// Longest text that a grammar is given at once, in bytes; the search keeps every byte's states.
const MAX_GRAMMAR_BYTES: usize = 1200;

/// Latin words from which on a run inside a Chinese or Japanese sentence is read as English.
const ENGLISH_RUN_WORDS: usize = 4;

/// The spoken form of `text`, in `forced` where that is given, else in the language of each sentence; `around` is the
/// language of what has no letters.
pub(super) fn spoken(
    text: &str,
    forced: Option<Language>,
    mut around: Language,
    normalization: Normalization,
) -> String {
    let mut out = String::with_capacity(text.len());
    for sentence in sentences(text) {
        let language = forced
            .or_else(|| Language::detect(sentence))
            .unwrap_or(around);
        around = language;
        let body = sentence.trim();
        let start = sentence.len() - sentence.trim_start().len();
        out.push_str(&sentence[..start]);
        for (run, language) in runs(body, language) {
            out.push_str(&run_spoken(run, language, normalization));
        }
        out.push_str(&sentence[start + body.len()..]);
    }
    out
}

/// The spoken form of a short text in one language.
pub(super) fn in_language(text: &str, language: Language) -> String {
    spoken(text, Some(language), language, Normalization::Auto)
}

/// The name of a lone symbol; empty where it has none.
pub(super) fn symbol(c: char, language: Language) -> String {
    rules::after(c.encode_utf8(&mut [0; 4]), language)
        .trim()
        .to_owned()
}

/// A text in lines as running text: a line that ends without a mark ends a sentence where it is followed by a blank
/// line, and always in scripts without spaces; other line breaks are mere spaces.
pub(super) fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank = false;
    for line in text.lines() {
        if line.trim().is_empty() {
            blank = true;
            continue;
        }
        if let Some(last) = out.trim_end().chars().next_back() {
            let wide = matches!(Script::of(last), Script::Han | Script::Kana);
            if last.is_alphanumeric() && (wide || blank) {
                out.push(if wide { '。' } else { '.' });
            }
            if last < '\u{2e80}' {
                out.push(' ');
            }
        }
        blank = false;
        out.push_str(line);
    }
    let wide_gap = |a: char, b: char| a == ' ' && (b == ' ' || !b.is_ascii());
    let gaps = out
        .chars()
        .zip(out.chars().skip(1))
        .any(|(a, b)| wide_gap(a, b) || wide_gap(b, a));
    if gaps { rules::tidy(&out) } else { out }
}

fn run_spoken(text: &str, language: Language, normalization: Normalization) -> String {
    if text.chars().all(|c| is_plain(c, language)) && !has_abbreviation(text, language) {
        return text.to_owned();
    }
    let lead = text.len() - text.trim_start().len();
    let tail = text.len() - text.trim_end().len();
    if lead + tail >= text.len() {
        return text.to_owned();
    }
    let body = narrow_digits(&text[lead..text.len() - tail]);
    let words = match language {
        Language::Korean | Language::Other if normalization == Normalization::On => {
            let body = rules::before(&body, language);
            rules::after(&spell_out_number(&body).unwrap_or(body), language)
        }
        Language::Korean | Language::Other => rules::before(&body, language),
        _ => {
            let read = rules::before(&body, language);
            rules::after(&grammar_spoken(&read, language), language)
        }
    };
    format!("{}{words}{}", &text[..lead], &text[text.len() - tail..])
}

/// Characters that no rule and no grammar reads.
fn is_plain(c: char, language: Language) -> bool {
    let mark = matches!(
        c,
        ' ' | ','
            | '!'
            | '?'
            | ';'
            | '\''
            | '’'
            | '"'
            | '“'
            | '”'
            | '，'
            | '。'
            | '！'
            | '？'
            | '；'
            | '：'
            | '、'
            | '（'
            | '）'
            | '…'
            | '「'
            | '」'
            | '\n'
    );
    match language {
        Language::English => {
            c.is_ascii_alphabetic()
                || mark
                || c == '.'
                || c == '-'
                || c == '('
                || c == ')'
                || c == ':'
        }
        _ => {
            mark || c == '.'
                || c == '-'
                || (c.is_alphabetic() && !('\u{2160}'..='\u{217f}').contains(&c) && c != 'π')
        }
    }
}

/// Whether a plain English text may hold something to read: a point after letters, or a Roman numeral.
fn has_abbreviation(text: &str, language: Language) -> bool {
    let bytes = text.as_bytes();
    let inner = |i: usize| bytes[i] == b'.' && i > 0 && i + 1 < bytes.len();
    let point = (0..bytes.len()).any(|i| inner(i) && bytes[i - 1].is_ascii_alphabetic());
    match language {
        Language::English => {
            point
                || text.ends_with('.') && ends_in_abbreviation(text)
                || text.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| {
                    !w.is_empty() && w.bytes().all(|b| matches!(b, b'I' | b'V' | b'X' | b'L'))
                })
                || text.contains(" vs ")
                || has_weekdays(text)
        }
        _ => point || text.contains(['I', 'V', 'X']),
    }
}

/// Whether a span of weekdays may be there: `Mon-Fri`.
fn has_weekdays(text: &str) -> bool {
    let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    text.contains('-') && days.iter().any(|day| text.contains(day))
}

fn ends_in_abbreviation(text: &str) -> bool {
    let word = text
        .trim_end_matches('.')
        .rsplit(|c: char| !c.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();
    (1..=5).contains(&word.len())
}

/// Full-width digits and marks between digits as ASCII.
fn narrow_digits(text: &str) -> String {
    text.chars()
        .map(|c| match (decimal(c), c) {
            (Some(digit), _) if !c.is_ascii() => char::from(b'0' + digit),
            (_, '％') => '%',
            _ => c,
        })
        .collect()
}

fn grammar_spoken(text: &str, language: Language) -> String {
    let grammar = match language {
        Language::Chinese => &CHINESE,
        Language::Japanese => &JAPANESE,
        _ => &ENGLISH,
    };
    if !text.chars().any(|c| c.is_ascii_digit()) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + text.len() / 2);
    for chunk in chunks(text) {
        if !chunk.bytes().any(|b| b.is_ascii_digit()) {
            out.push_str(chunk);
            continue;
        }
        let body = chunk.trim();
        let start = chunk.len() - chunk.trim_start().len();
        out.push_str(&chunk[..start]);
        match grammar.normalize(body) {
            Some(words) => out.push_str(words.trim()),
            None => out.push_str(body),
        }
        out.push_str(&chunk[start + body.len()..]);
    }
    out
}

/// `text` in clauses: cut after a comma between letters, where no reading crosses it; and in pieces of bounded length, at
/// a space or, if need be, between letters.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = match clause(rest) {
            Some(end) => end,
            None if rest.len() <= MAX_GRAMMAR_BYTES => rest.len(),
            None => bounded(rest),
        };
        let (chunk, tail) = rest.split_at(cut);
        rest = tail;
        Some(chunk)
    })
}

/// The end of the first clause, if it is short enough.
fn clause(text: &str) -> Option<usize> {
    let mut previous = ' ';
    for (i, c) in text.char_indices() {
        let end = i + c.len_utf8();
        if end > MAX_GRAMMAR_BYTES {
            break;
        }
        if matches!(c, ',' | ';' | '，' | '、') && previous.is_alphabetic() {
            let next = text[end..].trim_start_matches(' ');
            let spaced = !c.is_ascii() || next.len() < text.len() - end;
            if spaced && next.starts_with(char::is_alphabetic) {
                return Some(text.len() - next.len());
            }
        }
        previous = c;
    }
    None
}

fn bounded(text: &str) -> usize {
    let limit = (0..=MAX_GRAMMAR_BYTES.min(text.len()))
        .rev()
        .find(|&i| text.is_char_boundary(i))
        .unwrap_or(0);
    let head = &text[..limit];
    head.rfind(' ')
        .map(|i| i + 1)
        .or_else(|| {
            head.char_indices()
                .rev()
                .find(|(_, c)| c.is_alphabetic())
                .map(|(i, c)| i + c.len_utf8())
        })
        .filter(|&i| i > 0)
        .unwrap_or(limit)
}

/// `text` in sentences, with their closing marks and white space.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut previous = None;
        for (i, c) in rest.char_indices() {
            let end = i + c.len_utf8();
            if ends_sentence(&rest[..i], previous, c, &rest[end..]) {
                let closers = rest[end..]
                    .find(|c: char| !matches!(c, '"' | '”' | '’' | '」' | '』' | '）' | ' '));
                let end = closers.map_or(rest.len(), |c| end + c);
                let (sentence, tail) = rest.split_at(end);
                rest = tail;
                return Some(sentence);
            }
            previous = Some(c);
        }
        (!rest.is_empty()).then(|| std::mem::take(&mut rest))
    })
}

fn ends_sentence(before: &str, previous: Option<char>, c: char, after: &str) -> bool {
    match c {
        '。' | '！' | '？' | '；' | '\n' => true,
        '!' | '?' => !after
            .starts_with(|c: char| c.is_ascii_alphanumeric() || c == '=' || c == '!' || c == '?'),
        '.' if previous.is_some_and(|p| p.is_alphanumeric()) => {
            let word = before
                .rsplit(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap_or_default();
            let next = after.trim_start_matches(' ');
            // Abbreviations are short; a new sentence opens with a capital or in another script.
            after.starts_with(' ')
                && word.chars().count() > 4
                && next.starts_with(|c: char| {
                    c.is_uppercase()
                        || matches!(Script::of(c), Script::Han | Script::Kana | Script::Hangul)
                })
        }
        _ => false,
    }
}

/// Long runs of English inside a sentence of a script without spaces are English; all else is of the sentence's language.
fn runs(text: &str, language: Language) -> Vec<(&str, Language)> {
    if !language.is_unspaced() || !text.contains(|c: char| c.is_ascii_alphabetic()) {
        return vec![(text, language)];
    }
    let mut result = Vec::new();
    let (mut start, mut position) = (0, 0);
    while let Some(offset) = text[position..].find(|c: char| c.is_ascii_alphabetic()) {
        let from = position + offset;
        let len = text[from..]
            .find(|c: char| !c.is_ascii())
            .unwrap_or(text.len() - from);
        let run = text[from..from + len].trim_end_matches(|c: char| !c.is_ascii_alphabetic());
        let words = run
            .split(' ')
            .filter(|w| {
                w.bytes().any(|b| b.is_ascii_lowercase())
                    && w.bytes()
                        .all(|b| b.is_ascii_alphabetic() || b"',.-;:!?".contains(&b))
            })
            .count();
        if words >= ENGLISH_RUN_WORDS {
            if start < from {
                result.push((&text[start..from], language));
            }
            result.push((run, Language::English));
            start = from + run.len();
        }
        position = from + len.max(1);
    }
    if start < text.len() {
        result.push((&text[start..], language));
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn auto(text: &str) -> String {
        spoken(text, None, Language::English, Normalization::Auto)
    }

    #[test]
    fn each_sentence_is_read_in_its_language() {
        assert_eq!(
            auto("我有3个苹果。I have 3 apples. りんごが3個です。"),
            "我有三个苹果。I have three apples. りんごが三個です。"
        );
        assert_eq!(
            auto("他说I have 3 apples in my bag然后走了"),
            "他说I have three apples in my bag然后走了"
        );
        assert_eq!(auto("Привет 3"), "Привет 3");
        assert_eq!(
            spoken("Привет 3", None, Language::English, Normalization::On),
            "Привет three"
        );
    }

    #[test]
    fn lines_become_sentences() {
        assert_eq!(lines("Title\n\nBody goes\non."), "Title. Body goes on.");
        assert_eq!(lines("标题\n正文。"), "标题。正文。");
    }

    proptest! {
        #[test]
        fn plain_words_stay(words in prop::collection::vec("[a-z]{3,8}", 1..12)) {
            let text = words.join(" ");
            let once = auto(&text);
            prop_assert_eq!(&once, &text);
        }

        #[test]
        fn twice_is_once_for_what_has_no_marks(text in "[a-z0-9 一-三你好个]{0,40}") {
            let once = auto(&text);
            prop_assert_eq!(auto(&once), once);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            for language in [Language::Chinese, Language::English, Language::Japanese, Language::Korean] {
                let _ = in_language(&text, language);
            }
        }

        #[test]
        fn no_dense_text_panics(text in "[-0-9.,:/%$€°~+#@&a-zA-Z 年月日个元第“”<>\\[\\]^²½①Ⅳ😀]{0,60}") {
            for language in [Language::Chinese, Language::English, Language::Japanese] {
                let _ = in_language(&text, language);
            }
        }
    }
}
