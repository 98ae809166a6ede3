//! What operators see of a running server: logs and metrics.

mod logs;
mod metrics;

pub use logs::init_logs;
pub use metrics::{Metrics, Snapshot};
