//! Run directory, checkpoints and layered settings.

use gems_engine::config::{Layer, merge};
use gems_engine::gems::{StateKind, StateTensor};
use gems_engine::run::RunDirectory;
use gems_engine::train::checkpoint;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

fn tensors(seed: u64) -> Vec<StateTensor> {
    let one = |name: &str, kind: StateKind, rows: usize, cols: usize| {
        let (name, values) = (name.to_string(), crate::support::numbers(seed, rows * cols));
        StateTensor { name, kind, rows, cols, values }
    };
    vec![
        one("a", StateKind::Weight, 3, 5),
        one("m.a", StateKind::Optimizer, 7, 2),
        one("empty", StateKind::Weight, 0, 4),
        one("z.b", StateKind::Weight, 1, 1),
    ]
}

/// The names in a file of a checkpoint, in order.
fn names(checkpoint: &std::path::Path, file: &str) -> Vec<String> {
    let bytes = std::fs::read(checkpoint.join(file)).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = read.names().into_iter().map(String::from).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let written = tensors(1);
    let path = checkpoint::save(dir.path(), 12, &written, json!({"lr": 0.1, "best": null})).unwrap();
    let read = checkpoint::load_latest(dir.path(), |e| panic!("{e}")).unwrap();
    assert_eq!(read.step, 12);
    assert_eq!(read.state["lr"], 0.1);
    let by_name = |mut all: Vec<StateTensor>| {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    };
    assert_eq!(by_name(written), by_name(read.tensors));
    assert_eq!(names(&path, "weights.safetensors"), ["a", "empty", "z.b"]);
    assert_eq!(names(&path, "optimizer.safetensors"), ["m.a"]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_an_older_one() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint::save(dir.path(), 5, &tensors(1), json!({})).unwrap();
    let newest = checkpoint::save(dir.path(), 10, &tensors(2), json!({})).unwrap();
    let file = newest.join("weights.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut warnings = Vec::new();
    let read = checkpoint::load_latest(dir.path(), |e| warnings.push(e.to_string())).unwrap();
    assert_eq!(read.step, 5);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("weights.safetensors does not match its checksum"), "{}", warnings[0]);
    // Truncation and a missing manifest are no better.
    std::fs::remove_file(newest.join("state.json")).unwrap();
    assert_eq!(checkpoint::load_latest(dir.path(), |_| ()).unwrap().step, 5);
}

#[test]
fn an_unfinished_write_is_not_a_checkpoint_and_pruning_spares_the_best() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(".writing-x")).unwrap();
    for step in [1, 2, 3, 4, 5] {
        checkpoint::save(dir.path(), step, &tensors(step), json!({})).unwrap();
    }
    checkpoint::prune(dir.path(), 2, &[2]).unwrap();
    let steps: Vec<u64> = checkpoint::list(dir.path()).unwrap().into_iter().map(|(s, _)| s).collect();
    assert_eq!(steps, [2, 4, 5]);
}

#[test]
fn one_run_at_a_time_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    assert!(RunDirectory::open(&path, true).is_err_and(|e| e.to_string().contains("no run to resume")));
    let held = RunDirectory::open(&path, false).unwrap();
    let second = RunDirectory::open(&path, false);
    assert!(second.is_err_and(|e| e.to_string().contains("another process")));
    std::fs::write(held.join("metrics.jsonl"), "").unwrap();
    drop(held);
    assert!(RunDirectory::open(&path, false).is_err_and(|e| e.to_string().contains("already holds a run")));
    assert_eq!(RunDirectory::fresh(dir.path(), "run"), dir.path().join("run-2"));
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Inner {
    rank: usize,
    refresh_every: Option<u64>,
    weights: BTreeMap<String, f64>,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Outer {
    seed: u64,
    gems: Inner,
}

fn merged(layers: Vec<Layer>) -> gems_engine::error::Result<toml::Table> {
    merge(&layers, schemars::schema_for!(Outer).as_value())
}

#[test]
fn later_layers_win_and_types_are_kept() {
    let table = merged(vec![
        Layer::table("file", "seed = 3\n[gems]\nrank = 4\nweights = { a = 1.0 }".parse().unwrap()),
        Layer::assignment("gems.rank=8").unwrap(),
        Layer::assignment("gems.weights.b = 2.5").unwrap(),
        Layer::value("--seed", "seed", 9.into()),
    ])
    .unwrap();
    let outer: Outer = table.try_into().unwrap();
    assert_eq!((outer.seed, outer.gems.rank), (9, 8));
    assert_eq!(outer.gems.weights, BTreeMap::from([("a".into(), 1.0), ("b".into(), 2.5)]));
}

#[test]
fn an_unknown_key_names_its_source_and_the_nearest_key() {
    for (assignment, nearest) in [
        ("gems.rnak=8", "`gems.rank`"),
        ("gems.refreshevery=8", "`gems.refresh_every`"),
        ("rank=1", "`gems.rank`"),
    ] {
        let error = merged(vec![Layer::assignment(assignment).unwrap()]).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains(nearest) && text.contains("--set"), "{text}");
    }
    assert!(Layer::assignment("gems.rank").is_err());
}

#[test]
fn a_broken_file_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, "seed = 1\n[gems]\nrank = \n").unwrap();
    let text = Layer::file(&path).err().unwrap().to_string();
    assert!(text.contains("run.toml") && text.contains("line 3"), "{text}");
}
