//! CosyVoice2 text to speech: text in at one end, 24 kHz audio out at the other.
//!
//! # Rooms, in the order of the data
//!
//! ```text
//! text ──► text/ ──► engine/ (LLM ─► flow ─► vocoder, each stage batched) ──► audio/encode ──► tasks/ ──► server/
//! prompt audio ──► audio/ ──► model/{speech_tokens,speaker} ──► voices ──┘
//!                               model/  is written once over  backend/ ◄── cpu/ , cuda/ ◄── kernels/
//!                               checkpoint/ fills model/ with weights
//! ```
//!
//! Nothing points back: `server` knows `tasks` and `engine`, `engine` knows `model`, `model` knows only the
//! [`backend`] contract.

pub mod audio;
pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod engine;
pub mod error;
pub mod model;
pub mod server;
pub mod settings;
pub mod tasks;
pub mod telemetry;
pub mod tensor;
pub mod text;
