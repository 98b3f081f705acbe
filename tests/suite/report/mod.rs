//! Metrics log, TensorBoard, progress, tables, the HTML report.

mod html;
pub use html::check;
mod journal;
mod log;
mod overview;
mod progress;
mod run;
mod table;
mod tensorboard;

use gems_engine::report::Line;
use serde_json::Value;

fn line(value: Value) -> Line {
    value.as_object().unwrap().clone()
}
