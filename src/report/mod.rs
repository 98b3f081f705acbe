//! Metrics log, progress, the table at the end.

mod log;
mod progress;
mod table;

pub use log::{MetricsLog, read};
pub use progress::Progress;
pub use table::before_after;
