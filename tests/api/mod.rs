//! The HTTP API over a deterministic stand-in for the models, and the real program over the models of the tests.

mod client;
mod crash;
mod crash_program;
mod fake;
mod hostile;
mod invalid;
mod openapi;
mod program;
mod reading;
mod serve;
mod soak;
mod streaming;
mod synthesis;
mod tasks;
mod voices;
mod webhooks;
