//! Settings: what cannot be meant is refused at its place, with the nearest that can; and models by their Hub name.

use crate::cli::{engine, golden_model, world};
use gems_engine::config::{Config, Layer};
use gems_engine::gems::{Criterion, NullSide, Project};
use gems_engine::model::hub::Cache;
use predicates::prelude::*;
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

fn set(assignments: &[&str]) -> Result<Config, String> {
    let layers = assignments.iter().map(|a| Layer::assignment(a).unwrap()).collect();
    Config::from_layers(layers).map_err(|e| e.to_string())
}

/// (Path, schema) of every number of the schema, those in lists and maps too.
fn numbers(node: &Value, root: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    let node = match node["$ref"].as_str() {
        Some(pointer) => root.pointer(&pointer[1..]).unwrap(),
        None => node,
    };
    let is = |kind: &str| {
        node["type"] == kind || node["type"].as_array().is_some_and(|t| t.contains(&kind.into()))
    };
    if is("number") || is("integer") {
        found.push((path.to_string(), node.clone()));
    }
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        numbers(child, root, format!("{path}.{name}").trim_start_matches('.'), found);
    }
    for inner in ["items", "additionalProperties"].map(|key| &node[key]).into_iter().filter(|n| n.is_object())
    {
        numbers(inner, root, path, found);
    }
}

#[test]
fn every_number_has_bounds_and_they_are_checked() {
    let schema = Config::schema();
    let mut all = Vec::new();
    numbers(&schema, &schema, "", &mut all);
    assert!(all.len() > 40, "{} numbers", all.len());
    for (path, node) in &all {
        let low = node["minimum"].as_f64().or(node["exclusiveMinimum"].as_f64());
        let Some(low) = low else { panic!("{path} has no lower bound") };
        let listed = ["evaluate.k", "gems.gates.shares"].contains(&path.as_str());
        let assignment = match (listed, path.as_str()) {
            (_, "train.batch_per_task") => format!("{path}.rec={}", low as i64 - 1),
            (true, "gems.gates.shares") => format!("{path}=[{}, 1.0, 1.0]", low - 1.0),
            (true, _) => format!("{path}=[{}]", low as i64 - 1),
            _ => format!("{path}={}", low as i64 - 1),
        };
        let error = set(&[&assignment]).unwrap_err();
        assert!(error.starts_with(&format!("--set: {path}")) && error.contains("out of range"), "{error}");
        assert!(error.contains("  try: a"), "{error}");
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    for (assignments, said) in [
        (&["train.lr=-1"][..], "--set: train.lr: -1 is out of range\n  try: a number at least 0"),
        (&["train.lr=nan"], "train.lr: nan instead of a number"),
        (&["optimizer.lr_rows=inf"], "optimizer.lr_rows: inf instead of a number"),
        (&["optimizer.lr_rows=-0.01"], "optimizer.lr_rows: -0.01 is out of range"),
        (&["train.final_lr_ratio=-2"], "at least 0, at most 1"),
        (
            &["optimizer.beta2=1.0"],
            "optimizer.beta2: 1.0 is out of range\n  try: a number at least 0, below 1",
        ),
        (&["optimizer.eps=0"], "a number above 0"),
        (&["train.steps=1e3"], "train.steps: 1000.0 instead of a whole number"),
        (&["train.steps=ten"], "train.steps: \"ten\" instead of a whole number"),
        (&["train.export=yes"], "true or false"),
        (&["data.path=7"], "data.path: 7 instead of a text"),
        (&["data.tasks=rec"], "data.tasks: \"rec\" instead of a list"),
        (&["gems=3"], "gems: 3 instead of a section"),
        (&["evaluate.k=[]"], "evaluate.k"),
        (&["evaluate.k=[0]"], "evaluate.k: 0 is out of range"),
        (&["evaluate.k=[5, 10, 5]"], "the cut-off 5 is listed twice"),
        (&["gems.gates.shares=[1, 2]"], "give 3"),
        (
            &["gems.gates.kind=heuristic", "gems.gates.shares=[0, 0, 0]"],
            "gems.gates.shares: all of them are 0",
        ),
        (
            &["gems.method=gem"],
            "gems.method: there is no \"gem\"\n  try: did you mean \"gems\"? There are gems, galore",
        ),
        (&["train.schedule=Cosine"], "did you mean \"cosine\"?"),
        (&["gems.method=xyz"], "one of gems, galore, lora, full, rows"),
        (&["null_space.value=1.5"], "null_space.value: 1.5 does not fit null_space.criterion = \"energy\""),
        (&["null_space.criterion=budget"], "0.95 does not fit null_space.criterion = \"budget\""),
        (&["null_space.criterion=ratio", "null_space.value=1"], "\"ratio\""),
        (&["null_space.side=none", "null_space.item_rows=0", "null_space.random=true"], "null_space.random"),
        (&["gems.method=rows", "optimizer.embeddings=none"], "nothing is trained"),
        (&["train.patience=2", "train.validate_every=0"], "train.patience"),
        (&["train.batch_per_task.rec=0"], "train.batch_per_task: 0 examples a step of task `rec`"),
        (&["device=gpu"], "unknown device `gpu`"),
        (&["gem.rank=8"], "unknown setting `gem.rank`\n  try: did you mean `gems.rank`?"),
    ] {
        let error = set(assignments).expect_err(&format!("{assignments:?} is taken"));
        assert!(error.contains(said), "{assignments:?}: {error}");
    }
    for fine in [
        &["train.lr=1"][..],
        &["train.lr=0", "train.steps=0"],
        &["null_space.criterion=budget", "null_space.value=16"],
        &["null_space.criterion=absolute", "null_space.value=2"],
        &["gems.method=rows", "optimizer.embeddings=none", "optimizer.norms=true"],
        &["gems.gates.shares=[1, 0, 0]", "data.item_separator=', '", "train.batch_per_task.rec=4"],
    ] {
        set(fine).unwrap_or_else(|e| panic!("{fine:?}: {e}"));
    }
}

/// What keeps a tuned model near its base model: (side, step factors, pull, steps between rehearsals).
fn keeps(config: &Config) -> (NullSide, bool, f64, u64) {
    let null = &config.null_space;
    (null.side, null.step_factors, null.pull, config.rehearsal.every)
}

#[test]
fn whoever_chooses_a_null_space_by_hand_gets_that_and_nothing_else() {
    let all_on = (NullSide::None, true, 0.25, 10);
    for nothing in [&[][..], &["gems.method=lora"], &["null_space.item_rows=0.5", "null_space.tokens=99"]] {
        assert_eq!(keeps(&set(nothing).unwrap()), all_on, "{nothing:?}");
    }
    assert_eq!(keeps(&Config::default()), all_on);
    let only = |side| (side, false, 0.0, 0);
    for (given, side) in [
        (&["null_space.side=none"][..], NullSide::None),
        (&["null_space.side=input"], NullSide::Input),
        (&["null_space.value=0.9"], NullSide::Input),
        (&["null_space.random=true"], NullSide::Input),
        (&["null_space.side=output", "null_space.project=both"], NullSide::Output),
        (&["null_space.side=metric"], NullSide::Metric),
        // Where the defaults have no place.
        (&["gems.method=rows"], NullSide::None),
        (&["gems.side=published"], NullSide::Input),
    ] {
        assert_eq!(keeps(&set(given).unwrap()), only(side), "{given:?}");
    }
    // What is named beside it is as it is named; and what has no place is refused where it is named.
    let beside = set(&["null_space.side=none", "null_space.pull=0.5", "rehearsal.every=3"]).unwrap();
    assert_eq!(keeps(&beside), (NullSide::None, false, 0.5, 3));
    assert_eq!(keeps(&set(&["rehearsal.every=0"]).unwrap()), (NullSide::None, true, 0.25, 0));
    assert!(set(&["gems.method=rows", "null_space.pull=0.5"]).unwrap_err().contains("tunes none"));
    let none = set(&["null_space.gradient_tokens=0"]).unwrap_err();
    assert!(none.contains("null_space.gradient_tokens is 0") && none.contains("side = \"none\""), "{none}");
}

/// The published optimizer's, setting by setting; and a run's file of a version that knew no pull and no rehearsal.
#[test]
fn defaults_of_today_do_not_reach_presets_and_earlier_runs() {
    let published = Config::from_layers(vec![Layer::preset("published").unwrap()]).unwrap();
    let n = &published.null_space;
    assert_eq!(keeps(&published), (NullSide::Output, false, 0.0, 0));
    assert_eq!((n.project, n.criterion, n.value), (Project::Gradient, Criterion::Absolute, 0.02));
    assert_eq!((n.room, n.random, n.item_rows), (None, false, 0.0));
    let text = "[null_space]\nside = \"input\"\nproject = \"update\"\ncriterion = \"energy\"\nvalue = 0.95\n\
                random = false\nitem_rows = 0.9\ntokens = 65536\n";
    let earlier = Config::from_layers(vec![Layer::table("config.toml", text.parse().unwrap())]).unwrap();
    assert_eq!(keeps(&earlier), (NullSide::Input, false, 0.0, 0));
    // What is resolved stays as it is when it is read again.
    for config in [&published, &earlier, &set(&[]).unwrap(), &set(&["rehearsal.every=0"]).unwrap()] {
        let table = config.to_toml().parse().unwrap();
        assert_eq!(&Config::from_layers(vec![Layer::table("config.toml", table)]).unwrap(), config);
    }
}

#[test]
fn the_layer_that_is_to_blame_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    fs::write(&file, "[train]\nlr = \"fast\"\n").unwrap();
    let layers = vec![Layer::file(&file).unwrap(), Layer::assignment("gems.rank=4").unwrap()];
    let error = Config::from_layers(layers).unwrap_err().to_string();
    assert!(error.contains("run.toml: line 2: train.lr: \"fast\" instead of a number"), "{error}");
    assert!(!error.contains("--set"), "{error}");
    // The line of a misspelt key, of a value out of range, and of settings that do not go together.
    for (text, said) in [
        ("seed = 1\n\n[gems]\nrnak = 4\n", "line 4: unknown setting `gems.rnak`"),
        ("gems.rank = 4\ntrain.lr = -1.0", "line 2: train.lr"),
        ("[train]\nsteps = 5\nlr = 'x' # the last\n", "line 3: train.lr"),
        ("gems = { gates = {\n  kind = 3 } }", "line 2: gems.gates.kind"),
        ("[gesm.gates]\nkind = 'fixed'", "line 2: unknown setting `gesm.gates.kind`"),
    ] {
        fs::write(&file, text).unwrap();
        let layers = vec![Layer::file(&file).unwrap(), Layer::assignment("seed=4").unwrap()];
        let error = Config::from_layers(layers).unwrap_err().to_string();
        assert!(error.contains(&format!("run.toml: {said}")), "{text}: {error}");
    }
    fs::write(&file, "seed = 1\n[null_space]\nvalue = 1.5\n").unwrap();
    let error = Config::from_layers(vec![Layer::file(&file).unwrap()]).unwrap_err().to_string();
    assert!(error.contains("run.toml: line 3: null_space.value: 1.5 does not fit"), "{error}");
    let mut command = engine();
    command.args(["train", "--method", "gmes", "--model", "m", "--data", "d"]);
    let said = "error: --method: gems.method: there is no \"gmes\"\n  try: did you mean \"gems\"?";
    command.assert().code(2).stderr(predicate::str::contains(said));
    let mut command = engine();
    command.args(["train", "--preset", "publshed", "--model", "m", "--data", "d"]);
    command.assert().code(2).stderr(predicate::str::contains("did you mean \"published\"?"));
}

// ---- models of the Hub ------------------------------------------------------------------------

/// A cache with a model as `hf download` leaves it: files that are links to blobs.
fn cached(hub: &Path, name: &str, commit: &str) -> PathBuf {
    let folder = hub.join(format!("models--{}", name.replace('/', "--")));
    let snapshot = folder.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::create_dir_all(folder.join("blobs")).unwrap();
    for (i, entry) in fs::read_dir(golden_model("llama_tied")).unwrap().enumerate() {
        let from = entry.unwrap().path();
        fs::copy(&from, folder.join(format!("blobs/{commit}{i}"))).unwrap();
        let link = snapshot.join(from.file_name().unwrap());
        std::os::unix::fs::symlink(format!("../../blobs/{commit}{i}"), link).unwrap();
    }
    snapshot
}

#[test]
fn a_name_of_the_hub_is_found_in_the_local_cache() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let at = |pairs: &[(&str, PathBuf)]| {
        let pairs: Vec<(String, OsString)> =
            pairs.iter().map(|(k, v)| (k.to_string(), v.clone().into_os_string())).collect();
        Cache::of(move |name| {
            let set = pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
            set.or_else(|| (name == "HOME").then(|| home.into()))
        })
    };
    let name = Path::new("acme/tiny-1.5B");
    // Where huggingface_hub looks, in its order of precedence.
    let places: [(&[(&str, PathBuf)], PathBuf); 5] = [
        (&[], home.join(".cache/huggingface/hub")),
        (&[("XDG_CACHE_HOME", home.join("xdg"))], home.join("xdg/huggingface/hub")),
        (&[("HF_HOME", home.join("hf")), ("XDG_CACHE_HOME", home.join("xdg"))], home.join("hf/hub")),
        (&[("HF_HUB_CACHE", home.join("c")), ("HF_HOME", home.join("hf"))], home.join("c")),
        (&[("HF_HUB_CACHE", PathBuf::from("~/d"))], home.join("d")),
    ];
    for (set, hub) in places {
        let cache = at(set);
        assert_eq!(cache.locate(name), name, "nothing is there yet");
        let missing = cache.missing(name).unwrap().to_string();
        assert!(missing.contains("not in the local Hugging Face cache"), "{missing}");
        assert!(missing.contains(&hub.display().to_string()), "{missing}");
        assert!(missing.contains("hf download acme/tiny-1.5B"), "{missing}");
        let snapshot = cached(&hub, "acme/tiny-1.5B", "abc123");
        assert_eq!(cache.locate(name), snapshot, "the only snapshot");
        cached(&hub, "acme/tiny-1.5B", "def456");
        assert_eq!(cache.locate(name), name, "two, and none is main");
        fs::write(hub.join("models--acme--tiny-1.5B/refs/main"), "def456\n").unwrap();
        assert_eq!(cache.locate(name), snapshot.with_file_name("def456"));
        fs::remove_file(snapshot.with_file_name("def456").join("config.json")).unwrap();
        assert_eq!(cache.locate(name), name, "cut off");
        assert!(cache.missing(name).unwrap().to_string().contains("no whole snapshot"));
        fs::write(hub.join("models--acme--tiny-1.5B/refs/main"), "../../../abc").unwrap();
        assert_eq!(cache.locate(name), name, "a reference that leads out is not followed");
    }
    for path in ["", "/no/such", "./no", "a/b/c", "~/x", "..", "a--b", "a b"] {
        assert!(at(&[]).missing(Path::new(path)).is_none(), "{path:?} is no name on the Hub");
    }
    assert_eq!(at(&[]).locate(home), home);
}

#[test]
fn train_takes_a_name_and_otherwise_says_how_to_fetch_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    cached(&dir.path().join("hf/hub"), "acme/tiny", "abc123");
    let run = |model: &str| {
        let mut command = engine();
        command
            .env("HF_HOME", dir.path().join("hf"))
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE");
        command.args(["train", "--dry-run", "--set", "gems.rank=4", "--model", model, "--data"]).arg(&data);
        command.assert()
    };
    run("acme/tiny").success().stdout(predicate::str::contains("parameters"));
    run("acme/tinny").code(1).stderr(predicate::str::contains("acme/tinny: no such directory"));
    run("acme/tinny").stderr(predicate::str::contains("`hf download acme/tinny`"));
    for flags in [vec!["check", data.to_str().unwrap()], vec!["sample", "--documents", "1", "--length", "4"]]
    {
        let mut command = engine();
        command.env("HF_HUB_CACHE", dir.path().join("hf/hub")).current_dir(dir.path());
        command.arg("prepare").args(flags).args(["--model", "acme/tiny"]).assert().success();
    }
    let mut doctor = engine();
    doctor.env("HF_HUB_CACHE", dir.path().join("hf/hub")).args(["doctor", "--model", "acme/tiny"]);
    doctor.assert().stdout(predicate::str::contains("Llama"));
}
