//! Continuous batching of every stage behind one handle.
//!
//! One OS thread owns the device and all sequences; callers hold an [`EngineHandle`], send requests and read events.
//! Nothing here knows of HTTP or tasks.

pub mod blocks;
mod device;
mod handle;
mod job;
mod request;
mod runner;
pub mod scheduler;
mod sequence;
mod sizing;
mod stages;
mod start;
mod synthesizer;
mod vocode;
mod voices;

pub use device::Device;
pub use handle::{BATCH_BOUNDS, BatchSizes, EngineHandle, EngineStats, Job};
pub use request::{Draws, EngineError, Event, Mode, Request, Segment, Stage, Summary};
pub use runner::EngineOptions;
pub use start::{start, start_on};
pub use synthesizer::{PreparedUtterance, Synthesizer, SynthesizerOptions, Utterance, VoiceChoice};
pub use voices::VoiceStore;
