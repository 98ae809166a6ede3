//! Shared helpers of the integration tests.

pub(crate) mod emulator;
pub(crate) mod golden;
pub(crate) mod metrics;
pub(crate) mod model;
pub(crate) mod silence;
