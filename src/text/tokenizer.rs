//! The Qwen2 byte-level BPE tokenizer with the special tokens of CosyVoice2.
//!
//! In: `vocab.json`, `merges.txt` and, where present, `tokenizer_config.json` of the checkpoint's `CosyVoice-BlankEN`.
//! Reference: `CosyVoice2Tokenizer` in `cosyvoice/tokenizer/tokenizer.py` over the `Qwen2Tokenizer` of transformers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder, TokenizerImpl};

use super::TextError;

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

const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

type Bpe = TokenizerImpl<BPE, NFC, Sequence, ByteLevel, ByteLevel>;

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
    special: Vec<(String, i32)>,
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
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        for path in [&vocab, &merges] {
            std::fs::metadata(path).map_err(|e| file_error(path, &e))?;
        }
        let model = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
            .build()
            .map_err(|e| file_error(&vocab, &*e))?;
        let mut bpe = build(model).map_err(|e| file_error(&vocab, &*e))?;
        let from_files = added_tokens(&dir.join("tokenizer_config.json"))?;
        let tokens = from_files
            .iter()
            .map(String::as_str)
            .chain(SPECIAL_TOKENS)
            .map(|content| AddedToken::from(content, true));
        bpe.add_special_tokens(tokens)
            .map_err(|e| file_error(&vocab, &*e))?;
        let mut special: Vec<(String, i32)> = bpe
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, token)| (token.content, id as i32))
            .collect();
        special.sort_by_key(|&(_, id)| id);
        Ok(Self { bpe, special })
    }

    /// Token ids of `text`.
    pub fn encode(&self, text: &str) -> Vec<i32> {
        // Byte-level BPE has an id for every byte or drops it; only a foreign vocabulary file could make this fail.
        self.bpe
            .encode_fast(text, false)
            .map(|e| e.get_ids().iter().map(|&id| id as i32).collect())
            .unwrap_or_default()
    }

    /// Number of tokens of `text`.
    pub fn count(&self, text: &str) -> usize {
        self.bpe.encode_fast(text, false).map_or(0, |e| e.len())
    }

    /// The text of `ids` without special tokens; ids that do not exist are skipped.
    pub fn decode(&self, ids: &[i32]) -> String {
        let ids: Vec<u32> = ids
            .iter()
            .filter_map(|&id| u32::try_from(id).ok())
            .collect();
        self.bpe.decode(&ids, true).unwrap_or_default()
    }

    /// The id of a token by its exact content.
    pub fn token_to_id(&self, token: &str) -> Option<i32> {
        self.bpe.token_to_id(token).map(|id| id as i32)
    }

    /// The special tokens and their ids, by id.
    pub fn special_tokens(&self) -> &[(String, i32)] {
        &self.special
    }

    /// Number of tokens, special ones included.
    #[expect(clippy::len_without_is_empty, reason = "a tokenizer is never empty")]
    pub fn len(&self) -> usize {
        self.bpe.get_vocab_size(true)
    }
}

fn build(model: BPE) -> tokenizers::Result<Bpe> {
    let byte_level = ByteLevel::new(false, false, false);
    let split = Split::new(
        SplitPattern::Regex(QWEN2_PATTERN.into()),
        SplitDelimiterBehavior::Isolated,
        false,
    )?;
    TokenizerBuilder::default()
        .with_model(model)
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), byte_level.into()])))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
}

/// Tokens that the tokenizer's own configuration adds, by id.
fn added_tokens(path: &Path) -> Result<Vec<String>, TextError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(file_error(path, &e)),
    };
    let config: TokenizerConfig =
        serde_json::from_slice(&bytes).map_err(|e| file_error(path, &e))?;
    let mut tokens = config
        .added_tokens_decoder
        .into_iter()
        .map(|(id, token)| {
            let id: u32 = id
                .parse()
                .map_err(|_| file_error(path, &format!("token id {id:?} is not a number")))?;
            Ok((id, token.content))
        })
        .collect::<Result<Vec<_>, TextError>>()?;
    tokens.sort_by_key(|&(id, _)| id);
    Ok(tokens.into_iter().map(|(_, content)| content).collect())
}

fn file_error(path: &Path, reason: &(impl std::fmt::Display + ?Sized)) -> TextError {
    TextError::TokenizerFile {
        path: path.to_path_buf(),
        reason: reason.to_string(),
    }
}
