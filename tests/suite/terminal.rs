//! What a shell, a terminal and `man` are given.

use crate::cli::{FAST, engine, golden_model, world};
use std::fs;
use std::process::Command;

/// Whether a program is here; without it its part is left out.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

fn completions(shell: &str, dir: &std::path::Path) -> std::path::PathBuf {
    let script = dir.join(format!("completions.{shell}"));
    let output = engine().args(["completions", shell]).output().unwrap();
    assert!(output.status.success());
    fs::write(&script, output.stdout).unwrap();
    script
}

/// What is typed, and what the shell is to make of its end.
const CASES: [(&str, &str); 4] = [
    ("tra", "train"),
    ("train --me", "--method"),
    ("prepare ev", "events"),
    ("config-schema --ma", "--markdown"),
];

#[test]
fn bash_and_fish_complete_commands_and_their_flags() {
    let dir = tempfile::tempdir().unwrap();
    if has("bash") {
        let script = completions("bash", dir.path());
        let ask = "source \"$1\"; COMP_WORDS=(gems-engine $2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                   function=$(complete -p gems-engine | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
                   $function gems-engine \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\"; echo \"${COMPREPLY[*]}\"";
        for (typed, wanted) in CASES {
            let output =
                Command::new("bash").args(["-c", ask, "bash"]).arg(&script).arg(typed).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), wanted, "{typed}: {output:?}");
        }
    }
    if has("fish") {
        let script = completions("fish", dir.path());
        for (typed, wanted) in CASES {
            let ask = format!("source {}; complete -C 'gems-engine {typed}'", script.display());
            let output = Command::new("fish").args(["--no-config", "-c", &ask]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.lines().any(|line| line.split('\t').next() == Some(wanted)), "{typed}: {said}");
        }
    }
}

/// Zsh completes only in a terminal: this types into one and waits for what is wanted.
const ASK_ZSH: &str = r#"
zmodload zsh/zpty
zpty -b shell zsh -f -i
zpty -w shell "PS1='> '; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D; echo rea''dy"
zpty -r shell line '*ready*'
zpty -w -n shell "gems-engine $2"$'\t'
repeat 300; do
  zpty -r -t shell part && all+=$part
  [[ $all == *$3* ]] && { print found; exit }
  sleep 0.1
done
print -r -- "$all"
"#;

#[test]
fn zsh_completes_them_too() {
    if !has("zsh") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::rename(completions("zsh", dir.path()), dir.path().join("_gems-engine")).unwrap();
    for (typed, wanted) in CASES {
        let mut zsh = Command::new("zsh");
        let output =
            zsh.args(["-f", "-c", ASK_ZSH, "zsh"]).arg(dir.path()).args([typed, wanted]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "found", "{typed}: {output:?}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man1");
    engine().arg("man").arg(&man).assert().success();
    for (page, holds) in [
        ("gems-engine", "gems\\-engine\\-train"),
        ("gems-engine-train", "match\\-step"),
        ("gems-engine-prepare-events", "columns"),
    ] {
        let text = fs::read_to_string(man.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".TH ") && text.contains(holds), "{page}: {holds}");
    }
}

#[test]
fn a_terminal_is_told_as_much_as_it_wants() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let run = |name: &str, more: &[&str]| {
        let mut command = engine();
        command.args(["train", "--steps", "1", "--set", "train.export=false"]).args(FAST).args(more);
        command.arg("--model").arg(golden_model("llama_tied")).arg("--data").arg(&data);
        command.arg("--out").arg(dir.path().join(name));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (result, said) = run("quiet", &["-q"]);
    assert!(said.is_empty() && result.contains("ndcg@10"), "{said}");
    let (_, usual) = run("usual", &[]);
    let (_, all) = run("all", &["--verbose"]);
    assert!(usual.contains("training: 1/1") && !usual.contains("saved a checkpoint"), "{usual}");
    assert!(all.contains("saved a checkpoint"), "{all}");
    let (plan, _) = run("plan", &["--dry-run"]);
    for line in ["60 training records are seen", "memory, MB", "disk, MB"] {
        assert!(plan.contains(line), "{plan}");
    }
    assert!(plan.lines().all(|line| line.chars().count() < 160) && !plan.contains('\u{1b}'), "{plan}");
    engine().args(["doctor", "-q", "-v"]).assert().code(2);
}
