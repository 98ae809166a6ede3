//! A voice: what the models need to know of a speaker, computed once from a prompt recording.
//!
//! [`VoiceEncoder`] makes one of a recording, [`Voice::to_bytes`] and [`Voice::from_bytes`] keep it in a small file.

mod encoder;
mod file;

pub use encoder::{VoiceEncoder, VoiceError};
pub use file::{VoiceDims, VoiceFileError};

/// Conditioning of a speaker. Zero-shot voices have all parts; a voice of `spk2info.pt` may have the embedding alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Voice {
    /// Speaker embedding `[E]`, not normalised.
    pub embedding: Vec<f32>,
    /// Text of the prompt recording, as text tokens; empty when there is none.
    pub prompt_text: Vec<i32>,
    /// Speech tokens of the prompt `[L]` at the token rate (25 Hz).
    pub speech_tokens: Vec<i32>,
    /// Mel of the prompt, row-major `[ratio · L, mels]`.
    pub mel: Vec<f32>,
}
