//! Words that are to be read in a given way.
//!
//! In: lines `word<TAB>replacement` (or `word=replacement`; `#` opens a comment), or pairs. A replacement is spoken as it is
//! written. An entry in small letters matches any case; one with a capital matches as written. Words match whole.

use std::collections::HashMap;

use super::TextError;
use super::language::Script;

const MAX_ENTRIES: usize = 10_000;
const MAX_WORD_BYTES: usize = 256;
const MAX_REPLACEMENT_BYTES: usize = 1024;

/// Words and their replacements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lexicon {
    /// By the first character in lower case; longer words first.
    entries: HashMap<char, Vec<Entry>>,
    len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    word: String,
    replacement: String,
    any_case: bool,
}

impl Lexicon {
    /// Reads the lines of a lexicon file.
    ///
    /// # Errors
    /// [`TextError::Lexicon`] with the number of the first line that is malformed.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let mut lexicon = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_start_matches('\u{feff}').trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let error = |reason: &str| TextError::Lexicon {
                entry: index + 1,
                reason: reason.into(),
            };
            let (word, replacement) = line
                .split_once('\t')
                .or_else(|| line.split_once('='))
                .ok_or_else(|| {
                    error("expected a word, a tab or an equals sign, and its replacement")
                })?;
            lexicon
                .insert(word, replacement)
                .map_err(|reason| error(&reason))?;
        }
        Ok(lexicon)
    }

    /// A lexicon of pairs of word and replacement.
    ///
    /// # Errors
    /// [`TextError::Lexicon`] with the number, from 1, of the first pair that is malformed.
    pub fn from_pairs<W: AsRef<str>, R: AsRef<str>>(
        pairs: impl IntoIterator<Item = (W, R)>,
    ) -> Result<Self, TextError> {
        let mut lexicon = Self::default();
        for (index, (word, replacement)) in pairs.into_iter().enumerate() {
            lexicon
                .insert(word.as_ref(), replacement.as_ref())
                .map_err(|reason| TextError::Lexicon {
                    entry: index + 1,
                    reason,
                })?;
        }
        Ok(lexicon)
    }

    fn insert(&mut self, word: &str, replacement: &str) -> Result<(), String> {
        let (word, replacement) = (word.trim(), replacement.trim());
        let first = word.chars().next().ok_or("the word is empty")?;
        if word.len() > MAX_WORD_BYTES || replacement.len() > MAX_REPLACEMENT_BYTES {
            return Err(format!(
                "a word may have {MAX_WORD_BYTES} bytes and a replacement {MAX_REPLACEMENT_BYTES}"
            ));
        }
        let bucket = self.entries.entry(lower(first)).or_default();
        match bucket.iter_mut().find(|e| e.word == word) {
            Some(entry) => entry.replacement = replacement.into(),
            None => {
                let at = bucket.partition_point(|e| e.word.len() >= word.len());
                let any_case = !word.chars().any(char::is_uppercase);
                bucket.insert(
                    at,
                    Entry {
                        word: word.into(),
                        replacement: replacement.into(),
                        any_case,
                    },
                );
                self.len += 1;
            }
        }
        if self.len > MAX_ENTRIES {
            return Err(format!("more than {MAX_ENTRIES} entries"));
        }
        Ok(())
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The word that `text` has at `position`, and its replacement.
    pub(super) fn at<'a>(&'a self, text: &str, position: usize) -> Option<(usize, &'a str)> {
        let rest = &text[position..];
        let bucket = self.entries.get(&lower(rest.chars().next()?))?;
        let before = text[..position].chars().next_back();
        bucket.iter().find_map(|entry| {
            let len = entry.matches(rest)?;
            let after = rest[len..].chars().next();
            let ends = (entry.word.chars().next(), entry.word.chars().next_back());
            let whole = !joins(before, ends.0) && !joins(ends.1, after);
            whole.then_some((len, entry.replacement.as_str()))
        })
    }
}

impl Entry {
    /// Bytes of `text` that the word covers at its start.
    fn matches(&self, text: &str) -> Option<usize> {
        let mut len = 0;
        let mut chars = text.chars();
        for expected in self.word.chars() {
            let c = chars.next()?;
            if c != expected && !(self.any_case && lower(c) == expected) {
                return None;
            }
            len += c.len_utf8();
        }
        Some(len)
    }
}

fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

/// Whether two neighbours belong to one word. Scripts without spaces have no such boundaries.
fn joins(left: Option<char>, right: Option<char>) -> bool {
    let in_word = |c: Option<char>| {
        c.is_some_and(|c| {
            c.is_alphanumeric()
                && !matches!(Script::of(c), Script::Han | Script::Kana | Script::Hangul)
        })
    };
    in_word(left) && in_word(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_match_whole_and_by_case() {
        let lexicon = Lexicon::parse(
            "# names\nsql\tsequel\nUS=United States\n重庆=虫庆\nsql server = big one\n",
        )
        .unwrap();
        assert_eq!(lexicon.len(), 4);
        assert_eq!(lexicon.at("SQL is", 0), Some((3, "sequel")));
        assert_eq!(lexicon.at("SQL Server", 0), Some((10, "big one")));
        assert_eq!(lexicon.at("mysql", 2), None);
        assert_eq!(lexicon.at("sqlite", 0), None);
        assert_eq!(lexicon.at("us", 0), None);
        assert_eq!(lexicon.at("the US.", 4), Some((2, "United States")));
        assert_eq!(lexicon.at("去重庆玩", 3), Some((6, "虫庆")));
    }

    #[test]
    fn malformed_entries_are_named() {
        assert_eq!(
            Lexicon::parse("a=b\nnonsense"),
            Err(TextError::Lexicon {
                entry: 2,
                reason: "expected a word, a tab or an equals sign, and its replacement".into()
            })
        );
        assert!(Lexicon::from_pairs([("", "x")]).is_err());
        assert!(Lexicon::from_pairs([("a".repeat(300), "x")]).is_err());
    }
}
