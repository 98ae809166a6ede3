//! The official splitter: sentences, merged up to a length.
//!
//! Reference: `split_paragraph` in `cosyvoice/utils/frontend_utils.py`.

use super::TextError;

/// Parameters of [`split_paragraph`]; lengths are characters for Chinese and tokens otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitOptions {
    pub chinese: bool,
    /// A segment that would grow past this is closed,
    pub token_max_n: usize,
    /// if it is already longer than this.
    pub token_min_n: usize,
    /// A last segment shorter than this joins the one before.
    pub merge_len: usize,
    /// Commas end a sentence too.
    pub comma_split: bool,
}

impl SplitOptions {
    /// What `text_normalize` passes.
    pub fn official(chinese: bool) -> Self {
        Self {
            chinese,
            token_max_n: 80,
            token_min_n: 60,
            merge_len: 20,
            comma_split: false,
        }
    }

    fn ends_sentence(&self, c: char) -> bool {
        match c {
            '.' | '?' | '!' | ';' => true,
            '。' | '？' | '！' | '；' | '：' | '、' => self.chinese,
            ':' => !self.chinese,
            '，' | ',' => self.comma_split,
            _ => false,
        }
    }

    fn length(&self, text: &str, count: &impl Fn(&str) -> usize) -> usize {
        if self.chinese {
            text.chars().count()
        } else {
            count(text)
        }
    }
}

/// Segments of `text`, each ending in a mark; `count` gives the number of tokens of a text.
///
/// # Errors
/// [`TextError::Official`] for an empty text and for one that opens with a mark and a closing quote.
pub fn split_paragraph(
    text: &str,
    count: impl Fn(&str) -> usize,
    options: &SplitOptions,
) -> Result<Vec<String>, TextError> {
    let sentences = sentences(text, options)?;
    let mut segments: Vec<String> = Vec::new();
    let mut current = String::new();
    for sentence in &sentences {
        if !current.is_empty() {
            let joined = format!("{current}{sentence}");
            if options.length(&joined, &count) > options.token_max_n
                && options.length(&current, &count) > options.token_min_n
            {
                segments.push(std::mem::take(&mut current));
            }
        }
        current.push_str(sentence);
    }
    if !current.is_empty() {
        match segments.last_mut() {
            Some(last) if options.length(&current, &count) < options.merge_len => {
                last.push_str(&current);
            }
            _ => segments.push(current),
        }
    }
    Ok(segments)
}

/// The text cut after every mark (and the closing quote after it); an empty sentence is dropped with its mark.
fn sentences(text: &str, options: &SplitOptions) -> Result<Vec<String>, TextError> {
    let raises = || TextError::official("split_paragraph", "IndexError");
    let mut chars: Vec<char> = text.chars().collect();
    let last = *chars.last().ok_or_else(raises)?;
    if !options.ends_sentence(last) {
        chars.push(if options.chinese { '。' } else { '.' });
    }
    let mut sentences: Vec<String> = Vec::new();
    let mut start = 0;
    for (i, &c) in chars.iter().enumerate() {
        if !options.ends_sentence(c) {
            continue;
        }
        if start < i {
            sentences.push(chars[start..=i].iter().collect());
        }
        start = i + 1;
        if let Some(&quote @ ('"' | '”')) = chars.get(i + 1) {
            sentences.last_mut().ok_or_else(raises)?.push(quote);
            start = i + 2;
        }
    }
    Ok(sentences)
}
