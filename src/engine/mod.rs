//! Continuous batching of every stage behind one handle.
//!
//! One OS thread owns the device and all sequences; callers hold an [`EngineHandle`], send requests and read events.
//! Nothing here knows of HTTP or tasks.

pub mod blocks;
mod handle;
mod job;
mod request;
pub mod scheduler;

pub use handle::{EngineHandle, EngineStats, Job};
pub use request::{EngineError, Event, Mode, Request, Segment, Stage, Summary};
