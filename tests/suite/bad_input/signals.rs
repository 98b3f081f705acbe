//! Interrupted and killed runs.

use super::{refused, strings};
use crate::cli::{engine, train, world};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn start(args: &[String]) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin("gems-engine"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until the run has logged `steps` steps (or its process has ended).
fn wait_for(out: &Path, steps: usize, child: &mut Child) {
    let limit = Instant::now() + Duration::from_secs(300);
    loop {
        let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        if log.lines().filter(|l| l.contains("\"loss\"")).count() >= steps
            || child.try_wait().unwrap().is_some()
        {
            return;
        }
        assert!(Instant::now() < limit, "no {steps} steps in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const RUN: [&str; 8] = [
    "--set",
    "checkpoint.every=5",
    "--set",
    "train.evaluate_before=false",
    "--set",
    "train.evaluate_after=false",
    "--set",
    "train.validate_every=0",
];

#[test]
fn two_runs_in_one_directory_and_an_interrupted_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let out = dir.path().join("run");
    let mut args = strings(&train("llama_tied", &data, &out, &["--steps", "100000"]));
    args.extend(RUN.map(String::from));
    let mut first = start(&args);
    wait_for(&out, 3, &mut first);
    refused(train("llama_tied", &data, &out, &["--steps", "1"]), 2, &["another process", "--out"]);
    signal(&first, "-INT");
    assert_eq!(first.wait().unwrap().code(), Some(130));
    let last = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let step = last.lines().filter(|l| l.contains("\"loss\"")).count();
    assert!(out.join(format!("checkpoints/step-{step:08}/state.json")).is_file(), "saved at step {step}");
    let more = step + 2;
    engine()
        .args(["train", "--json", "--resume", "--steps", &more.to_string(), "--out"])
        .arg(&out)
        .assert()
        .success();
}

#[test]
fn killed_at_any_moment_a_run_goes_on_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let run = |name: &str| {
        let out = dir.path().join(name);
        let mut args = strings(&train("llama_tied", &data, &out, &["--steps", "40"]));
        args.extend(RUN.map(String::from));
        (out, args)
    };
    let (whole, args) = run("whole");
    assert!(start(&args).wait().unwrap().success());
    let (part, args) = run("part");
    let mut child = start(&args);
    // The first time before there is a checkpoint.
    for steps in [2, 7, 16, 28] {
        wait_for(&part, steps, &mut child);
        signal(&child, "-KILL");
        child.wait().unwrap();
        let resume = ["train", "--json", "--resume", "--out", part.to_str().unwrap()];
        child = start(&resume.map(String::from));
    }
    assert!(child.wait().unwrap().success());
    for file in ["weights.safetensors", "optimizer.safetensors"] {
        let at = |run: &Path| fs::read(run.join("checkpoints/step-00000040").join(file)).unwrap();
        assert!(at(&whole) == at(&part), "{file} differs");
    }
    let losses = |run: &Path| {
        let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines = log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.filter_map(|l| Some((l["step"].as_u64()?, l.get("loss")?.to_string()))).collect::<Vec<_>>()
    };
    assert_eq!(losses(&whole), losses(&part));
}
