//! The integration tests, one binary: `cargo test --release --test main [room]`.

mod ops;
mod parity;
mod support;
