//! Every stage against tensors of the official PyTorch code (`PARITY_KIT=DIR`, else the trimmed kit in `tests/fixtures`).

mod audio;
mod e2e;
mod flow;
mod llm;
mod speaker;
mod speech_tokens;
mod text;
mod text_readings;
mod vocoder;
mod voice;
