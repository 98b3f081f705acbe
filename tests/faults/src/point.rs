//! Names for the places in a command at which a fault can strike: "inside a checkpoint's rename".

use crate::subject::Subject;
use crate::trace::Trace;
use std::path::Path;

/// What the n-th change of a command belongs to.
pub fn of_call(subject: Subject, trace: &Trace, n: usize) -> &'static str {
    let Some((act, path, _)) = n.checked_sub(1).and_then(|i| trace.changes.get(i)) else {
        return "the start";
    };
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match subject.is_run() {
        true => in_run(act, &parts, written(trace, n - 1)),
        false => elsewhere(subject, act, &parts),
    }
}

/// What a command computes between the n-th change and the next one.
pub fn after_call(subject: Subject, trace: &Trace, n: usize) -> &'static str {
    let ahead = trace.changes.get(n).map(|(_, path, _)| path.as_path());
    let coming = ahead.unwrap_or(Path::new(""));
    if !subject.is_run() {
        return match subject {
            Subject::Prepare | Subject::Overwrite | Subject::OverwriteInTurn => match n {
                0 | 1 => "prepare: before anything is written",
                2 => "prepare: the log is read and sorted",
                _ => "prepare: rows are built and written",
            },
            Subject::Merged | Subject::Peft => "an export is computed",
            Subject::Basis => "a basis is computed",
            _ => "it measures or ranks",
        };
    }
    let lines = written(trace, n);
    let first = usize::from(subject == Subject::Train);
    let all = written(trace, trace.changes.len());
    if coming.starts_with("out/checkpoints") {
        return "a checkpoint: it is put together";
    }
    // Steps are numbered on by a run that is resumed.
    let step = lines + 1 - first.min(lines + 1) + if subject == Subject::Resume { 3 } else { 0 };
    match (lines, subject) {
        _ if lines == all => "after the last step: measurements, export",
        (0, _) if first == 1 => "before the first step: basis, measurements",
        (_, Subject::Lora | Subject::Full | Subject::Simt) => "a step",
        _ if step.is_multiple_of(3) => "a step with fold and refresh",
        (_, Subject::Train | Subject::Resume) if step.is_multiple_of(2) => "a step with validation",
        _ if step % 3 == 2 => "a step in an open window",
        _ => "a step",
    }
}

/// Lines of steps among the first n changes.
fn written(trace: &Trace, n: usize) -> usize {
    let line =
        |(act, path, _): &&(String, std::path::PathBuf, _)| act == "write" && path.ends_with("metrics.jsonl");
    trace.changes.iter().take(n).filter(line).count()
}

fn in_run(act: &str, parts: &[&str], lines: usize) -> &'static str {
    match parts {
        ["out", "checkpoints", aside] if aside.starts_with(".writing-") => match act {
            "rename" | "exchange" => "a checkpoint: it takes its name",
            "sync" => "a checkpoint: fsync",
            _ => "a checkpoint: its files are written",
        },
        ["out", "checkpoints", aside, ..] if aside.starts_with(".writing-") => match act {
            "sync" => "a checkpoint: fsync",
            "rename" => "a checkpoint: a file in it takes its name",
            _ => "a checkpoint: its files are written",
        },
        ["out", "checkpoints", ..] if act == "remove" => "older checkpoints are deleted",
        ["out", "checkpoints", ..] => "a checkpoint: its name is flushed",
        ["out", "metrics.jsonl"] => "the line of a step",
        ["out", "log.txt" | "tensorboard", ..] => "the log, TensorBoard",
        ["out", aside, _, ..] if aside.starts_with(".exporting-") || aside.starts_with(".writing-") => {
            if parts.contains(&"link") {
                "the link to the best checkpoint"
            } else {
                "the export of a run is written"
            }
        }
        ["out", aside] if act == "rename" && aside.starts_with(".exporting-") => {
            "the export of a run takes its name"
        }
        ["out", ..] if lines == 0 => "a run is set up",
        _ => "other files of a run",
    }
}

fn elsewhere(subject: Subject, act: &str, parts: &[&str]) -> &'static str {
    let prepares = matches!(subject, Subject::Prepare | Subject::Overwrite | Subject::OverwriteInTurn);
    let exports = matches!(subject, Subject::Merged | Subject::Peft);
    match (parts, act) {
        ([aside] | [aside, "old"], "rename" | "exchange") if prepares && !aside.is_empty() => {
            "prepare: the directory takes its name"
        }
        (["out"], "rename") if prepares => "prepare: the directory takes its name",
        ([], _) if prepares => "prepare: names are flushed",
        (_, "sync") if prepares => "prepare: fsync",
        (_, "remove") if prepares => "prepare: the old one or the spool is removed",
        _ if prepares => "prepare: files are written",
        ([aside], "rename") if exports && aside.starts_with(".exporting-") => "an export takes its name",
        (_, "sync") if exports => "an export: fsync",
        _ if exports => "an export is written",
        _ if subject == Subject::Basis => "a basis is written",
        _ => "results are written",
    }
}
