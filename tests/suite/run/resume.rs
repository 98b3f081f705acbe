//! What a resume may do to a run, and what it may not.

use super::*;
use serde_json::json;
use std::f64::consts::PI;

/// Short runs that save often and measure little.
const SAVED: [&str; 6] =
    ["--set", "checkpoint.every=2", "--set", "checkpoint.keep=99", "--set", "train.validate_every=0"];

#[test]
fn a_refused_resume_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = trained(dir.path(), "4", &SAVED);
    let kept = contents(&out);
    let refusals: [(&[&str], &str); 13] = [
        (&["--set", "gems.rank=16"], "cannot change gems.rank: it is 4 in this run, not 16"),
        (&["--set", "train.lr=0.5"], "cannot change train.lr"),
        (&["--set", "train.batch=9"], "cannot change train.batch"),
        (&["--set", "seed=9"], "cannot change seed"),
        (&["--set", "data.item_identity=text"], "cannot change data.item_identity"),
        (&["--set", "data.templates.rec=\"{{ history }}\""], "cannot change data.templates.rec"),
        (&["--set", "evaluate.k=[3]"], "cannot change evaluate.k"),
        (&["--set", "train.steps=2"], "has done 4 steps already"),
        (&["--steps", "9", "--method", "lora"], "cannot change gems.method"),
        (&["--steps", "9", "--preset", "published"], "takes no preset"),
        (&["--steps", "9", "--basis", "other.safetensors"], "keeps its own knowledge basis"),
        (&["--steps", "9", "--match-step", "elsewhere"], "cannot change train.match_step"),
        (&["--steps", "9", "--set", "gems.rnak=3"], "gems.rank"),
    ];
    for (flags, said) in refusals {
        let told = refused(&mut resume(&out, flags));
        assert!(told.contains(said) && told.contains("try:"), "{flags:?}: {said:?} in {told}");
        assert!(contents(&out) == kept, "{flags:?} changed the run");
    }
    // Other records to learn from: nothing that was begun with the first ones.
    let rows = fs::read(data.join("train.jsonl")).unwrap();
    rewrite(&data.join("train.jsonl"), |rows| drop(rows.pop()));
    let told = refused(&mut resume(&out, &["--steps", "9"]));
    assert!(told.contains("train: 60 records then, 59 now"), "{told}");
    assert!(contents(&out) == kept);
    fs::write(data.join("train.jsonl"), rows).unwrap();
    // What was refused did no harm.
    told_of_steps(&mut resume(&out, &["--steps", "6"]), 6);
    assert_eq!(metrics(&out, "loss").len(), 6);
}

fn told_of_steps(command: &mut assert_cmd::Command, steps: u64) -> String {
    let (result, said) = told(command);
    assert_eq!(result["training"]["steps"], steps);
    said
}

#[test]
fn a_finished_run_is_told_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) = trained(dir.path(), "4", &SAVED);
    let (kept, result) = (contents(&out), fs::read_to_string(out.join("result.json")).unwrap());
    for flags in [&[][..], &["--steps", "4"], &["--set", "train.export=false"], &["--device", "cpu"]] {
        let (printed, said) = told(&mut resume(&out, flags));
        assert!(said.contains("all 4 steps of this run are done. Nothing is left to do"), "{said}");
        assert_eq!(
            said.contains("not taken over"),
            flags.contains(&"--set") || flags.contains(&"--device"),
            "{said}"
        );
        assert_eq!(printed, as_printed(serde_json::from_str(&result).unwrap()));
        assert!(contents(&out) == kept, "{flags:?} changed the run");
    }
    let events: Vec<Value> = history(&out).into_iter().map(|e| e["event"].clone()).collect();
    assert_eq!(events, ["started", "ended"]);
}

#[test]
fn a_run_that_stopped_early_is_told_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    // A loss that cannot improve: nothing is learned.
    let more =
        ["--set", "train.lr=1e-30", "--set", "optimizer.lr_rows=1e-30", "--set", "train.validate_every=2"];
    let more = [&more[..], &["--set", "train.best_metric=loss", "--set", "train.patience=2"]].concat();
    let (_, out) = trained(dir.path(), "20", &more);
    assert_eq!(metrics(&out, "loss").len(), 6, "2 is the best, 4 and 6 are not better");
    let kept = contents(&out);
    for flags in [&[][..], &["--steps", "30"], &["--set", "train.patience=2"]] {
        let (_, said) = told(&mut resume(&out, flags));
        assert!(said.contains("stopped early, after step 6 of"), "{said}");
        assert!(contents(&out) == kept, "{flags:?} changed the run");
    }
    let said = told_of_steps(&mut resume(&out, &["--set", "train.patience=3"]), 8);
    assert!(said.contains("changed: train.patience 2 -> 3"), "{said}");
    let last = history(&out).pop().unwrap();
    assert_eq!((&last["event"], &last["step"], &last["how"]), (&json!("ended"), &json!(8), &json!("early")));
}

#[test]
fn what_a_resume_changes_is_said_kept_and_appended() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) = trained(dir.path(), "8", &SAVED);
    let first = history(&out);
    let flags = ["--steps", "12", "--set", "train.export=false", "--set", "checkpoint.every=3"];
    let said = told_of_steps(&mut resume(&out, &flags), 12);
    // Half a cosine from 1e-3 to a twentieth of it, after two steps of warm-up that begins one above zero.
    let rate = |index: f64, total: f64| {
        let p = (index + 1.0 - 2.0) / (total + 1.0 - 2.0);
        1e-3 * (0.05 + 0.95 * 0.5 * (1.0 + (PI * p).cos()))
    };
    for part in [
        "ends at step 12 instead of 8".to_string(),
        format!("{:.3e} in step 8", rate(7.0, 8.0)),
        format!("is {:.3e} in the next one", rate(8.0, 12.0)),
        format!("would have been {:.3e}", rate(8.0, 8.0)),
        "train.steps 8 -> 12".into(),
    ] {
        assert!(said.contains(&part), "{part:?} in {said}");
    }
    let lr = metrics(&out, "lr");
    assert!((lr[8].1 - rate(8.0, 12.0)).abs() < 1e-9 && lr[8].0 == 9, "{lr:?}");
    let now = history(&out);
    assert_eq!(now[..first.len()], first[..], "a history is only added to");
    let resumed = &now[first.len()];
    assert_eq!((&resumed["event"], &resumed["step"]), (&json!("resumed"), &json!(8)));
    assert_eq!(
        resumed["changes"],
        json!({"train.steps": [8, 12], "train.export": [true, false], "checkpoint.every": [2, 3]})
    );
    let kept: toml::Table = fs::read_to_string(out.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(kept["train"]["steps"].as_integer(), Some(12));
    // Nothing is said of a schedule that has none to stretch.
    let flat = dir.path().join("flat");
    let more = [&["--steps", "4", "--set", "train.schedule=constant"][..], &SAVED].concat();
    train("llama_tied", &dir.path().join("world"), &flat, &more).assert().success();
    let said = told_of_steps(&mut resume(&flat, &["--steps", "6"]), 6);
    assert!(!said.contains("schedule") && said.contains("train.steps 4 -> 6"), "{said}");
}

/// A crash between the history's event and the settings' file: the event decides.
#[test]
fn settings_are_in_force_once_the_history_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) = trained(dir.path(), "4", &SAVED);
    let (config, staged, history) =
        (out.join("config.toml"), out.join("config.toml.next"), out.join("history.jsonl"));
    let before = (fs::read(&config).unwrap(), fs::read(&history).unwrap());
    told_of_steps(&mut resume(&out, &["--steps", "6"]), 6);
    assert!(!staged.exists());
    let after = fs::read(&config).unwrap();
    let steps = || gems_engine::run::Run::open(&out).unwrap().config.train.steps;
    // Before the event nothing has changed, after it everything has.
    fs::write(&config, &before.0).unwrap();
    fs::write(&staged, &after).unwrap();
    assert_eq!(steps(), 6);
    let events = fs::read(&history).unwrap();
    fs::write(&history, &before.1).unwrap();
    assert_eq!(steps(), 4);
    fs::write(&history, &events).unwrap();
    told_of_steps(&mut resume(&out, &["--steps", "7"]), 7);
    assert!(!staged.exists() && steps() == 7);
    let changes: Vec<Value> = super::history(&out).iter().filter_map(|e| e.get("changes").cloned()).collect();
    assert_eq!(changes[1]["train.steps"], json!([6, 7]));
}

#[test]
fn matched_steps_are_a_setting_that_survives_and_ends_aloud() {
    let dir = tempfile::tempdir().unwrap();
    let (data, reference) = trained(dir.path(), "6", &SAVED);
    let (name, out) = (reference.to_str().unwrap(), dir.path().join("matched"));
    // Checked before anything else, also by a dry run.
    let nowhere = dir.path().join("nowhere");
    for more in [&["--dry-run"][..], &[]] {
        let more = [&["--match-step", nowhere.to_str().unwrap()][..], more].concat();
        let said = refused(&mut train("llama_tied", &data, &dir.path().join("x"), &more));
        assert!(said.contains("no update norms to match here") && !dir.path().join("x").exists(), "{said}");
    }
    let lora = ["--steps", "4", "--method", "lora", "--set", "train.lr=0.01", "--match-step", name];
    train("llama_tied", &data, &out, &[&lora[..], &SAVED].concat()).assert().success();
    let kept: toml::Table = fs::read_to_string(out.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(kept["train"]["match_step"].as_str(), reference.canonicalize().unwrap().to_str());
    // The norms are the run's own: the reference may be gone.
    let norms = metrics(&reference, "update_norm");
    fs::rename(&reference, dir.path().join("gone")).unwrap();
    let said = told_of_steps(&mut resume(&out, &["--steps", "8"]), 8);
    assert!(said.contains("has 6 steps: steps 7 to 8 will not be matched"), "{said}");
    let log = fs::read_to_string(out.join("log.txt")).unwrap();
    assert!(log.contains("step 7: the run to match ended before"), "{log}");
    let ours = metrics(&out, "update_norm");
    for (a, b) in ours.iter().zip(&norms) {
        assert!((a.1 - b.1).abs() < 1e-4 * b.1, "{a:?} not {b:?}");
    }
    assert!(ours.len() == 8 && (ours[6].1 - norms[5].1).abs() > 0.1 * norms[5].1, "{ours:?}, {norms:?}");
    let compared =
        engine().args(["compare", "--json"]).arg(&out).arg(dir.path().join("gone")).assert().success();
    let compared: Value = serde_json::from_slice(&compared.get_output().stdout).unwrap();
    assert!(compared["runs"][0]["settings"]["train.match_step"].as_str().unwrap().ends_with("run"));
}

/// A step that was skipped has no norm: the others are matched to their own all the same.
#[test]
fn norms_are_matched_by_the_number_of_their_step() {
    let dir = tempfile::tempdir().unwrap();
    let reference = dir.path().join("reference");
    fs::create_dir(&reference).unwrap();
    let line =
        |step: u64, norm: Value| format!("{}\n", json!({"step": step, "loss": 1.0, "update_norm": norm}));
    let log = line(1, json!(0.01)) + &line(2, Value::Null) + &line(3, json!(0.03)) + &line(4, json!(0.02));
    fs::write(reference.join("metrics.jsonl"), log).unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("run"));
    let more = ["--steps", "4", "--match-step", reference.to_str().unwrap()];
    train("llama_tied", &data, &out, &[&more[..], &SAVED].concat()).assert().success();
    let norms = metrics(&out, "update_norm");
    for (step, norm) in [(1, 0.01), (3, 0.03), (4, 0.02)] {
        let ours = norms.iter().find(|(s, _)| *s == step).unwrap().1;
        assert!((ours - norm).abs() < 1e-4 * norm, "step {step}: {ours} not {norm}");
    }
    assert!(
        fs::read_to_string(out.join("log.txt"))
            .unwrap()
            .contains("step 2: the run to match has no norm here")
    );
}

#[test]
fn every_step_stands_once_whatever_the_run_goes_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) = trained(dir.path(), "8", &SAVED);
    let whole: Vec<(u64, f64)> = metrics(&out, "loss");
    assert_eq!(whole.iter().map(|(s, _)| *s).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    // Killed after step 8 and before the end was noted: the newest checkpoint damaged, the log torn or ahead of it.
    let damage = |step: u64| {
        let file = out.join(format!("checkpoints/step-{step:08}/weights.safetensors"));
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file, bytes).unwrap();
    };
    for (damaged, torn) in [(vec![8], ""), (vec![8, 6], "{\"step\": 9, \"lo"), (vec![8, 6, 4, 2], "")] {
        rewrite(&out.join("history.jsonl"), |rows| drop(rows.pop()));
        damaged.iter().for_each(|step| damage(*step));
        let mut log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        log += torn;
        fs::write(out.join("metrics.jsonl"), log).unwrap();
        if damaged.len() == 4 {
            // Nothing whole is left: it says so, and begins anew only when there is no checkpoint at all.
            assert!(refused(&mut resume(&out, &[])).contains("no whole checkpoint found"));
            fs::remove_dir_all(out.join("checkpoints")).unwrap();
        }
        let (_, said) = told(&mut resume(&out, &[]));
        let what =
            if damaged.len() == 4 { "no checkpoint was written yet" } else { "checkpoint passed over" };
        assert!(said.contains(what), "{what:?} in {said}");
        assert_eq!(metrics(&out, "loss"), whole, "{damaged:?}");
    }
}

#[test]
fn before_is_measured_anew_where_the_tests_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = trained(dir.path(), "4", &SAVED);
    let before = |out: &Path| -> Value {
        serde_json::from_str(&fs::read_to_string(out.join("before.json")).unwrap()).unwrap()
    };
    let first = before(&out);
    rewrite(&data.join("test.jsonl"), |rows| rows.truncate(4));
    let (result, said) = told(&mut resume(&out, &["--steps", "6"]));
    assert!(said.contains("test: 15 records then, 4 now"), "{said}");
    assert_ne!(before(&out), first);
    assert_eq!(result["before"], as_printed(before(&out)));
    // As a run on these records measures it from the start.
    let other = dir.path().join("other");
    train("llama_tied", &data, &other, &[&["--steps", "2"][..], &SAVED].concat()).assert().success();
    assert_eq!(before(&other), before(&out));
}
