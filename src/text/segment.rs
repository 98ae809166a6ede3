//! The splitter of long texts by number of tokens: at sentences, then clauses, then words; never inside a word or a tag.
//!
//! In: a normalised text that may hold tags. Out: segments, in order, that concatenate to the text but for the white
//! space where it was cut.

use super::language::{Language, Script};
use super::tags::Tags;

/// How long segments may be, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// No segment is longer, unless one tag or one character alone is.
    pub(super) max: usize,
    /// A last segment shorter than this takes a sentence from the one before.
    pub(super) short: usize,
}

/// Where a text may be cut, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Level {
    Sentence,
    Clause,
    Word,
    Character,
    /// Even between a letter and the marks that belong to it.
    CodePoint,
}

impl Level {
    fn finer(self) -> Option<Level> {
        match self {
            Level::Sentence => Some(Level::Clause),
            Level::Clause => Some(Level::Word),
            Level::Word => Some(Level::Character),
            Level::Character => Some(Level::CodePoint),
            Level::CodePoint => None,
        }
    }
}

/// A piece of the text and its number of tokens.
#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    text: &'a str,
    tokens: usize,
}

/// Splits `text`; `count` gives the number of tokens of a text.
pub(super) fn split<'a>(
    text: &'a str,
    tags: &Tags,
    count: &impl Fn(&str) -> usize,
    limits: Limits,
) -> Vec<&'a str> {
    let text = text.trim();
    let pieces = pieces(text, Level::Sentence, tags, count, limits.max);
    let mut groups = pack(&pieces, limits.max);
    rebalance(&mut groups, &pieces, limits);
    groups
        .into_iter()
        .filter_map(|group| {
            let (first, last) = (pieces.get(group.start)?, pieces[..group.end].last()?);
            let start = first.text.as_ptr() as usize - text.as_ptr() as usize;
            let end = last.text.as_ptr() as usize - text.as_ptr() as usize + last.text.len();
            Some(text[start..end].trim()).filter(|s| !s.is_empty())
        })
        .collect()
}

/// `segment` as `finish` makes it, with its tokens. Where these are more than `whole`, because of a closing mark say, the
/// segment is split into shorter ones first.
pub(super) fn within(
    segment: &str,
    tags: &Tags,
    encode: &impl Fn(&str) -> Vec<i32>,
    whole: usize,
    finish: &impl Fn(&str) -> String,
) -> Vec<(String, Vec<i32>)> {
    let finished = finish(segment);
    let tokens = encode(&finished);
    let excess = tokens.len().saturating_sub(whole);
    if excess == 0 {
        return vec![(finished, tokens)];
    }
    let count = |text: &str| encode(text).len();
    let mut max = count(segment).saturating_sub(excess);
    while max > 0 {
        let limits = Limits {
            max,
            short: max / 4,
        };
        let shorter = split(segment, tags, &count, limits);
        if shorter.len() > 1 {
            return shorter
                .into_iter()
                .flat_map(|s| within(s, tags, encode, whole, finish))
                .collect();
        }
        // Pieces may add up to fewer tokens than the whole has.
        max = max.saturating_sub(1 + max / 8);
    }
    vec![(finished, tokens)]
}

/// Pieces of `text` of at most `max` tokens each, cut as coarsely as that allows.
fn pieces<'a>(
    text: &'a str,
    level: Level,
    tags: &Tags,
    count: &impl Fn(&str) -> usize,
    max: usize,
) -> Vec<Piece<'a>> {
    let mut result = Vec::new();
    for part in cut(text, level, tags) {
        let tokens = count(part);
        match level.finer() {
            Some(finer) if tokens > max => result.extend(pieces(part, finer, tags, count, max)),
            _ => result.push(Piece { text: part, tokens }),
        }
    }
    result
}

/// Greedy groups of pieces, as ranges.
fn pack(pieces: &[Piece], max: usize) -> Vec<std::ops::Range<usize>> {
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (i, piece) in pieces.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if tokens + piece.tokens <= max => {
                group.end = i + 1;
                tokens += piece.tokens;
            }
            _ => {
                groups.push(i..i + 1);
                tokens = piece.tokens;
            }
        }
    }
    groups
}

/// A short last group makes a weak ending: pieces move into it from the group before while that one stays the longer.
fn rebalance(groups: &mut [std::ops::Range<usize>], pieces: &[Piece], limits: Limits) {
    let [.., before, last] = groups else {
        return;
    };
    let tokens =
        |r: &std::ops::Range<usize>| pieces[r.clone()].iter().map(|p| p.tokens).sum::<usize>();
    while tokens(last) < limits.short && before.len() > 1 {
        let moved = pieces[before.end - 1].tokens;
        if tokens(before) - moved < tokens(last) + moved {
            return;
        }
        before.end -= 1;
        last.start -= 1;
    }
}

/// The text cut after every boundary of that level; tags stay whole.
fn cut<'a>(text: &'a str, level: Level, tags: &Tags) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut start, mut position) = (0, 0);
    let mut previous = None;
    while let Some(c) = text[position..].chars().next() {
        let tag = tags.at(&text[position..]);
        let end = position + tag.map_or(c.len_utf8(), str::len);
        let next = text[end..].chars().next();
        let boundary = match (tag, next) {
            (_, None) => true,
            (Some(_), Some(_)) => level >= Level::Character,
            (None, Some(next)) => ends(level, previous, c, next),
        };
        if boundary {
            let closers = text[end..]
                .find(|c: char| !(is_closer(c) || c.is_whitespace()) || level >= Level::Character)
                .unwrap_or(text.len() - end);
            parts.push(&text[start..end + closers]);
            start = end + closers;
            position = start;
        } else {
            position = end;
        }
        previous = Some(c);
    }
    parts
}

fn ends(level: Level, previous: Option<char>, c: char, next: char) -> bool {
    let spaced = next.is_whitespace() || is_closer(next) || is_wide(next);
    let sentence = matches!(c, '。' | '？' | '！' | '；' | '…' | '\n' | '｡')
        || (matches!(c, '?' | '!' | ';') && !matches!(next, '?' | '!'))
        || (c == '.' && spaced && !is_initial(previous));
    let clause = || {
        sentence
            || matches!(c, '，' | '、' | '：' | '—' | '～')
            || (matches!(c, ',' | ':' | ')' | '）' | ']' | '"' | '”') && spaced)
    };
    match level {
        Level::Sentence => sentence,
        Level::Clause => clause(),
        Level::Word => clause() || c.is_whitespace() || is_wide(c) || is_wide(next),
        Level::Character => !is_joiner(next) && !is_joiner(c),
        Level::CodePoint => true,
    }
}

/// Whether a full stop after it ends an initial rather than a sentence: `J. Smith`.
fn is_initial(previous: Option<char>) -> bool {
    previous.is_none_or(char::is_whitespace)
}

fn is_closer(c: char) -> bool {
    matches!(
        c,
        '"' | '”' | '’' | ')' | '）' | '】' | '」' | '』' | '》' | '\'' | ']'
    )
}

/// Characters of scripts without spaces, each of which may end a word.
fn is_wide(c: char) -> bool {
    matches!(Script::of(c), Script::Han | Script::Kana)
}

/// Marks that belong to the character before them.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{300}'..='\u{36f}' | '\u{1f3fb}'..='\u{1f3ff}' | '\u{3099}' | '\u{309a}')
}

/// The mark that closes a segment which has none.
pub(super) fn close(segment: &mut String, language: Language) {
    let Some(last) = segment.chars().rev().find(|&c| !is_closer(c)) else {
        return;
    };
    if last.is_alphanumeric() {
        segment.push(if language.is_unspaced() { '。' } else { '.' });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stand-in for a tokenizer: a token per word and mark, and per character of scripts without spaces.
    fn count(text: &str) -> usize {
        let words = text
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|w| !w.is_empty())
            .count();
        words
            + text
                .chars()
                .filter(|c| !c.is_ascii_alphanumeric() && !c.is_whitespace())
                .count()
    }

    fn tags() -> Tags {
        Tags::new(["[laughter]", "<strong>", "</strong>"])
    }

    fn squeezed(text: &str) -> String {
        text.chars().filter(|c| !c.is_whitespace()).collect()
    }

    #[test]
    fn sentences_are_kept_together_and_endings_balanced() {
        let limits = Limits { max: 12, short: 4 };
        let text = "One two three four five. Six seven eight nine ten. Eleven.";
        assert_eq!(
            split(text, &tags(), &count, limits),
            [
                "One two three four five. Six seven eight nine ten.",
                "Eleven."
            ]
        );
        let text = "Dr. A. Smith came at 3.14 sharp. He left.";
        assert_eq!(
            split(text, &tags(), &count, Limits { max: 10, short: 1 }).last(),
            Some(&"He left.")
        );
        let long = "一二三四五，六七八九十，甲乙丙丁戊己庚辛壬癸子丑寅卯";
        assert_eq!(
            split(long, &tags(), &count, limits),
            [
                "一二三四五，六七八九十，",
                "甲乙丙丁戊己庚辛壬癸",
                "子丑寅卯"
            ]
        );
    }

    proptest! {
        #[test]
        fn segments_hold_the_text_within_the_limit(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "hello", " ", "world.", "。", "你好", "，", "[laughter]", "<strong>", "</strong>", "<|zh|>", "3.14", "!", "😀", "\n",
                    "\"", "”", "…", "e\u{301}", "日本語です", "A. B.", "…?", "[", "<|", "https://a.b/c", "\u{3000}",
                ]),
                0..120,
            ),
            max in 5usize..40,
        ) {
            let text: String = pieces.concat();
            let segments = split(&text, &tags(), &count, Limits { max, short: max / 4 });
            prop_assert_eq!(squeezed(&segments.concat()), squeezed(&text));
            for segment in &segments {
                prop_assert!(count(segment) <= max || !segment.contains(' '), "{} tokens in {segment}", count(segment));
                for tag in ["[laughter]", "<strong>"] {
                    let whole = segment.matches(tag).count();
                    let opened = segment.matches(&tag[..tag.len() - 1]).count();
                    prop_assert_eq!(whole, opened, "a tag is cut in {}", segment);
                }
            }
        }

        #[test]
        fn any_text_is_split(text in any::<String>(), max in 1usize..50) {
            let segments = split(&text, &tags(), &count, Limits { max, short: max / 4 });
            prop_assert_eq!(squeezed(&segments.concat()), squeezed(&text));
        }
    }
}
