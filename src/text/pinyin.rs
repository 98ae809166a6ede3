//! Inline pinyin: `[zh][òng]`, one bracket each for initial and final.
//!
//! Checkpoints whose tokenizer has these as tokens read them (they then pass as tags); others would spell the brackets out,
//! so that is refused.
//! Reference: `CosyVoice3Tokenizer` in `cosyvoice/tokenizer/tokenizer.py`.

use super::TextError;
use super::tags::{Run, Tags};

const INITIALS: [&str; 23] = [
    "b", "p", "m", "f", "d", "t", "n", "l", "g", "k", "h", "j", "q", "x", "zh", "ch", "sh", "r",
    "z", "c", "s", "y", "w",
];
const TONED: &str = "āáǎàēéěèīíǐìōóǒòūúǔùǖǘǚǜ";

/// Refuses pinyin that the tokenizer has no tokens for.
///
/// # Errors
/// [`TextError::Pinyin`] with the first such syllable.
pub(super) fn check(text: &str, tags: &Tags) -> Result<(), TextError> {
    if !text.contains(|c| TONED.contains(c)) {
        return Ok(());
    }
    for run in tags.split(text) {
        let Run::Plain(plain) = run else { continue };
        if let Some(found) = syllable(plain) {
            return Err(TextError::Pinyin {
                found: found.into(),
            });
        }
    }
    Ok(())
}

/// The first bracketed final with a tone mark, with the initial before it where there is one.
fn syllable(text: &str) -> Option<&str> {
    let mut opened = None;
    let mut initial = None;
    for (i, c) in text.char_indices() {
        match (c, opened) {
            ('[', _) => opened = Some(i),
            (']', Some(start)) => {
                let inside = &text[start + 1..i];
                if is_final(inside) {
                    return Some(
                        &text[initial
                            .filter(|&(_, end)| end == start)
                            .map_or(start, |(s, _)| s)..=i],
                    );
                }
                initial = INITIALS.contains(&inside).then_some((start, i + 1));
                opened = None;
            }
            _ => {}
        }
    }
    None
}

fn is_final(text: &str) -> bool {
    text.chars().count() <= 5
        && text.chars().filter(|&c| TONED.contains(c)).count() == 1
        && text
            .chars()
            .all(|c| TONED.contains(c) || c.is_ascii_lowercase() || c == 'ü')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syllables_are_found() {
        assert_eq!(syllable("报道[j][ǐ]予"), Some("[j][ǐ]"));
        assert_eq!(syllable("[a] [ài]"), Some("[ài]"));
        assert_eq!(syllable("[résumé] [été] [Ā] [laughter]"), None);
        assert!(check("报道[j][ǐ]予", &Tags::default()).is_err());
        assert!(check("déjà vu", &Tags::default()).is_ok());
    }
}
