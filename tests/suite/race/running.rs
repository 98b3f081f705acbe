//! The command `race`, on a tiny model.

use crate::cli::{FAST, engine, golden_model, world};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Arguments of a race of two learning rates and steps enough to move.
fn args(data: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let path = |p: &Path| p.display().to_string();
    // A race validates once, after the last step.
    let fast = FAST.chunks(2).filter(|pair| !pair[1].starts_with("train.validate_every")).flatten();
    let own = ["--steps", "4", "--lr", "0.001,0.01", "--device", "cpu", "--threads", "1"];
    let mut all = vec!["race".into(), "--model".into(), path(&golden_model("llama_tied"))];
    all.extend(["--data".into(), path(data), "--out".into(), path(out)]);
    all.extend(own.iter().chain(fast).chain(more).map(|a| a.to_string()));
    all
}

fn race(data: &Path, out: &Path, more: &[&str]) -> assert_cmd::Command {
    let mut command = engine();
    command.args(args(data, out, more));
    command
}

/// Standard error of a race that must be refused as wrong usage (2) or fail (1).
#[track_caller]
fn refused(code: i32, data: &Path, out: &Path, more: &[&str]) -> String {
    let done = race(data, out, more).assert().code(code);
    let said = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Cells that were started (and gone on with), from the race's log.
fn starts(out: &Path) -> (usize, usize) {
    let log = fs::read_to_string(out.join("log.txt")).unwrap();
    let lines = |what: &str| log.lines().filter(|l| l.contains(&format!(" s  {what} "))).count();
    (lines("starting"), lines("going on with"))
}

fn json(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("race.json")).unwrap()).unwrap()
}

const TWO: [&str; 4] = ["--methods", "factors", "--seeds", "0,1"];

#[test]
fn a_race_ends_in_tables_and_a_page_and_is_not_run_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("race"));
    let done = race(&data, &out, &[&TWO[..], &["--jobs", "2"]].concat()).assert().success();
    let told = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    for text in ["plain", "factors", "(base model)", "What each task loses", "only-none", "race.html"] {
        assert_eq!(told.contains(text), text != "only-none", "{text} in {told}");
    }
    assert!(told.lines().all(|l| l.chars().count() <= 80 || l.ends_with("race.html")), "{told}");
    // The base model, two methods and two tasks alone, at two rates, of two seeds.
    let cells = 1 + 2 * 2 * (2 + 2);
    assert_eq!(starts(&out), (cells, 0));
    let result = json(&out);
    let all = result["cells"].as_array().unwrap();
    assert_eq!(all.len(), cells);
    for cell in all {
        let steps = if cell["name"] == "base" { 0 } else { 4 };
        assert_eq!(cell["training"]["steps"], steps, "{cell}");
        assert!(cell["kl"].as_f64().unwrap() < 1e-6 || steps > 0, "{cell}");
        let name = cell["name"].as_str().unwrap();
        // One task alone has no other's gradient to be compared with.
        let conflict = cell["training"].as_object().unwrap().keys().any(|k| k.starts_with("cosine."));
        assert_eq!(conflict, steps > 0 && !name.contains("only"), "{name}");
        // Only results stay.
        assert!(!out.join("cells").join(name).exists() && out.join(format!("cells/{name}.json")).is_file());
    }
    let page = fs::read_to_string(out.join("race.html")).unwrap();
    crate::report::check(&page);
    assert!(page.contains("nobody can tell a method from the luck of training"), "two seeds are too few");
    // The same once more: nothing is run, and the same is said.
    let again = race(&data, &out, &[&TWO[..], &["--jobs", "2"]].concat()).assert().success();
    assert_eq!(String::from_utf8_lossy(&again.get_output().stdout), told);
    assert_eq!(starts(&out), (cells, 0));
    // Another seed: the old ones stand.
    race(&data, &out, &["--methods", "factors", "--seeds", "0,1,5", "--no-alone"]).assert().success();
    assert_eq!(starts(&out).0, cells + 4);
    changed_sources_are_named(&data, &out, cells + 4);
}

/// Results that were made with something else do not count, and are not thrown away.
fn changed_sources_are_named(data: &Path, out: &Path, started: usize) {
    let said = refused(2, data, out, &[&TWO[..], &["--set", "gems.rank=3"]].concat());
    assert!(said.contains("gems.rank was 4, is 3") && said.contains("--afresh"), "{said}");
    let test = data.join("test.jsonl");
    let old = fs::read_to_string(&test).unwrap();
    fs::write(&test, old.lines().skip(1).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let said = refused(2, data, out, &TWO);
    assert!(said.contains("data/test.jsonl has changed") && said.contains("17 of the results"), "{said}");
    assert_eq!(starts(out).0, started);
    race(data, out, &["--seeds", "0", "--methods", "plain", "--no-alone", "--afresh"]).assert().success();
    assert_eq!(starts(out).0, started + 3, "the base model and plain at two rates");
}

#[test]
fn a_cell_that_fails_does_not_stop_the_race() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("race"));
    let methods = dir.path().join("methods.toml");
    let file = |rank: usize| {
        format!(
            "[shared.gems]\nrank = 4\n[shared.null_space]\nside = \"none\"\n[[method]]\nname = \"wide\"\nrates = [1]\nsettings.gems.rank = {rank}\n[[method]]\nname = \"plain\"\nrates = [1]\n"
        )
    };
    // More directions than the layers have are found out by the run itself.
    fs::write(&methods, file(5000)).unwrap();
    let from = ["--methods-from", methods.to_str().unwrap(), "--seeds", "0", "--no-alone"];
    // FAST sets gems.rank for all methods, which these do.
    let said = refused(2, &data, &out, &from);
    assert!(said.contains("gems.rank is what methods of this race differ in"), "{said}");
    let without = |all: Vec<String>| -> Vec<String> {
        let at = all.iter().position(|a| a == "gems.rank=4").unwrap();
        all.into_iter().enumerate().filter(|(i, _)| *i != at && *i + 1 != at).map(|(_, a)| a).collect()
    };
    let done = engine().args(without(args(&data, &out, &from))).assert().code(1);
    let said = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(said.contains("2 of 5 cells failed; wide.lr-0.001.seed-0:") && said.contains("rank"), "{said}");
    let result = json(&out);
    assert_eq!(
        (result["cells"].as_array().unwrap().len(), result["missing"].as_array().unwrap().len()),
        (3, 2)
    );
    let page = fs::read_to_string(out.join("race.html")).unwrap();
    assert!(
        page.contains("Without a result") && page.contains("wide.lr-0.01.seed-0"),
        "the page says what is missing"
    );
    // Put right, it runs what failed and nothing else.
    let before = starts(&out).0;
    fs::write(&methods, file(3)).unwrap();
    engine().args(without(args(&data, &out, &from))).assert().success();
    assert_eq!(starts(&out).0, before + 2);
}

fn start(args: &[String]) -> Child {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("gems-engine"));
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until `what` is true of the files.
fn wait_for(what: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(300);
    while !what() {
        assert!(Instant::now() < limit, "it did not come to that");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn killed_or_interrupted_a_race_runs_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("race"));
    let long = [
        "--methods",
        "plain",
        "--seeds",
        "0,1",
        "--no-alone",
        "--steps",
        "150",
        "--set",
        "checkpoint.every=5",
    ];
    let mut all = args(&data, &out, &long);
    let at = all.iter().position(|a| a == "4").unwrap();
    all.drain(at - 1..=at);
    let cell = |name: &str| out.join("cells").join(name);
    let begun = |name: &'static str| {
        let checkpoints = cell(name).join("checkpoints");
        move || checkpoints.is_dir()
    };
    // Killed in the second cell, whose process lives on; the next race waits for it and takes what it made.
    let mut first = start(&all);
    wait_for(begun("plain.lr-0.001.seed-0"));
    signal(&first, "-KILL");
    first.wait().unwrap();
    // Interrupted in the third: it saves, and both processes end.
    let mut second = start(&all);
    wait_for(begun("plain.lr-0.01.seed-0"));
    // Two races in one directory.
    let refused = engine().args(&all).assert().code(2);
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(said.contains("another process is working in this run directory"), "{said}");
    signal(&second, "-INT");
    assert_eq!(second.wait().unwrap().code(), Some(130));
    let log = fs::read_to_string(cell("plain.lr-0.01.seed-0").join("history.jsonl")).unwrap();
    assert!(log.contains("interrupted"), "{log}");
    let done = engine().args(&all).assert().success();
    assert!(String::from_utf8_lossy(&done.get_output().stdout).contains("plain"));
    // Base and four cells, each started once; two were gone on with.
    assert_eq!(starts(&out), (5, 2));
    assert_eq!(json(&out)["cells"].as_array().unwrap().len(), 5);
    for cell in json(&out)["cells"].as_array().unwrap().iter().skip(1) {
        assert_eq!(cell["training"]["steps"], 150, "{cell}");
    }
}

#[test]
fn what_could_not_be_compared_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("race"));
    for (more, want) in [
        (&["--methods", "metrik"][..], "there is no method"),
        (&["--seeds", "1,1"], "seed 1 stands twice"),
        (&["--jobs", "0"], "--jobs"),
        (&["--within", "1"], "--within"),
        (&["--set", "seed=3"], "a race decides seed itself"),
        (&["--set", "null_space.side=input"], "what methods of this race differ in"),
        (&["--minutes", "1"], "cannot be used with"),
    ] {
        let said = refused(2, &data, &out, more);
        assert!(said.contains(want), "{more:?}: {said}");
    }
    assert!(!out.join("cells").exists());
    let only = engine().args(["race", "--model", "here", "--dry-run"]).assert().code(2);
    assert!(String::from_utf8_lossy(&only.get_output().stderr).contains("--data"));
    // One task: said, and nothing is learned alone.
    let one = dir.path().join("one");
    fs::create_dir(&one).unwrap();
    for entry in fs::read_dir(&data).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap();
        let kept = text.lines().filter(|l| !l.contains("\"search\"")).map(|l| format!("{l}\n"));
        fs::write(one.join(entry.file_name()), kept.collect::<String>()).unwrap();
    }
    let plan = race(&one, &out, &["--dry-run", "--json", "--methods", "hard"]).assert().success();
    let plan: Value = serde_json::from_slice(&plan.get_output().stdout).unwrap();
    assert!(
        plan["notes"][0].as_str().unwrap().contains("interference between tasks has no meaning here"),
        "{plan}"
    );
    assert_eq!(plan["cells"].as_array().unwrap().len(), 1 + 2 * 2 * 3);
    let both = race(&data, &out, &["--dry-run", "--json", "--methods", "hard"]).assert().success();
    let both: Value = serde_json::from_slice(&both.get_output().stdout).unwrap();
    assert_eq!(both["cells"].as_array().unwrap().len(), 1 + 2 * 2 * 3 + 2 * 2 * 3);
    assert_eq!(both["rows_a_step"], serde_json::json!({"rec": 5, "search": 3}));
    fs::remove_file(data.join("general.txt")).unwrap();
    assert!(refused(1, &data, &out, &[]).contains("the divergence from the base model cannot be measured"));
    fs::copy(one.join("general.txt"), data.join("general.txt")).unwrap();
    fs::remove_file(data.join("valid.jsonl")).unwrap();
    assert!(refused(1, &data, &out, &[]).contains("learning rates are chosen"));
}

#[test]
fn matched_in_time_every_method_gets_its_own_steps() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("race"));
    let mut all =
        args(&data, &out, &["--methods", "plain", "--seeds", "0", "--no-alone", "--minutes", "0.0005"]);
    let at = all.iter().position(|a| a == "4").unwrap();
    all.drain(at - 1..=at);
    engine().args(&all).assert().success();
    let pace: Value = serde_json::from_slice(&fs::read(out.join("pace.json")).unwrap()).unwrap();
    let steps = ((0.03 / pace["plain"].as_f64().unwrap()) as u64).max(1);
    let result = json(&out);
    assert!(result["notes"][1].as_str().unwrap().contains(&format!("plain {steps}")), "{}", result["notes"]);
    for cell in result["cells"].as_array().unwrap().iter().skip(1) {
        assert_eq!(cell["training"]["steps"], steps, "{cell}");
    }
    engine().args(&all).assert().success();
    assert_eq!(starts(&out).0, 3, "the pace is measured once, and what was run stands");
}
