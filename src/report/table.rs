//! The table at the end: before and after.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value};

/// Rows tasks, columns metrics, each `before -> after`. Both are `{task: {metric: value}, general: {..}}`.
pub fn before_after(before: Option<&Value>, after: &Value) -> String {
    let empty = Map::new();
    let tasks = after.as_object().unwrap_or(&empty);
    let mut table = Table::new();
    table.set_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    let mut lines = Vec::new();
    for (task, metrics) in tasks {
        let wanted: &[&str] =
            if task == "general" { &["perplexity", "kl", "item_mass"] } else { &["ndcg@10", "hit@10"] };
        for metric in wanted.iter().filter(|m| metrics.get(**m).is_some()) {
            let cell = |v: Option<&Value>| match v.and_then(|v| v[task][*metric].as_f64()) {
                Some(v) if v.abs() >= 100.0 => format!("{v:.1}"),
                Some(v) => format!("{v:.4}"),
                None => "-".into(),
            };
            lines.push([task.clone(), metric.to_string(), cell(before), cell(Some(after))]);
        }
    }
    table.set_header(["", "metric", "before", "after"]);
    lines.into_iter().for_each(|line| {
        table.add_row(line);
    });
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}
