//! The Qwen2 byte-level BPE tokenizer with the special tokens of CosyVoice2.
//!
//! In: `vocab.json`, `merges.txt` and, where present, `tokenizer_config.json` of the checkpoint's `CosyVoice-BlankEN`.
//! Reference: `CosyVoice2Tokenizer` in `cosyvoice/tokenizer/tokenizer.py` over the `Qwen2Tokenizer` of transformers.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::TextError;
use super::bpe::{Bpe, Scratch};
use super::pretokens::pretokens;

/// Tokens that CosyVoice2 adds after those of the Qwen2 files, in this order.
const SPECIAL_TOKENS: [&str; 20] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endofprompt|>",
    "[breath]",
    "<strong>",
    "</strong>",
    "[noise]",
    "[laughter]",
    "[cough]",
    "[clucking]",
    "[accent]",
    "[quick_breath]",
    "<laughter>",
    "</laughter>",
    "[hissing]",
    "[sigh]",
    "[vocalized-noise]",
    "[lipsmack]",
    "[mn]",
];

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, AddedTokenConfig>,
}

#[derive(Deserialize)]
struct AddedTokenConfig {
    content: String,
}

/// Text to ids and back.
pub struct Tokenizer {
    bpe: Bpe,
    /// By id.
    special: Vec<(String, i32)>,
    /// The same, by their first bytes; the longest first.
    by_start: Vec<Vec<(String, u32)>>,
}

impl Tokenizer {
    /// Reads the tokenizer files in `dir`, or in its `CosyVoice-BlankEN` folder.
    ///
    /// # Errors
    /// [`TextError::TokenizerFile`] naming the file that is missing or malformed.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let nested = dir.join("CosyVoice-BlankEN");
        let dir = if !dir.join("vocab.json").is_file() && nested.is_dir() {
            nested.as_path()
        } else {
            dir
        };
        let bpe = Bpe::load(&dir.join("vocab.json"), &dir.join("merges.txt"))?;
        let from_files = added_tokens(&dir.join("tokenizer_config.json"))?;
        let tokens = from_files
            .iter()
            .map(String::as_str)
            .chain(SPECIAL_TOKENS)
            .filter(|token| !token.is_empty());
        let mut ids: BTreeMap<String, u32> = BTreeMap::new();
        let mut next = bpe.len() as u32;
        for token in tokens {
            if ids.contains_key(token) {
                continue;
            }
            let id = bpe.id(token).unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            ids.insert(token.to_owned(), id);
        }
        let mut by_start = vec![Vec::new(); 256];
        for (token, &id) in &ids {
            by_start[usize::from(token.as_bytes()[0])].push((token.clone(), id));
        }
        for tokens in &mut by_start {
            tokens.sort_by_key(|(token, _): &(String, u32)| Reverse(token.len()));
        }
        let mut special: Vec<(String, i32)> =
            ids.into_iter().map(|(t, id)| (t, id as i32)).collect();
        special.sort_by_key(|&(_, id)| id);
        Ok(Self {
            bpe,
            special,
            by_start,
        })
    }

    /// Token ids of `text`.
    pub fn encode(&self, text: &str) -> Vec<i32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.each(text, |id| ids.push(id as i32));
        ids
    }

    /// Number of tokens of `text`.
    pub fn count(&self, text: &str) -> usize {
        let mut count = 0;
        self.each(text, |_| count += 1);
        count
    }

    /// Gives every token of `text` to `sink`: special tokens first, byte pairs in what is between them.
    fn each(&self, text: &str, mut sink: impl FnMut(u32)) {
        let mut scratch = Scratch::default();
        let mut start = 0;
        while let Some((at, token)) = self.next_special(text, start) {
            self.plain(&text[start..at], &mut scratch, &mut sink);
            sink(token.1);
            start = at + token.0.len();
        }
        self.plain(&text[start..], &mut scratch, &mut sink);
    }

    fn plain(&self, text: &str, scratch: &mut Scratch, sink: &mut impl FnMut(u32)) {
        for word in pretokens(&composed(text)) {
            self.bpe.encode(word.as_bytes(), scratch, sink);
        }
    }

    /// The first special token from `position` on.
    fn next_special(&self, text: &str, position: usize) -> Option<(usize, &(String, u32))> {
        let bytes = text.as_bytes();
        (position..bytes.len()).find_map(|at| {
            let token = self.by_start[usize::from(bytes[at])]
                .iter()
                .find(|(token, _)| bytes[at..].starts_with(token.as_bytes()))?;
            Some((at, token))
        })
    }

    /// The text of `ids` without special tokens; ids that do not exist are skipped.
    pub fn decode(&self, ids: &[i32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            let special = self.special.binary_search_by_key(&id, |&(_, id)| id);
            let content = u32::try_from(id).ok().and_then(|id| self.bpe.content(id));
            if let (Err(_), Some(content)) = (special, content) {
                bytes.extend_from_slice(content);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The id of a token by its exact content.
    pub fn token_to_id(&self, token: &str) -> Option<i32> {
        let special = self.special.iter().find(|(t, _)| t == token);
        let id = special.map(|&(_, id)| id);
        id.or_else(|| self.bpe.id(token).map(|id| id as i32))
    }

    /// The special tokens and their ids, by id.
    pub fn special_tokens(&self) -> &[(String, i32)] {
        &self.special
    }

    /// Number of tokens, special ones included.
    #[expect(clippy::len_without_is_empty, reason = "a tokenizer is never empty")]
    pub fn len(&self) -> usize {
        let added = self
            .special
            .iter()
            .filter(|(t, _)| self.bpe.id(t).is_none());
        self.bpe.len() + added.count()
    }
}

/// Normalization form C.
fn composed(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}

/// Tokens that the tokenizer's own configuration adds, by id.
fn added_tokens(path: &Path) -> Result<Vec<String>, TextError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(TextError::tokenizer(path, &e)),
    };
    let config: TokenizerConfig =
        serde_json::from_slice(&bytes).map_err(|e| TextError::tokenizer(path, &e))?;
    let mut tokens = config
        .added_tokens_decoder
        .into_iter()
        .map(|(id, token)| {
            let id: u32 = id.parse().map_err(|_| {
                TextError::tokenizer(path, &format!("token id {id:?} is not a number"))
            })?;
            Ok((id, token.content))
        })
        .collect::<Result<Vec<_>, TextError>>()?;
    tokens.sort_by_key(|&(id, _)| id);
    Ok(tokens.into_iter().map(|(_, content)| content).collect())
}
