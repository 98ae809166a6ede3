//! The flags that say how texts are read, shared by the commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

use crate::text::{Language, Lexicon, Normalization, TextOptions};

/// How texts are read.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct TextArgs {
    /// Language of all of the text (zh, en, ja, ko, ...); told from the script where not given.
    #[arg(long)]
    language: Option<Language>,
    /// How much is put into words: auto, on, off, or official (exactly the reference's front end, no markup).
    #[arg(long, default_value = "auto")]
    text_normalization: Normalization,
    /// A file of lines "word<TAB>replacement".
    #[arg(long, value_name = "FILE")]
    lexicon: Option<PathBuf>,
}

impl TextArgs {
    /// Reads the lexicon.
    pub(super) fn options(&self) -> anyhow::Result<TextOptions> {
        let lexicon = self.lexicon.as_deref();
        let lexicon = lexicon
            .map(|path| read_lexicon(path, "--lexicon"))
            .transpose()?;
        Ok(TextOptions {
            language: self.language,
            normalization: self.text_normalization,
            lexicon,
        })
    }
}

/// Reads a lexicon; `setting` is what gave its path.
///
/// # Errors
/// With the setting, the path, and the line that is malformed.
pub(super) fn read_lexicon(path: &Path, setting: &str) -> anyhow::Result<Arc<Lexicon>> {
    let at = || format!("{setting} {}", path.display());
    let text = std::fs::read_to_string(path).with_context(at)?;
    Ok(Arc::new(Lexicon::parse(&text).with_context(at)?))
}
