//! Checkpoints on demand, of other versions, and where there is no room.

use super::*;
use gems_engine::files::check_room;
use gems_engine::train::checkpoint;
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ENDLESS: [&str; 8] = [
    "--steps",
    "1000000",
    "--set",
    "train.evaluate_before=false",
    "--set",
    "train.validate_every=0",
    "--set",
    "checkpoint.every=0",
];

/// Waits for something that a run is about to do.
fn wait_until(what: &str, is: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(300);
    while !is() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[cfg(unix)]
fn a_signal_and_a_file_ask_for_a_checkpoint_now_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("run"));
    let given = train("llama_tied", &data, &out, &ENDLESS);
    let mut child = Command::new(given.get_program())
        .args(given.get_args())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let signal = |name: &str, id: u32| {
        assert!(Command::new("kill").args([name, &id.to_string()]).status().unwrap().success());
    };
    let saved = || checkpoint::list(&out.join("checkpoints")).unwrap().len();
    let steps = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count();
    wait_until("the first step", || steps() > 0);
    assert_eq!(saved(), 0);
    signal("-USR2", child.id());
    wait_until("a checkpoint by SIGUSR2", || saved() == 1);
    fs::write(out.join("save"), "").unwrap();
    wait_until("a checkpoint by the file `save`", || saved() == 2);
    assert!(!out.join("save").exists());
    let now = steps();
    wait_until("further steps", || steps() > now);
    signal("-USR1", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    for (_, path) in checkpoint::list(&out.join("checkpoints")).unwrap() {
        checkpoint::load(&path).unwrap();
    }
}

/// The fixture was written by the version before checkpoints said more than that, on another day's machine.
#[test]
fn a_run_of_format_1_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("old"));
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints/format-1");
    for (path, bytes) in contents(&kept) {
        let to = out.join(path.strip_prefix(&kept).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
    let read = checkpoint::load(&out.join("checkpoints/step-00000002")).unwrap();
    assert_eq!((read.step, read.state["tuner"]["step"].as_u64()), (2, Some(2)));
    let bytes = fs::read(kept.join("checkpoints/step-00000002/weights.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, view) in stored.tensors() {
        let tensor = read.tensors.iter().find(|t| t.name == name).unwrap();
        assert_eq!(bytemuck::cast_slice::<f32, u8>(&tensor.values), view.data(), "{name}");
    }
    let (model, data) = (crate::cli::golden_model("llama_tied"), data.display().to_string());
    let paths = [format!("model.path={}", model.display()), format!("data.path={data}")];
    told(&mut resume(&out, &["--set", &paths[0], "--set", &paths[1]]));
    let log = fs::read_to_string(out.join("log.txt")).unwrap();
    assert!(log.contains("going on after step 2"), "{log}");
    let steps: Vec<_> =
        checkpoint::list(&out.join("checkpoints")).unwrap().into_iter().map(|c| c.0).collect();
    assert!(steps.contains(&3), "{steps:?}");
}

#[test]
fn a_checkpoint_of_a_newer_version_is_refused_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) =
        trained(dir.path(), "4", &["--set", "checkpoint.every=2", "--set", "train.validate_every=0"]);
    let state = out.join("checkpoints/step-00000004/state.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    manifest["format"] = json!(2);
    // And with things that nobody knows yet.
    manifest["files"] = json!([{"name": "weights"}]);
    fs::write(&state, manifest.to_string()).unwrap();
    let before = contents(&out);
    let said = refused(&mut resume(&out, &["--steps", "6"]));
    assert!(said.contains("written by a newer version: its format is 2, this reads 1"), "{said}");
    assert!(contents(&out) == before, "an older one was not gone on from, and nothing was deleted");
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    check_room(dir.path(), 1 << 10).unwrap();
    let error = check_room(dir.path(), u64::MAX).unwrap_err().to_string();
    assert!(
        error.contains("no room: ") && error.contains("MiB are free") && error.contains("--resume"),
        "{error}"
    );
}

#[test]
fn what_a_killed_process_left_aside_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) = trained(dir.path(), "2", &["--set", "train.validate_every=0"]);
    for left in [
        ".writing-a1b2",
        "checkpoints/.writing-c3d4/weights.safetensors",
        ".exporting-e5f6/README.md",
        ".tmpaB3dE6",
    ] {
        fs::create_dir_all(out.join(left).parent().unwrap()).unwrap();
        fs::write(out.join(left), "half").unwrap();
    }
    fs::write(out.join(".mine"), "kept").unwrap();
    told(&mut resume(&out, &["--steps", "3"]));
    let hidden = |path: &&PathBuf| {
        let below = path.strip_prefix(&out).unwrap().to_string_lossy();
        [".writing-", ".exporting-", ".tmpaB3dE6"].iter().any(|left| below.contains(left))
    };
    let all = contents(&out);
    assert_eq!(all.keys().find(hidden), None);
    assert!(all.contains_key(&out.join(".mine")));
}

/// What is given to others tells nothing of this machine. An adapter has to say where its base model is.
#[test]
fn what_is_shared_names_no_path_of_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (_, out) = trained(dir.path(), "2", &[]);
    for format in ["merged", "peft"] {
        let to = dir.path().join(format);
        let mut export = command("export", &out, &["--format", format, "--out", to.to_str().unwrap()]);
        export.assert().success();
    }
    let places = [dir.path().display().to_string(), env!("CARGO_MANIFEST_DIR").to_string()];
    let shared = ["run/model", "merged", "peft"].map(|name| contents(&dir.path().join(name)));
    let report = BTreeMap::from([(out.join("report.html"), fs::read(out.join("report.html")).unwrap())]);
    for (path, bytes) in shared.iter().flatten().chain(&report) {
        let text = String::from_utf8_lossy(bytes);
        let found = places.iter().find(|place| text.contains(place.as_str()));
        let needed = path.ends_with("adapter_config.json");
        assert!(found.is_none() || needed, "{} names {}", path.display(), found.unwrap());
    }
}

#[test]
#[cfg(unix)]
fn files_have_the_permissions_that_the_umask_leaves() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("run"));
    let given = train("llama_tied", &data, &out, &["--steps", "2"]);
    let quoted: Vec<String> = std::iter::once(given.get_program())
        .chain(given.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let script = format!("umask 027; exec {}", quoted.join(" "));
    let done = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for path in contents(&out).keys() {
        let mode = fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
        assert!(path.is_symlink() || mode == 0o640, "{}: {mode:o}", path.display());
    }
}
