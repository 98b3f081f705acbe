//! `gems-engine compare`.

mod page;

use super::measure::{ANSWERS, SLICES};
use super::options::OutputArgs;
use super::settings;
use crate::error::{Error, Result};
use crate::report::side_by_side;
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Steps whose lengths differ by more than this share are no basis for a claim about forgetting.
const SAME_STEP: f64 = 0.1;

/// Put finished runs side by side: settings, step length, ranking, what was forgotten.
///
/// Example: gems-engine compare runs/gems runs/galore runs/lora --report comparison.html
#[derive(Args)]
pub struct CompareArgs {
    /// Run directories.
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Write a page too: curves over each other, ranking against forgetting, paired tests.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &CompareArgs) -> Result<()> {
    let mut notes = Vec::new();
    let mut runs = Vec::new();
    for (path, name) in args.runs.iter().zip(names(&args.runs)) {
        // A run that is not at its end must not keep the others from being shown.
        if args.runs.len() > 1 && path.join("config.toml").is_file() && !path.join("result.json").exists() {
            notes.push(format!("{name}: has not finished, so it is left out."));
        } else {
            runs.push((name, column(path)?));
        }
    }
    notes.extend(unlike(&runs));
    notes.extend(steps(&runs));
    if let Some(path) = &args.report {
        page::write(&runs, &notes, path)?;
    }
    let text = match args.output.json {
        true => json!({"runs": runs.iter().map(|(_, v)| v).collect::<Vec<_>>(), "notes": notes}).to_string(),
        false => side_by_side(&runs) + "\n" + &notes.join("\n") + &advice(args),
    };
    writeln!(std::io::stdout(), "{}", text.trim_end()).map_err(|e| Error::io("write", "standard output", e))
}

/// How to learn whether a difference is luck.
fn advice(args: &CompareArgs) -> String {
    let [first, second, ..] = args.runs.as_slice() else { return String::new() };
    format!(
        "\nwhich differences are more than luck: gems-engine evaluate --run {} --against {}",
        second.display(),
        first.display()
    )
}

/// The last parts of the paths, as many as tell the runs apart.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let tail = |run: &PathBuf, parts: usize| {
        let all: Vec<_> = run.components().collect();
        all[all.len().saturating_sub(parts)..].iter().collect::<PathBuf>().display().to_string()
    };
    let distinct = |parts: &usize| {
        let all: BTreeSet<String> = runs.iter().map(|run| tail(run, *parts)).collect();
        all.len() == runs.len()
    };
    let parts = (1..8).find(distinct).unwrap_or(1);
    runs.iter().map(|run| tail(run, parts)).collect()
}

/// `{"run", "settings": {...}, "training": {...}, "<task>": {...}, "general": {...}}` of a finished run.
fn column(run: &Path) -> Result<Value> {
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
    all.insert("settings".into(), Value::Object(settings::by_name(&config)));
    let mut after = result["after"].as_object().cloned().unwrap_or_default();
    [ANSWERS, SLICES].iter().for_each(|key| drop(after.remove(*key)));
    let tasks: Vec<&String> = after.keys().collect();
    all.insert("training".into(), training(&result["training"], &tasks));
    all.extend(after);
    Ok(Value::Object(all))
}

/// Facts of training; the cosine of two tasks has one name, whichever task comes first.
fn training(facts: &Value, tasks: &[&String]) -> Value {
    let known = |name: &str| tasks.iter().any(|task| *task == name);
    let one_name = |key: &String| -> String {
        let Some(pair) = key.strip_prefix("cosine.") else { return key.clone() };
        let mut halves = pair.match_indices('.').map(|(i, _)| (&pair[..i], &pair[i + 1..]));
        match halves.find(|(a, b)| known(a) && known(b)) {
            Some((a, b)) => format!("cosine.{}.{}", a.min(b), a.max(b)),
            None => key.clone(),
        }
    };
    let facts = facts.as_object().into_iter().flatten();
    Value::Object(facts.map(|(key, value)| (one_name(key), value.clone())).collect())
}

/// Settings that must be equal for a comparison of anything else, and what a difference means.
const FAIR: [(&[&str], &str); 4] = [
    (&["data.path"], "was tuned and judged on other data: none of its numbers can be held against those of"),
    (&["model.path", "model.init"], "began from another model: forgetting and gain are not those of"),
    (
        &["evaluate.k", "evaluate.candidates", "evaluate.records", "evaluate.general_tokens"],
        "was measured in another way: its metrics are not those of",
    ),
    (&["train.batch", "train.batch_per_task"], "has other batches: a step of it is not a step of"),
];

/// What makes a comparison with the first run unfair.
fn unlike(runs: &[(String, Value)]) -> Vec<String> {
    let Some(((first, reference), others)) = runs.split_first() else { return Vec::new() };
    let mut notes = Vec::new();
    for (name, run) in others {
        for (keys, meaning) in FAIR {
            let differs = |key: &&&str| run["settings"][**key] != reference["settings"][**key];
            let listed: Vec<&str> = keys.iter().filter(differs).copied().collect();
            if !listed.is_empty() {
                notes.push(format!("{name} {meaning} {first} ({}).", listed.join(", ")));
            }
        }
        let (ours, theirs) = (&run["training"]["steps"], &reference["training"]["steps"]);
        if ours != theirs {
            notes.push(format!("{name} took {ours} steps, {first} {theirs}."));
        }
    }
    notes
}

/// Runs whose steps are of other lengths than the first one's.
fn steps(runs: &[(String, Value)]) -> Vec<String> {
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
