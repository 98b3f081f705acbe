//! The documents that say what can be checked: the tutorial's commands run, all others are commands that there are, with
//! settings that there are; the site has every page.

use crate::cli::{engine, golden_model};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

#[test]
fn the_tutorial_runs_as_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_model("llama_tied");
    let scripts: Vec<String> = (document("tutorial.md").split("```sh\n").skip(1))
        .map(|rest| rest.split("```").next().unwrap().replace("\\\n", " "))
        .collect();
    let commands: Vec<&str> =
        scripts.iter().flat_map(|s| s.lines()).filter(|l| !l.trim().is_empty()).collect();
    assert!(commands.len() >= 11, "{}", commands.len());
    for command in commands {
        let mut words = command.split_whitespace();
        assert_eq!(words.next(), Some("gems-engine"), "{command}");
        if command.contains("requests.jsonl") {
            let items = fs::read_to_string(dir.path().join("data/items.jsonl")).unwrap();
            let item: serde_json::Value = serde_json::from_str(items.lines().next().unwrap()).unwrap();
            let request = serde_json::json!({"history": [item["item"]], "query": "red", "top": 2});
            fs::write(dir.path().join("requests.jsonl"), format!("{request}\n")).unwrap();
        }
        let words = words.map(|word| if word == "MODEL" { model.to_str().unwrap() } else { word });
        let output = engine().current_dir(dir.path()).args(words).output().unwrap();
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    for file in ["runs/first/report.html", "comparison.html", "adapter/adapter_config.json"] {
        assert!(dir.path().join(file).is_file(), "{file}");
    }
}

/// The lines of a document's shell blocks, continued ones in one piece.
fn shell_lines(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks
        .flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_string).collect::<Vec<_>>())
        .collect()
}

/// What follows the program's name in a line of shell, up to where another command or a redirection begins.
fn arguments(line: &str) -> Option<Vec<String>> {
    let words = shlex::split(line).unwrap_or_else(|| panic!("no line of shell: {line}"));
    if words.first().is_some_and(|word| word == "docker") {
        return None; // an image of that name
    }
    let by_cargo = words.starts_with(&["cargo", "run"].map(String::from));
    let is_program = |word: &String| word == "gems-engine" || word.ends_with("/gems-engine");
    let at = match by_cargo {
        true => words.iter().position(|word| word == "--")?,
        false => words.iter().position(is_program)?,
    };
    let ends = |word: &String| ["|", "||", "&&", "&", ";"].contains(&word.as_str()) || word.contains('>');
    // Three dots stand for what the lines before say.
    let rest = words[at + 1..].iter().take_while(|word| !ends(word)).filter(|word| *word != "...");
    Some(rest.cloned().collect())
}

#[test]
fn every_command_is_one_that_there_is() {
    let settings = document("settings.md");
    let mut pages = vec![root().join("README.md")];
    pages.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let (mut checked, mut wrong) = (0, Vec::new());
    for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        for line in shell_lines(&fs::read_to_string(page).unwrap()) {
            let Some(words) = arguments(&line) else { continue };
            let mut say = |what: String| wrong.push(format!("{}: {line}\n{what}", page.display()));
            let all = std::iter::once("gems-engine").chain(words.iter().map(String::as_str));
            match gems_engine::cli::command().try_get_matches_from(all) {
                Err(error) if error.exit_code() != 0 => say(error.to_string()),
                _ => checked += 1,
            }
            let values = words.windows(2).filter(|pair| pair[0] == "--set").map(|pair| &pair[1]);
            for setting in values.filter_map(|value| value.split('=').next()) {
                let is_known = settings.contains(&format!("| `{setting}` |"));
                if !is_known && !setting.starts_with("data.templates.") {
                    say(format!("there is no setting {setting}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 80, "{checked}");
}

#[test]
fn the_settings_are_those_there_are() {
    let output = engine().args(["config-schema", "--markdown"]).output().unwrap();
    let now = String::from_utf8(output.stdout).unwrap();
    assert!(
        now == document("settings.md"),
        "write it again: gems-engine config-schema --markdown > docs/settings.md"
    );
    for row in ["| `seed` | `0` |", "| `gems.rank` |", "| `train.best_metric` |", "## null_space"] {
        assert!(now.contains(row), "{row}");
    }
}

#[test]
fn examples_are_settings_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::cli::world(dir.path());
    let mut found = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        // The others are Python's, which its own tests run.
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let mut command = engine();
        command.args([
            "train",
            "--dry-run",
            "--set",
            "evaluate.candidates=full",
            "--set",
            "gems.rank=4",
            "--set",
            "gems.task_rank=2",
        ]);
        command
            .arg("--model")
            .arg(golden_model("llama_tied"))
            .arg("--data")
            .arg(&data)
            .arg("--config")
            .arg(&path);
        command.arg("--out").arg(dir.path().join("none")).assert().success();
        found += 1;
    }
    assert_eq!(found, 3);
}

#[test]
fn the_site_has_every_page() {
    let summary = document("SUMMARY.md");
    let listed: Vec<&str> = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    let once: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(once.len(), listed.len(), "a page is listed twice");
    let there: BTreeSet<String> = (fs::read_dir(root().join("docs")).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == "md") && name != "SUMMARY.md")
        .collect();
    assert_eq!(once.into_iter().map(str::to_string).collect::<BTreeSet<_>>(), there);
}
