//! Spectral features of a prompt, each as its model was trained on.
//!
//! | feature | model | reference |
//! |---|---|---|
//! | [`mel_spectrogram`] | flow (prompt mel) | Matcha-TTS `utils/audio.py` |
//! | [`whisper_log_mel`] | speech tokenizer | openai-whisper `audio.py` |
//! | [`kaldi_fbank`] | speaker encoder | torchaudio `compliance/kaldi.py` |
//!
//! All take mono samples and give rows `[T, bins]`. Filter banks are computed, and arithmetic is f64 up to the result.

mod fbank;
mod filterbank;
mod log_mel;
mod mel;
mod spectrum;

pub use fbank::{FbankParams, kaldi_fbank, subtract_mean};
pub use filterbank::{Filterbank, kaldi_filterbank, slaney_filterbank};
pub use log_mel::{WhisperParams, whisper_log_mel};
pub use mel::{MelParams, mel_spectrogram};

/// Features of one recording: row-major `[rows, bins]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    pub rows: usize,
    pub bins: usize,
    pub data: Vec<f32>,
}
