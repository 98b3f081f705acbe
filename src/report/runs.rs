//! Runs side by side: a row a setting or measure, a column a run.

use super::format::number;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{BinaryBytes, HumanCount};
use serde_json::{Map, Value};

/// The measures of training, and of what was measured after it, that are worth a row.
const TRAINING: [&str; 4] = ["mean_update_norm", "tokens", "seconds", "peak_memory_bytes"];
const MEASURED: [&str; 5] = ["ndcg@10", "hit@10", "perplexity", "kl", "item_mass"];

/// `runs` are names with `{"settings": {..}, "training": {..}, "<task>": {"<metric>": number}, ..}`. Settings that
/// are the same in all of several runs are left out.
pub fn side_by_side(runs: &[(String, Value)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(std::iter::once(String::new()).chain(runs.iter().map(|(name, _)| name.clone())));
    for (group, key) in keys(runs) {
        let values: Vec<Option<&Value>> = runs.iter().map(|(_, v)| v.get(&group)?.get(&key)).collect();
        if group == "settings" && runs.len() > 1 && values.iter().all(|v| *v == values[0]) {
            continue;
        }
        let cells: Vec<String> = values.into_iter().map(|v| cell(&group, &key, v)).collect();
        let label = match group.as_str() {
            "settings" => key,
            "training" => key.trim_end_matches("_bytes").replace(['_', '.'], " "),
            _ => format!("{group} {key}"),
        };
        table.add_row(std::iter::once(label).chain(cells));
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
            let wanted = match group.as_str() {
                "settings" => true,
                "training" => key.starts_with("cosine.") || TRAINING.contains(&key.as_str()),
                _ => MEASURED.contains(&key.as_str()),
            };
            let pair = (group.clone(), key.clone());
            if wanted && !keys.contains(&pair) {
                keys.push(pair);
            }
        }
    }
    keys
}

fn cell(group: &str, key: &str, value: Option<&Value>) -> String {
    match (value, value.and_then(Value::as_f64)) {
        (Some(Value::String(text)), _) => text.clone(),
        (None | Some(Value::Null), _) => String::new(),
        (Some(_), Some(bytes)) if key.ends_with("_bytes") => BinaryBytes(bytes as u64).to_string(),
        (Some(_), Some(count)) if key == "tokens" => HumanCount(count as u64).to_string(),
        (Some(_), Some(measure)) if group != "settings" => number(measure),
        (Some(setting), _) => setting.to_string(),
    }
}
