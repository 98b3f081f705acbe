//! Runs from other directories, and in other places.

use super::*;
use crate::bad_input::copied;

/// A command in a directory.
fn within(mut command: assert_cmd::Command, dir: &Path) -> assert_cmd::Command {
    command.current_dir(dir);
    command
}

/// A directory `home` of a model, data and a run `runs/a`, which was started there.
fn project(dir: &Path, flags: &[&str]) -> PathBuf {
    let home = dir.join("home");
    fs::create_dir(&home).unwrap();
    world(&home);
    copied("llama_tied", &home);
    let mut start = engine();
    start.current_dir(&home).args(["train", "--json", "--model", "llama_tied", "--data", "world"]);
    start.args(["--out", "runs/a"]).args(FAST).args(flags).assert().success();
    home
}

#[test]
fn a_run_works_from_anywhere_and_after_being_moved() {
    let dir = tempfile::tempdir().unwrap();
    let home = project(dir.path(), &["--steps", "4", "--set", "checkpoint.every=2"]);
    let (ranked, _) = told(&mut within(command("rank", Path::new("runs/a"), &ASKED), &home));
    let (result, _) = told(&mut within(command("evaluate", Path::new("runs/a"), &[]), &home));
    for (from, run) in [(dir.path(), "home/runs/a"), (Path::new("/"), home.join("runs/a").to_str().unwrap())]
    {
        let (again, said) = told(&mut within(command("rank", Path::new(run), &ASKED), from));
        assert!(again == ranked && said.is_empty(), "{said}");
        let (again, _) = told(&mut within(command("evaluate", Path::new(run), &[]), from));
        assert_eq!(again["result"], result["result"]);
    }
    let moved = dir.path().join("archive");
    fs::rename(home.join("runs/a"), &moved).unwrap();
    assert_eq!(told(&mut within(command("rank", Path::new("archive"), &ASKED), dir.path())).0, ranked);
    told(&mut within(resume(Path::new("../archive"), &["--steps", "6"]), &home));
    assert_eq!(metrics(&moved, "loss").len(), 6);

    let adapter = dir.path().join("adapter");
    let more = ["--format", "peft", "--rank", "1.0", "--out", "adapter"];
    told(&mut within(command("export", Path::new("archive"), &more), dir.path()));
    let config: Value =
        serde_json::from_str(&fs::read_to_string(adapter.join("adapter_config.json")).unwrap()).unwrap();
    let base = PathBuf::from(config["base_model_name_or_path"].as_str().unwrap());
    assert_eq!(base, home.join("llama_tied").canonicalize().unwrap());
}

/// A project of model, data and runs under another name: what lay outside the run is found where it was from there.
#[test]
fn a_project_moves_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let home = project(dir.path(), &["--steps", "3"]);
    let (ranked, _) = told(&mut command("rank", &home.join("runs/a"), &ASKED));
    let second = dir.path().join("elsewhere/second");
    fs::create_dir_all(second.parent().unwrap()).unwrap();
    fs::rename(&home, &second).unwrap();
    let run = second.join("runs/a");
    let (again, said) = told(&mut command("rank", &run, &ASKED));
    assert!(again == ranked && said.is_empty(), "{said}");
    told(&mut command("evaluate", &run, &[]));
    // A resume that changes settings keeps the paths of today, and the next move is from here.
    told(&mut resume(&run, &["--steps", "4"]));
    let third = dir.path().join("third");
    fs::rename(&second, &third).unwrap();
    told(&mut resume(&third.join("runs/a"), &["--steps", "5"]));
    // Another model at the old place wins, and is refused; none at either place is named.
    fs::create_dir_all(second.join("llama_tied")).unwrap();
    fs::rename(third.join("llama_tied"), dir.path().join("gone")).unwrap();
    let said = refused(&mut command("rank", &third.join("runs/a"), &ASKED));
    assert!(said.contains("llama_tied"), "{said}");
}

/// As the demo does it: a run that holds its own model and data.
#[test]
fn what_lies_in_the_run_moves_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    world(&out);
    copied("llama_tied", &out);
    let mut start = engine();
    start.current_dir(dir.path()).args(["train", "--json", "--steps", "3", "--model", "run/llama_tied"]);
    start.args(["--data", "run/world", "--out", "run"]).args(FAST).assert().success();
    let (ranked, _) = told(&mut within(command("rank", Path::new("run"), &ASKED), dir.path()));
    let kept: toml::Table = fs::read_to_string(out.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(kept["model"]["path"].as_str(), Some("llama_tied"));
    assert_eq!(kept["data"]["path"].as_str(), Some("world"));
    let moved = dir.path().join("deep/er/place");
    fs::create_dir_all(moved.parent().unwrap()).unwrap();
    fs::rename(&out, &moved).unwrap();
    let (again, said) = told(&mut command("rank", &moved, &ASKED));
    assert!(again == ranked && said.is_empty(), "{said}");
    told(&mut resume(&moved, &["--steps", "4"]));
    told(&mut command("evaluate", &moved, &[]));
}

/// Others read a run where the user's umask lets them.
#[cfg(unix)]
#[test]
fn the_umask_decides_who_reads_a_run() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("002", 0o664)] {
        let out = dir.path().join(umask);
        let trained = train("llama_tied", &data, &out, &["--steps", "2"]);
        let mut shell = assert_cmd::Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(trained.get_program());
        shell.args(trained.get_args()).assert().success();
        for file in contents(&out).keys().filter(|file| !file.is_symlink()) {
            let found = fs::metadata(file).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{} is {found:o}, not {mode:o}", file.display());
        }
    }
}
