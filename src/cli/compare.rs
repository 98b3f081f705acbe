//! `gems-engine compare`.

use super::options::OutputArgs;
use crate::error::{Error, Result};
use crate::report::side_by_side;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Steps whose lengths differ by more than this share are no basis for a claim about forgetting.
const SAME_STEP: f64 = 0.1;

/// Put finished runs side by side: settings, step length, ranking, what was forgotten.
///
/// Example: gems-engine compare runs/gems runs/galore runs/lora
#[derive(Args)]
pub struct CompareArgs {
    /// Run directories.
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &CompareArgs) -> Result<()> {
    let runs = args.runs.iter().map(|run| column(run)).collect::<Result<Vec<_>>>()?;
    let notes = notes(&runs);
    let text = match args.output.json {
        true => json!({"runs": runs.iter().map(|(_, v)| v).collect::<Vec<_>>(), "notes": notes}).to_string(),
        false => side_by_side(&runs) + "\n" + &notes.join("\n"),
    };
    writeln!(std::io::stdout(), "{}", text.trim_end()).map_err(|e| Error::io("write", "standard output", e))
}

/// A run's name, and `{"run", "settings": {...}, "training": {...}, "<task>": {...}, "general": {...}}`.
fn column(run: &Path) -> Result<(String, Value)> {
    let read = |name: &str| {
        let path = run.join(name);
        std::fs::read_to_string(&path)
            .map_err(|e| Error::io("read", &path, e).remedy("give the directory of a run that has finished"))
    };
    let bad = |name: &str, e: String| Error::data(e).at(run.join(name).display());
    let result: Value =
        serde_json::from_str(&read("result.json")?).map_err(|e| bad("result.json", e.to_string()))?;
    let config: toml::Table =
        read("config.toml")?.parse().map_err(|e: toml::de::Error| bad("config.toml", e.to_string()))?;
    let mut all = Map::from_iter([("run".to_string(), json!(run.display().to_string()))]);
    all.insert("settings".into(), settings(&config));
    all.insert("training".into(), result["training"].clone());
    all.extend(result["after"].as_object().cloned().unwrap_or_default());
    let name =
        run.file_name().map_or_else(|| run.display().to_string(), |n| n.to_string_lossy().into_owned());
    Ok((name, Value::Object(all)))
}

/// What usually tells two runs apart.
fn settings(config: &toml::Table) -> Value {
    let keys = [
        "gems.method",
        "gems.rank",
        "gems.bases",
        "gems.surgery",
        "null_space.side",
        "null_space.value",
        "null_space.item_rows",
        "train.lr",
        "seed",
    ];
    let find = |key: &str| {
        let mut parts = key.split('.');
        let first = config.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part)).and_then(|v| serde_json::to_value(v).ok())
    };
    Value::Object(keys.iter().filter_map(|key| Some((key.to_string(), find(key)?))).collect())
}

/// What the numbers do not say by themselves.
fn notes(runs: &[(String, Value)]) -> Vec<String> {
    let norm = |v: &Value| v["training"]["mean_update_norm"].as_f64().filter(|n| *n > 0.0);
    let mut notes = Vec::new();
    let Some((first, reference)) = runs.first().and_then(|(name, v)| Some((name, norm(v)?))) else {
        return notes;
    };
    for (name, value) in &runs[1..] {
        let Some(ratio) = norm(value).map(|n| n / reference) else { continue };
        if (ratio - 1.0).abs() > SAME_STEP {
            notes.push(format!(
                "{name}: its steps are {ratio:.2} times as long as those of {first}: what differs in ranking or \
                 forgetting may come from that alone. Match them (train --match-step), or put a run with another \
                 train.lr beside it."
            ));
        }
    }
    notes
}
