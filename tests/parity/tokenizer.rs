//! Our tokenizer against the library under the official one (`tokenizers`, which transformers' `Qwen2TokenizerFast` runs), on the
//! vocabulary of the kit and any text.

use std::path::Path;
use std::sync::LazyLock;

use cosyvoice::text::Tokenizer;
use proptest::prelude::*;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, Model, NormalizedString, Normalizer, SplitDelimiterBehavior, TokenizerBuilder,
    TokenizerImpl,
};
use unicode_normalization::UnicodeNormalization;

use super::text_readings::fixture;
use crate::support::golden;

type Reference = TokenizerImpl<BPE, NFC, Sequence, ByteLevel, ByteLevel>;

const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The kit's vocabulary, which is small, and one trained here, where longer words come together.
static PAIRS: LazyLock<[(Tokenizer, Reference); 2]> =
    LazyLock::new(|| [pair(&golden::model_dir()), pair(trained().path())]);

fn words() -> Sequence {
    let pattern = SplitPattern::Regex(QWEN2_PATTERN.into());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("pattern");
    Sequence::new(vec![
        split.into(),
        ByteLevel::new(false, false, false).into(),
    ])
}

fn library(model: BPE) -> Reference {
    let byte_level = ByteLevel::new(false, false, false);
    TokenizerBuilder::default()
        .with_model(model)
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(words()))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .expect("tokenizer")
}

fn tables() -> Vec<String> {
    let names = ["readings.tsv", "wetextprocessing.tsv"];
    let tables = names.map(|name| std::fs::read_to_string(fixture(name)).expect("fixture"));
    tables.into()
}

/// A folder with the files of a vocabulary of the tables' texts.
fn trained() -> tempfile::TempDir {
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(3000)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut library = library(BPE::default());
    let lines = tables();
    let lines = lines.iter().flat_map(|t| t.lines());
    library.train(&mut trainer, lines).expect("training");
    let dir = tempfile::tempdir().expect("temporary folder");
    library.get_model().save(dir.path(), None).expect("saving");
    dir
}

fn pair(dir: &Path) -> (Tokenizer, Reference) {
    let ours = Tokenizer::load(dir).expect("tokenizer");
    let nested = dir.join("CosyVoice-BlankEN");
    let dir = if nested.is_dir() { &nested } else { dir };
    let path = |name: &str| dir.join(name).to_str().expect("UTF-8").to_owned();
    let model = BPE::from_file(&path("vocab.json"), &path("merges.txt"));
    let mut library = library(model.build().expect("model"));
    let special = ours.special_tokens().iter();
    let special = special.map(|(token, _)| AddedToken::from(token.as_str(), true));
    library.add_special_tokens(special).expect("special tokens");
    (ours, library)
}

fn same(text: &str) -> Result<(), TestCaseError> {
    for (ours, library) in PAIRS.iter() {
        let encoding = library.encode_fast(text, false).expect("encoding");
        let expected: Vec<i32> = encoding.get_ids().iter().map(|&id| id as i32).collect();
        let ids = ours.encode(text);
        prop_assert_eq!(&ids, &expected, "{:?}", text);
        prop_assert_eq!(ours.count(text), ids.len());
        let decoded = library.decode(encoding.get_ids(), true).expect("decoding");
        prop_assert_eq!(ours.decode(&ids), decoded);
    }
    Ok(())
}

#[test]
fn tables_have_the_same_ids() {
    for text in tables() {
        for text in text.lines().chain([text.as_str()]) {
            same(text).unwrap_or_else(|e| panic!("{e}"));
        }
    }
    for (ours, library) in PAIRS.iter() {
        for (token, id) in ours.special_tokens() {
            assert_eq!(library.token_to_id(token), Some(*id as u32), "{token}");
        }
        assert_eq!(ours.len(), library.get_vocab_size(true));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_text_has_the_same_ids(text in r"[\PC\s]{0,60}") {
        // The library composes by older tables, which lack marks that came to Unicode since.
        let mut composed = NormalizedString::from(text.as_str());
        NFC.normalize(&mut composed).expect("normalization");
        prop_assume!(composed.get() == text.nfc().collect::<String>());
        same(&text)?;
    }

    #[test]
    fn dense_text_has_the_same_ids(pieces in prop::collection::vec(
        prop_oneof![
            prop::sample::select(vec![
                "'s", "'LL", "'ſ", "'", " ", "  ", "\n", " \r\n", "\t", "\u{a0}", "\u{3000}", "hello", "there", "Ä", "e\u{301}", "\u{301}",
                "你好", "日本", "한", "①", "½", "٣", "7", "!", "?!", "<|", "|>", "<|endofprompt|>", "[laughter]", "[laugh", "<strong>", "</strong>",
                "👍🏽", "\u{345}", "Ⅳ", "\u{1c}", "_", "ﬁ", "क्षि",
            ]).prop_map(String::from),
            "[a-z]{1,200}",
        ],
        0..40,
    )) {
        same(&pieces.concat())?;
    }
}
