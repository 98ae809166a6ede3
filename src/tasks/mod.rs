//! Durable tasks: state machine, store, retention.
