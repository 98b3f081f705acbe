//! What a run comes to: numbers of its training, the table at the end, its report.

use super::measure::{PER_REQUEST, PER_TEXT, few_requests};
use crate::error::{Error, Result};
use crate::eval::significance;
use crate::report::{self, Line, ReportData, ReportTable, Tested, before_after};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// The measures of the table on the terminal; result.json and report.html have all.
const HEADLINES: [&str; 6] = ["ndcg@10", "hit@10", "mrr@10", "perplexity", "kl", "item_mass"];

/// Facts of a run's training from its metrics log: steps, tokens, seconds, peak memory, mean length of a step, and
/// the mean cosine between the gradients of each pair of tasks.
pub fn training(run: &Path) -> Result<Value> {
    let lines = report::read(&run.join("metrics.jsonl"))?;
    let steps: Vec<&Line> = lines.iter().filter(|l| l.contains_key("loss")).collect();
    let values = |key: &str| steps.iter().filter_map(|l| l.get(key)?.as_f64()).collect::<Vec<f64>>();
    let mut facts = Map::new();
    facts.insert("steps".into(), json!(steps.len()));
    facts.insert("tokens".into(), json!(values("tokens").iter().sum::<f64>() as u64));
    facts.insert("seconds".into(), json!(values("step_ms").iter().fold(0.0, |a, b| a + b) / 1e3));
    facts.insert(
        "peak_memory_bytes".into(),
        json!(values("peak_memory_bytes").into_iter().fold(0.0, f64::max)),
    );
    let norms = values("update_norm");
    facts.insert("mean_update_norm".into(), json!(norms.iter().sum::<f64>() / norms.len().max(1) as f64));
    let mut pairs: Vec<&String> =
        steps.iter().flat_map(|l| l.keys()).filter(|k| k.starts_with("cosine.")).collect();
    pairs.sort();
    pairs.dedup();
    for pair in pairs {
        let cosines = values(pair);
        facts.insert(pair.clone(), json!(cosines.iter().sum::<f64>() / cosines.len().max(1) as f64));
    }
    Ok(Value::Object(facts))
}

/// The headline measures of `{task: {metric: value}}`; all of a task that has none of them.
fn headlines(all: &Value) -> Value {
    let empty = Map::new();
    let tasks = all.as_object().unwrap_or(&empty).iter().map(|(task, metrics)| {
        let metrics = metrics.as_object().unwrap_or(&empty);
        let mut kept = metrics.clone();
        kept.retain(|name, _| HEADLINES.contains(&name.as_str()));
        (task.clone(), Value::Object(if kept.is_empty() { metrics.clone() } else { kept }))
    });
    Value::Object(tasks.collect())
}

/// Prints a run's result: the table before and after with its `legend`, what training showed, and where everything is.
pub fn print(result: &Value, json: bool, legend: &str) -> Result<()> {
    let text = match json {
        true => format!("{}\n", without_requests(result)),
        false => describe(result, legend),
    };
    let mut out = std::io::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io("write", "standard output", e))
}

/// A result without the values of every single request and text.
pub fn without_requests(result: &Value) -> Value {
    let mut result = result.clone();
    for when in ["before", "after", "result"] {
        if let Some(measured) = result.get_mut(when).and_then(Value::as_object_mut) {
            [PER_REQUEST, PER_TEXT].iter().for_each(|key| drop(measured.remove(*key)));
        }
    }
    result
}

fn describe(result: &Value, legend: &str) -> String {
    let mut text = before_after(Some(&headlines(&result["before"])), &headlines(&result["after"]));
    text += "\n";
    text += legend;
    text += &few_requests(&result["after"]);
    let number = |key: &str| result["training"][key].as_f64().unwrap_or(0.0);
    for (key, value) in result["training"].as_object().into_iter().flatten() {
        if let (Some(pair), Some(cosine)) = (key.strip_prefix("cosine."), value.as_f64()) {
            let pair = pair.replacen('.', " and ", 1);
            text += &format!("cosine between the gradients of {pair}: {cosine:+.3} on average\n");
        }
    }
    text += &match number("steps") {
        0.0 => "no steps: the model is as it was\n".to_string(),
        steps => format!(
            "{steps} steps in {:.0} s, {:.0} tokens/s, at most {:.0} MB of tensors\n",
            number("seconds"),
            number("tokens") / number("seconds").max(1e-9),
            number("peak_memory_bytes") / 1e6
        ),
    };
    let run = result["run"].as_str().unwrap_or_default();
    if let Some(example) = result["example"].as_str() {
        text += &format!("ask it: {example}\n");
    }
    let model = if Path::new(run).join("model").is_dir() { "model/ (Hugging Face), " } else { "" };
    text + &format!("{run}: report.html, result.json, {model}checkpoints/, tensorboard/\n")
}

/// Writes `report.html` of a run from its result and its metrics log.
pub fn write_report(run: &Path) -> Result<()> {
    let read = |name: &str| -> Result<String> {
        let path = run.join(name);
        std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))
    };
    let result: Value = serde_json::from_str(&read("result.json")?)
        .map_err(|e| Error::data(e.to_string()).at(run.join("result.json").display()))?;
    let config: toml::Table = read("config.toml")?.parse().unwrap_or_default();
    let data = ReportData {
        title: run.file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned()),
        run: facts(&config, &result["training"]),
        before: result.get("before").filter(|b| b.is_object()).cloned(),
        after: result.get("after").cloned(),
        tested: tested(&result["before"], &result["after"]),
        history: report::read(&run.join("metrics.jsonl"))?,
        tables: vec![settings_table(&config)],
        notes: NOTES.iter().map(|n| n.to_string()).collect(),
    };
    report::write(&data, &run.join("report.html"))
}

/// Paired tests of what a run changed, request by request.
fn tested(before: &Value, after: &Value) -> Vec<Tested> {
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let mut tests = Vec::new();
    for (task, metrics) in after[PER_REQUEST].as_object().into_iter().flatten() {
        for (metric, values) in metrics.as_object().into_iter().flatten() {
            let (before, after) = (numbers(&before[PER_REQUEST][task][metric]), numbers(values));
            if before.is_empty() || before.len() != after.len() {
                continue;
            }
            let differences: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            // Of many requests fewer patterns are enough, and soon done.
            let patterns = (200_000_000 / differences.len()).clamp(2000, 10_000);
            let p = significance::randomisation(&differences, patterns, 0);
            tests.push(Tested { task: task.clone(), metric: metric.clone(), p });
        }
    }
    let p: Vec<f64> = tests.iter().map(|t| t.p).collect();
    tests.iter_mut().zip(significance::holm(&p)).for_each(|(test, p)| test.p = p);
    tests
}

const NOTES: [&str; 4] = [
    "Better and worse are said only where a paired randomisation test over the requests finds a difference \
     (p below 0.05 after Holm's correction for all tests of this page).",
    "Ranking metrics are means over test requests, by the standard definitions, over all candidates.",
    "Perplexity, KL (base to tuned, nats) and item mass are of held-out general text; perplexity and KL are over \
     the base model's own vocabulary.",
    "Compare forgetting of two methods at equal ranking quality or equal step length: a longer step changes both.",
];

fn facts(config: &toml::Table, training: &Value) -> Vec<(String, String)> {
    let setting = |section: &str, key: &str| {
        let value = config.get(section).and_then(|s| s.get(key));
        value.map_or(String::new(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_string))
    };
    let number = |key: &str| training[key].as_f64().unwrap_or(0.0);
    let mut facts = vec![
        ("model".to_string(), setting("model", "path")),
        ("data".into(), setting("data", "path")),
        ("method".into(), setting("gems", "method")),
        ("null space".into(), setting("null_space", "side")),
        ("steps".into(), format!("{}", number("steps"))),
        ("tokens".into(), format!("{:.0}", number("tokens"))),
        ("seconds in steps".into(), format!("{:.1}", number("seconds"))),
        ("peak memory of tensors".into(), format!("{:.1} MB", number("peak_memory_bytes") / 1e6)),
    ];
    let cosines = training.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("cosine."));
    facts.extend(cosines.map(|(k, v)| {
        (format!("mean {}", k.replace('.', " ")), format!("{:+.3}", v.as_f64().unwrap_or(0.0)))
    }));
    facts
}

fn settings_table(config: &toml::Table) -> ReportTable {
    let mut rows = Vec::new();
    collect("", config, &mut rows);
    ReportTable {
        title: "Settings".into(),
        caption: "As resolved; config.toml of the run has them too.".into(),
        header: vec!["setting".into(), "value".into()],
        rows,
    }
}

fn collect(prefix: &str, table: &toml::Table, rows: &mut Vec<Vec<String>>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => collect(&format!("{prefix}{key}."), inner, rows),
            other => rows.push(vec![format!("{prefix}{key}"), other.to_string()]),
        }
    }
}
