//! What a run comes to: numbers of its training, and the table at the end.

use super::measure::{ANSWERS, PER_REQUEST, PER_TEXT, few_requests};
use crate::error::{Error, Result};
use crate::report::before_after;
use serde_json::{Map, Value};
use std::io::Write;
use std::path::Path;

/// The measures of the table on the terminal; result.json and report.html have all.
const HEADLINES: [&str; 6] = ["ndcg@10", "hit@10", "mrr@10", "perplexity", "kl", "item_mass"];

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

/// A result without the values and answers of every single request and text.
pub fn without_requests(result: &Value) -> Value {
    let mut result = result.clone();
    for when in ["before", "after", "result"] {
        if let Some(measured) = result.get_mut(when).and_then(Value::as_object_mut) {
            [PER_REQUEST, PER_TEXT, ANSWERS].iter().for_each(|key| drop(measured.remove(*key)));
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
