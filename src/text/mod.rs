//! From what people write to what the model reads: normalisation, splitting, tokens.

mod error;
mod fst;
mod inflect;
pub mod official;
mod split;
mod tokenizer;
mod unicode;
mod unicode_tables;
mod viterbi;
mod wetext;

pub use error::TextError;
pub use inflect::{number_to_words, spell_out_number};
pub use split::{SplitOptions, split_paragraph};
pub use tokenizer::Tokenizer;
pub use wetext::official_normalize;
