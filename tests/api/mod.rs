//! The HTTP API over a deterministic stand-in for the models.

mod client;
mod fake;
mod serve;
mod synthesis;
mod tasks;
