//! Data directories from logs: the pipeline against worked examples, every source, every kind of bad input.

mod bad_input;
mod commands;
mod dialects;
mod files;
mod fuzz;
mod negatives;
mod output;
mod pipeline;
mod published;
mod refusals;
mod sources;
mod synth;
mod values;

use gems_engine::error::Result;
use gems_engine::prepare::{Card, Events, Format, Settings, Source, Target, Watch, World, run, synth};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

fn fixtures(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn write(path: &Path, contents: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

fn gz(text: &str) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

fn target(out: &Path) -> Target {
    Target { out: out.into(), overwrite: false, general: None }
}

fn watched<T>(work: impl FnOnce(&mut Watch) -> T) -> T {
    let interrupted = AtomicBool::new(false);
    work(&mut Watch { tick: &mut |_, _, _| {}, interrupted: &interrupted })
}

/// Nothing is filtered, and no negatives.
fn plain() -> Settings {
    let mut settings = Settings::default();
    (settings.core.user, settings.core.item) = (1, 1);
    settings.negatives.set("none").unwrap();
    settings
}

fn prepare(source: &Source, settings: &Settings, out: &Path) -> Result<Card> {
    watched(|watch| run(source, settings, &target(out), watch))
}

fn events_of(files: Vec<PathBuf>) -> Events {
    Events { files, ..Events::default() }
}

/// Writes events as JSONL and returns them as a source.
fn events(dir: &Path, rows: &[Value]) -> Source {
    let path = dir.join("events.jsonl");
    fs::write(&path, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    Source::Events(Box::new(events_of(vec![path])))
}

fn event(user: &str, time: i64, item: &str, query: Option<&str>) -> Value {
    json!({"user": user, "timestamp": time, "item": item, "query": query})
}

fn rows(dir: &Path, split: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(format!("{split}.jsonl"))).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// (task, history, query, targets) of every row.
type Short = (String, Vec<String>, String, Vec<String>);

fn short(dir: &Path, split: &str) -> Vec<Short> {
    let list = |v: &Value| v.as_array().unwrap().iter().map(|i| i.as_str().unwrap().to_string()).collect();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    rows(dir, split)
        .iter()
        .map(|r| (text(&r["task"]), list(&r["history"]), text(&r["query"]), list(&r["target"])))
        .collect()
}

fn row(task: &str, history: &str, query: &str, targets: &str) -> Short {
    let list = |text: &str| text.split_whitespace().map(String::from).collect();
    (task.into(), list(history), query.into(), list(targets))
}

fn texts(dir: &Path) -> HashMap<String, Option<String>> {
    let of = |r: &Value| (r["item"].as_str().unwrap().to_string(), r["text"].as_str().map(String::from));
    rows(dir, "items").iter().map(of).collect()
}

/// One user who meets items again in another task.
fn crossing() -> Vec<Value> {
    let rec = |t, item| event("u", t, item, None);
    let search = |t, item, query| event("u", t, item, Some(query));
    vec![
        rec(1, "A"),
        rec(2, "B"),
        search(3, "A", "qa"),
        rec(4, "C"),
        search(5, "D", "qd"),
        search(6, "B", "qb"),
        rec(7, "D"),
    ]
}

fn world(users: u64, items: usize) -> World {
    World {
        users,
        items,
        length: 9,
        conflict: 0.5,
        noise: 0.1,
        leak: 0.0,
        seed: 3,
        format: Format::Jsonl,
        events: false,
    }
}

/// A world's events as a source.
fn world_events(dir: &Path, world: World) -> Source {
    let out = dir.join("events");
    watched(|watch| synth(&World { events: true, ..world }, &target(&out), watch)).unwrap();
    let extension = world.format.extension();
    let file = |name: &str| out.join(format!("{name}.{extension}"));
    Source::Events(Box::new(Events { items: vec![file("items")], ..events_of(vec![file("events")]) }))
}
