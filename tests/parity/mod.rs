//! Every stage against tensors of the official PyTorch code (`PARITY_KIT=DIR`, else the kit in `tests/fixtures`).

mod audio;
pub(crate) mod e2e;
pub(crate) mod flow;
pub(crate) mod llm;
mod speaker;
mod speech_tokens;
mod text;
mod text_fuzz;
mod text_properties;
mod text_readings;
mod tokenizer;
pub(crate) mod vocoder;
mod voice;
