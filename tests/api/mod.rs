//! The HTTP API over a deterministic stand-in for the models.

mod client;
mod crash;
mod fake;
mod hostile;
mod invalid;
mod openapi;
mod serve;
mod streaming;
mod synthesis;
mod tasks;
mod voices;
mod webhooks;
