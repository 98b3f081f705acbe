//! Runs side by side: a row a setting or measure, a column a run.

use super::format::number;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value};

/// The measures of training and of what was measured after it that are worth a row.
const MEASURES: [&str; 9] = [
    "mean_update_norm",
    "seconds",
    "peak_memory_bytes",
    "ndcg@10",
    "hit@10",
    "perplexity",
    "kl",
    "item_mass",
    "tokens",
];

/// `runs` are names with `{"settings": {..}, "training": {..}, "<task>": {"<metric>": number}, ..}`. Settings that
/// are the same in all of several runs are left out.
pub fn side_by_side(runs: &[(String, Value)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).force_no_tty();
    table.set_header(std::iter::once(String::new()).chain(runs.iter().map(|(name, _)| name.clone())));
    for (group, key) in keys(runs) {
        let values: Vec<Option<&Value>> = runs.iter().map(|(_, v)| v.get(&group)?.get(&key)).collect();
        if group == "settings" && runs.len() > 1 && values.iter().all(|v| *v == values[0]) {
            continue;
        }
        let label = match group.as_str() {
            "settings" => key,
            "training" => key.replace('_', " "),
            _ => format!("{group} {key}"),
        };
        table.add_row(std::iter::once(label).chain(values.into_iter().map(cell)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// (group, key) of all rows, in the order of their first appearance; settings first.
fn keys(runs: &[(String, Value)]) -> Vec<(String, String)> {
    let empty = Map::new();
    let mut keys: Vec<(String, String)> = Vec::new();
    for (group, values) in runs.iter().flat_map(|(_, run)| run.as_object().unwrap_or(&empty)) {
        for key in values.as_object().unwrap_or(&empty).keys() {
            let wanted =
                group == "settings" || key.starts_with("cosine.") || MEASURES.contains(&key.as_str());
            let pair = (group.clone(), key.clone());
            if wanted && !keys.contains(&pair) {
                keys.push(pair);
            }
        }
    }
    keys
}

fn cell(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(n)) => n.as_f64().map_or_else(|| n.to_string(), number),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}
