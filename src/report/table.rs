//! The before/after table of the terminal: plain text without escape codes, at most 80 columns wide.

use super::comparison::{Comparison, Group, Measure};
use super::format::optional;
use crate::error::{Error, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;
use std::io::Write;

const WIDTH: u16 = 80;

/// Metrics side by side; more go into a further table, so that every one fits [`WIDTH`].
const COLUMNS: usize = 3;

/// What was measured before and after training: a row a task, a column a metric, then general knowledge.
/// Both are `{"<task>": {"<metric>": number}, "general": {...}}`. Empty when nothing was measured.
pub fn before_after(before: Option<&Value>, after: &Value) -> String {
    let comparison = Comparison::new(before, Some(after));
    let tasks: Vec<&Group> = comparison.tasks.iter().collect();
    let general = Group { name: "general text".into(), measures: comparison.general.measures };
    let mut blocks = Vec::new();
    for (corner, groups) in [("task", tasks), ("knowledge", vec![&general])] {
        blocks.extend(names(&groups).chunks(COLUMNS).map(|metrics| block(corner, &groups, metrics)));
    }
    blocks.join("\n")
}

/// Writes [`before_after`] to `out`.
///
/// # Errors
/// When `out` does not take the text.
pub fn print_before_after(before: Option<&Value>, after: &Value, out: &mut dyn Write) -> Result<()> {
    let text = before_after(before, after);
    let written = if text.is_empty() { Ok(()) } else { writeln!(out, "{text}") };
    written.and_then(|()| out.flush()).map_err(|e| Error::io("print the table", "standard output", e))
}

/// One table: a row a group, a column each of `metrics`.
fn block(corner: &str, groups: &[&Group], metrics: &[String]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(std::iter::once(corner.to_string()).chain(metrics.iter().cloned()));
    for group in groups {
        let cells = metrics.iter().map(|name| group.measure(name).map_or(String::new(), cell));
        table.add_row(std::iter::once(printable(&group.name)).chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

fn cell(measure: &Measure) -> String {
    match (measure.before, measure.after) {
        (None, Some(_)) => optional(measure.after),
        (before, after) => format!("{} → {}", optional(before), optional(after)),
    }
}

/// The names of all measures, in the order of their first appearance.
fn names(groups: &[&Group]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for measure in groups.iter().flat_map(|group| &group.measures) {
        if !names.contains(&measure.name) {
            names.push(measure.name.clone());
        }
    }
    names
}

/// A name from the user's data without characters that would steer the terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
