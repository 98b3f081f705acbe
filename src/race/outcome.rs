//! What is kept of a finished cell, and whether it is of this race.

use super::grid::Cell;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::report;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Hashes of the files that a race is of, by `model/NAME` and `data/NAME`.
pub type Files = BTreeMap<String, String>;

/// What a cell was made with: what must be equal for its result to count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The engine's version.
    pub version: String,
    /// Every setting by its dotted key, but where model and data are.
    pub settings: BTreeMap<String, Value>,
    /// Model and data.
    pub files: Files,
}

impl Made {
    /// Of a resolved configuration.
    pub fn of(config: &Config, files: &Files) -> Self {
        let mut settings = BTreeMap::new();
        flatten("", &serde_json::to_value(config).unwrap_or_default(), &mut settings);
        settings.retain(|key, _| key != "model.path" && key != "data.path");
        Self { version: env!("CARGO_PKG_VERSION").into(), settings, files: files.clone() }
    }

    /// What differs from `now`, in words.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut all = Vec::new();
        if self.version != now.version {
            all.push(format!("made by version {}, not {}", self.version, now.version));
        }
        let text = |value: Option<&Value>| value.map_or("not there".to_string(), Value::to_string);
        for key in now.settings.keys().chain(self.settings.keys().filter(|k| !now.settings.contains_key(*k)))
        {
            let (then, is) = (self.settings.get(key), now.settings.get(key));
            if then != is {
                all.push(format!("{key} was {}, is {}", text(then), text(is)));
            }
        }
        for file in now.files.keys().chain(self.files.keys().filter(|f| !now.files.contains_key(*f))) {
            match (self.files.get(file), now.files.get(file)) {
                (Some(then), Some(is)) if then == is => {}
                (Some(_), Some(_)) => all.push(format!("{file} has changed")),
                (None, _) => all.push(format!("{file} was not there")),
                (_, None) => all.push(format!("{file} is gone")),
            }
        }
        all
    }
}

fn flatten(prefix: &str, value: &Value, all: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, all);
            }
        }
        other => drop(all.insert(prefix.into(), other.clone())),
    }
}

/// Hashes of the files directly in the model's and the data's directory; hidden ones do not count.
///
/// # Errors
/// A file that cannot be read.
pub fn files(model: &Path, data: &Path) -> Result<Files> {
    let mut all = Files::new();
    for (what, dir) in [("model", model), ("data", data)] {
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_file() && !name.starts_with('.') {
                let mut hasher = blake3::Hasher::new();
                hasher.update_mmap_rayon(&path).map_err(|e| Error::io("read", &path, e))?;
                all.insert(format!("{what}/{name}"), hasher.finalize().to_hex().to_string());
            }
        }
    }
    Ok(all)
}

/// A finished cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The ranking metric that is compared, such as `ndcg@10`.
    pub metric: String,
    /// That metric on the validation records after the last step, by task.
    pub valid: BTreeMap<String, f64>,
    /// The same of every test request, by task.
    pub requests: BTreeMap<String, Vec<f64>>,
    /// KL(base || tuned) of every held-out text, summed over its tokens.
    pub divergence: Vec<f64>,
    /// Tokens of every held-out text.
    pub tokens: Vec<f64>,
    /// Everything measured on the test records and on general text: `{"<task>": {"<metric>": n}, "general": {..}}`.
    pub measured: Map<String, Value>,
    /// Facts of training: steps, tokens, seconds, cosine between tasks.
    pub training: Map<String, Value>,
}

impl Outcome {
    /// That of the run in `run`, which has ended.
    ///
    /// # Errors
    /// Files that cannot be read; no general text was measured; values that are not finite.
    pub fn of_run(run: &Path, metric: &str) -> Result<Self> {
        let path = run.join("result.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let result: Value =
            serde_json::from_str(&text).map_err(|e| Error::data(e.to_string()).at(path.display()))?;
        let mut measured = result["after"].as_object().cloned().unwrap_or_default();
        let requests = measured.remove("per_request").unwrap_or_default();
        let texts = measured.remove("per_text").unwrap_or_default();
        let mut training = result["training"].as_object().cloned().unwrap_or_default();
        let history = report::read(&run.join("metrics.jsonl"))?;
        training.extend(competition(&history));
        let last = history.iter().rev().find(|line| line.keys().any(|k| k.starts_with("valid.")));
        let of_task = |(key, value): (&String, &Value)| {
            let task = key.strip_prefix("valid.")?.strip_suffix(metric)?.strip_suffix('.')?;
            Some((task.to_string(), value.as_f64()?))
        };
        let outcome = Self {
            metric: metric.into(),
            valid: last.into_iter().flatten().filter_map(of_task).collect(),
            requests: requests
                .as_object()
                .into_iter()
                .flatten()
                .map(|(task, of)| (task.clone(), numbers(&of[metric])))
                .filter(|(_, values)| !values.is_empty())
                .collect(),
            divergence: numbers(&texts["divergence"]),
            tokens: numbers(&texts["tokens"]),
            measured,
            training,
        };
        outcome.check().map_err(|e| e.at(path.display()))?;
        Ok(outcome)
    }

    fn check(&self) -> Result<()> {
        if self.divergence.is_empty() || self.divergence.len() != self.tokens.len() {
            return Err(Error::data("the divergence on general text was not measured"));
        }
        match self.divergence.iter().all(|v| v.is_finite()) && self.kl().is_finite() {
            true => Ok(()),
            false => Err(Error::numeric("the divergence on general text is not finite")),
        }
    }

    /// Mean KL a token.
    pub fn kl(&self) -> f64 {
        let tokens: f64 = self.tokens.iter().sum();
        (self.divergence.iter().sum::<f64>() / tokens.max(1.0)).max(0.0)
    }
}

/// Means over all steps of the norms of the tasks' gradients and of how they lie to each other, layer by layer too, and the
/// tokens that were rehearsed.
fn competition(history: &[report::Line]) -> Map<String, Value> {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    let mut lists: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    let of_layers = |key: &str| key.starts_with("layers.cosine.") || key.starts_with("layers.alignment.");
    let add = |sum: &mut (f64, f64), value: &Value| {
        if let Some(value) = value.as_f64() {
            *sum = (sum.0 + value, sum.1 + 1.0);
        }
    };
    for (key, value) in history.iter().flatten() {
        if key.starts_with("task_norm.") || key.starts_with("alignment.") {
            add(sums.entry(key).or_default(), value);
        } else if let (true, Some(values)) = (of_layers(key), value.as_array()) {
            let list = lists.entry(key).or_default();
            list.resize(values.len().max(list.len()), (0.0, 0.0));
            list.iter_mut().zip(values).for_each(|(sum, value)| add(sum, value));
        }
    }
    let rehearsed: f64 = history.iter().filter_map(|l| l.get("rehearsal.tokens")?.as_f64()).sum();
    let mean = |(sum, n): (f64, f64)| Value::from(sum / n);
    let means = sums.into_iter().map(|(key, sum)| (key.to_string(), mean(sum)));
    let lists = lists.into_iter().map(|(key, list)| (key.to_string(), list.into_iter().map(mean).collect()));
    means.chain(lists).chain([("rehearsed_tokens".to_string(), rehearsed.into())]).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The file of a finished cell: `cells/NAME.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Which cell.
    pub cell: Cell,
    /// What it was made with.
    pub made: Made,
    /// What came out.
    pub outcome: Outcome,
}

impl Kept {
    /// Reads a cell's file; nothing where there is none.
    ///
    /// # Errors
    /// A file that is not one.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        let kept = serde_json::from_slice(&text);
        kept.map(Some).map_err(|e| {
            Error::data(format!("not what was written here: {e}"))
                .at(path.display())
                .remedy("remove the file: the cell runs anew")
        })
    }

    /// Writes it whole.
    ///
    /// # Errors
    /// The file system.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::data(e.to_string()).at(path.display()))?;
        write_atomically(path, &text)
    }
}
