//! Control tags in a text: the tokenizer's special tokens and `<|…|>`; they pass through untouched.

use super::Tokenizer;

/// The longest `<|…|>` that counts as a tag, in bytes.
const MAX_TAG_BYTES: usize = 64;

/// Tags that a tokenizer knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Tags {
    known: Vec<String>,
}

impl Tags {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        Self::new(tokenizer.special_tokens().iter().map(|(t, _)| t.as_str()))
    }

    pub(super) fn new<'a>(known: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known: Vec<String> = known.into_iter().map(String::from).collect();
        // The longest first, so that a tag which begins like a shorter one is found whole.
        known.sort_by_key(|t| std::cmp::Reverse(t.len()));
        Self { known }
    }

    /// The tag that `text` begins with.
    pub(super) fn at<'a>(&self, text: &'a str) -> Option<&'a str> {
        if !text.starts_with(['<', '[']) {
            return None;
        }
        if let Some(tag) = self.known.iter().find(|t| text.starts_with(t.as_str())) {
            return Some(&text[..tag.len()]);
        }
        let inside = text.strip_prefix("<|")?;
        let near = &inside.as_bytes()[..inside.len().min(MAX_TAG_BYTES - 2)];
        let end = near.windows(2).position(|w| w == b"|>")?;
        (!inside[..end].contains(['<', '\n'])).then(|| &text[..end + 4])
    }

    /// `text` as plain runs and tags, in order.
    pub(super) fn split<'a>(&self, text: &'a str) -> Vec<Run<'a>> {
        let mut runs = Vec::new();
        let (mut start, mut position) = (0, 0);
        while let Some(offset) = text[position..].find(['<', '[']) {
            position += offset;
            match self.at(&text[position..]) {
                Some(tag) => {
                    if start < position {
                        runs.push(Run::Plain(&text[start..position]));
                    }
                    runs.push(Run::Tag(tag));
                    position += tag.len();
                    start = position;
                }
                None => position += 1,
            }
        }
        if start < text.len() {
            runs.push(Run::Plain(&text[start..]));
        }
        runs
    }
}

/// Part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run<'a> {
    Plain(&'a str),
    Tag(&'a str),
}
