//! The models, written once over the [`backend`](crate::backend) contract.

pub mod config;
pub mod flow;
pub mod llm;
mod presets;
pub mod speaker;
pub mod speech_tokens;
pub mod vocoder;
pub mod voice;
