//! The data card: what went in, what was kept and dropped and why, and what the result is like.

use super::build::{BuildReport, SPLITS};
use super::intake::Counts;
use super::kcore::CoreReport;
use super::leaks::Leaks;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// `card.json` of a data directory.
#[derive(Debug, Clone, Serialize)]
pub struct Card {
    /// The engine's version.
    pub engine: &'static str,
    /// Where the data came from.
    pub source: Value,
    /// What was asked for.
    pub settings: Value,
    /// Rows read.
    pub read: Counts,
    /// Events in them.
    pub events: u64,
    /// Repeated events, left out.
    pub repeated: u64,
    /// What the k-core took.
    pub core: CoreReport,
    /// Items written.
    pub items: u64,
    /// Items among them that have a text.
    pub items_with_text: u64,
    /// First times of validation and test, of a split by time.
    pub bounds: Option<(i64, i64)>,
    /// Rows written.
    pub written: BuildReport,
    /// Share of the test pairs that training gave away as the split left them.
    pub leak_rate_before: f64,
    /// Share of the test pairs that training gives away as they are written.
    pub leak_rate: f64,
    /// What to know about it.
    pub warnings: Vec<String>,
}

impl Card {
    /// Writes `card.json` into `dir`.
    ///
    /// # Errors
    /// The file system.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::data(format!("the card cannot be written: {e}")))?;
        write_atomically(&dir.join("card.json"), text.as_bytes())
    }

    /// The card in words.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            let _ = writeln!(text, "{what:<44} {value:>14}");
        };
        for (what, files) in &self.read.files {
            line(&format!("files read as {what}"), grouped(*files));
        }
        line("rows read", grouped(self.read.rows));
        for (reason, rows) in &self.read.bad {
            line(&format!("  bad: {reason}"), grouped(rows.rows));
        }
        for (reason, n) in &self.read.dropped {
            line(&format!("  dropped: {reason}"), grouped(*n));
        }
        line("events", grouped(self.events));
        line("  dropped: repeated", grouped(self.repeated));
        let core = &self.core;
        line("users", grouped(core.users));
        line(&format!("  left by the k-core ({} passes)", core.passes), grouped(core.users_left));
        line("items", grouped(core.items));
        line("  left by the k-core", grouped(core.items_left));
        line("  with a text", grouped(self.items_with_text));
        for (reason, n) in &self.written.dropped {
            line(&format!("  dropped: {reason}"), grouped(*n));
        }
        for split in SPLITS {
            line(&format!("{split} rows"), grouped(self.written.of(split)));
            for (task, n) in self.written.rows.get(split).into_iter().flatten() {
                line(&format!("  {task}"), grouped(*n));
            }
        }
        let leaks = |l: &Leaks| format!("{:.2} % of {}", 100.0 * l.rate(), grouped(l.pairs));
        line("test pairs known from training, as split", leaks(&self.written.leaks_before));
        line("test pairs known from training, as written", leaks(&self.written.leaks));
        let l = &self.written.leaks_before;
        for (way, n) in [
            ("training target of the same task", l.trained),
            ("training target of another task", l.trained_elsewhere),
            ("in a training history", l.in_training_history),
            ("in the request's own history", l.in_own_history),
        ] {
            line(&format!("  as split, {way}"), grouped(n));
        }
        line("negatives", grouped(self.written.negatives));
        for warning in &self.warnings {
            let _ = writeln!(text, "note: {warning}");
        }
        text
    }
}

/// A number with its thousands apart.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
