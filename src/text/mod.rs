//! From what people write to what the model reads: normalisation, splitting, tokens.

mod bpe;
mod error;
mod frontend;
mod fst;
mod inflect;
mod language;
mod lexicon;
mod markup;
mod normalize;
mod numbers;
pub mod official;
mod pinyin;
mod pretokens;
mod rules;
mod say_as;
mod segment;
mod split;
mod ssml;
mod tags;
mod tokenizer;
mod unicode;
mod unicode_tables;
mod viterbi;
mod wetext;

pub use error::TextError;
pub use frontend::{
    Frontend, FrontendOptions, Normalization, Part, Prepared, PreparedPrompt, TextOptions,
};
pub use fst::{Fst, FstError};
pub use inflect::{number_to_words, spell_out_number};
pub use language::{Language, UnknownLanguage};
pub use lexicon::Lexicon;
pub use split::{SplitOptions, split_paragraph};
pub use tokenizer::Tokenizer;
pub use viterbi::Search;
pub use wetext::{grammar_normalize, grammar_tokens, official_normalize, reorder_tokens};
