//! What a run tells its user: the metrics log and TensorBoard events while it runs, progress on the
//! terminal, and at the end the before/after table and a self-contained HTML report. The page of several runs
//! ([`CurvePage`]) looks like it.
//!
//! All of it is fed the same lines: flat scalars by name, with the `step` they belong to. Names that the
//! report and the progress know: `loss`, `loss.<task>`, `lr`, `cosine.<a>.<b>`, `energy.<subspace>`,
//! `room` (gradient energy the null space leaves), `update_norm`, `gradient_norm`, `task_norm.<task>`,
//! `gate.<task>`, `tokens_per_second`, `memory_bytes`, `peak_memory_bytes`, `valid.<task>.<metric>`.

mod comparison;
mod curves;
mod figures;
mod format;
mod heat;
mod hover;
mod html;
mod journal;
mod log;
mod overview;
mod plot;
mod progress;
mod report_table;
mod runs;
mod table;
mod talk;
mod template;
mod tensorboard;

pub use curves::{Curve, CurveFigure, CurvePage, CurvePoint};
pub use html::{ReportData, Tested, render, write};
pub use journal::Journal;
pub use log::{MetricsLog, read, read_overview};
pub use overview::Overview;
pub use progress::{Progress, training_message};
pub use report_table::ReportTable;
pub use runs::side_by_side;
pub use table::{before_after, print_before_after};
pub use talk::{Talk, set_talk, talk, tell};
pub use tensorboard::EventWriter;

/// One line of `metrics.jsonl`.
pub type Line = serde_json::Map<String, serde_json::Value>;
