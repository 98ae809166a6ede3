//! From what people write to what the model reads: normalisation, splitting, tokens.

mod error;
mod frontend;
mod fst;
mod inflect;
mod language;
mod normalize;
pub mod official;
mod segment;
mod split;
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
pub use inflect::{number_to_words, spell_out_number};
pub use language::{Language, UnknownLanguage};
pub use split::{SplitOptions, split_paragraph};
pub use tokenizer::Tokenizer;
pub use wetext::official_normalize;
