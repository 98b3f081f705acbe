//! A run owns what it was made of, and a resume neither destroys nor falsifies it.

mod changed;
mod moved;
mod overlay;
mod precision;
mod resume;
mod saving;
mod threads;

use crate::cli::{FAST, engine, golden_model, losses, train, world};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A data directory and a run of `steps` steps on it.
fn trained(dir: &Path, steps: &str, more: &[&str]) -> (PathBuf, PathBuf) {
    let (data, out) = (world(dir), dir.join("run"));
    train("llama_tied", &data, &out, &[&["--steps", steps], more].concat()).assert().success();
    (data, out)
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(String::from).collect()
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut all = lines(path);
    change(&mut all);
    fs::write(path, all.join("\n") + "\n").unwrap();
}

/// Standard output as JSON, and standard error.
fn told(command: &mut assert_cmd::Command) -> (Value, String) {
    let done = command.assert().success();
    let output = done.get_output();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().last().unwrap_or("null");
    (serde_json::from_str(last).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A result as it is printed: without the values and answers of single requests and texts, which are for the report.
fn as_printed(mut result: Value) -> Value {
    let without = |value: &mut Value| {
        let all = value.as_object_mut()?;
        all.remove("per_text");
        all.remove("answers");
        all.remove("per_request")
    };
    without(&mut result);
    for when in ["before", "after"] {
        result.get_mut(when).and_then(without);
    }
    result
}

/// What a command says that must fail.
fn refused(command: &mut assert_cmd::Command) -> String {
    let done = command.assert().failure();
    let said = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn command(name: &str, run: &Path, more: &[&str]) -> assert_cmd::Command {
    let mut command = engine();
    command.args([name, "--json", "--run"]).arg(run).args(more);
    command
}

fn resume(run: &Path, more: &[&str]) -> assert_cmd::Command {
    let mut command = engine();
    command.args(["train", "--json", "--resume", "--out"]).arg(run).args(more);
    command
}

fn evaluated(run: &Path) -> (Value, String) {
    let (value, said) = told(&mut command("evaluate", run, &[]));
    (value["result"].clone(), said)
}

const ASKED: [&str; 6] = ["--history", "i1,i2", "--query", "red desk", "--top", "12"];

/// Every file of a run but the lock, by its path.
fn contents(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut left = vec![run.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            match entry.is_dir() && !entry.is_symlink() {
                true => left.push(entry),
                false if entry.ends_with(".lock") => {}
                false => drop(all.insert(entry.clone(), fs::read(&entry).unwrap_or_default())),
            }
        }
    }
    all
}

fn metrics(run: &Path, key: &str) -> Vec<(u64, f64)> {
    let rows = lines(&run.join("metrics.jsonl"));
    let rows = rows.iter().map(|l| serde_json::from_str::<Value>(l).unwrap());
    rows.filter_map(|l| Some((l["step"].as_u64()?, l.get(key)?.as_f64()?))).collect()
}

fn history(run: &Path) -> Vec<Value> {
    lines(&run.join("history.jsonl")).iter().map(|l| serde_json::from_str(l).unwrap()).collect()
}
