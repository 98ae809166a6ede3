//! The integration tests, one binary: `cargo test --release --test main [room]`.

#![allow(clippy::print_stdout)]

mod api;
mod audio;
mod checkpoint;
mod cli;
mod cuda;
mod engine;
mod hygiene;
mod ops;
mod parity;
mod support;
mod voice;
