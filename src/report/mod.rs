//! What a run tells its user: the metrics log and TensorBoard events while it runs, progress on the
//! terminal, and at the end the before/after table and a self-contained HTML report.
//!
//! Everything here is fed the same flat scalars: `(name, value)` pairs of one step, named as in
//! `metrics.jsonl` (`loss`, `loss.<task>`, `lr`, `cosine.<a>.<b>`, `energy.<subspace>`, `room`,
//! `update_norm`, `gate.<task>`, `tokens_per_second`, `memory_bytes`, `step_ms`,
//! `valid.<task>.<metric>`).

mod comparison;
mod figures;
mod format;
mod html;
mod log;
mod plot;
mod progress;
mod table;
mod tensorboard;

pub use html::{ReportData, ReportTable, render, write};
pub use log::{MetricsLog, read};
pub use progress::{Progress, training_message};
pub use table::print_before_after;
pub use tensorboard::EventWriter;

/// One line of `metrics.jsonl`.
pub type Line = serde_json::Map<String, serde_json::Value>;
