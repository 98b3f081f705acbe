//! `history.jsonl`: what was done to a run, a line an event. Lines are only ever added.

use super::settings::Change;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::report::{Line, read};
use crate::train::Ending;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const FILE: &str = "history.jsonl";

/// The history of a run that begins.
pub(super) fn begin(run: &Path) -> Result<()> {
    write_atomically(&run.join(FILE), line(json!({"event": "started", "directory": run})).as_bytes())
}

/// Notes that a run goes on after `step`, with other settings by their hash if there are `changes`.
pub(super) fn resumed(
    run: &Path,
    step: u64,
    changes: Option<(&[Change], &str)>,
    notes: &[String],
) -> Result<()> {
    let mut event = json!({"event": "resumed", "step": step});
    if let Some((changes, settings)) = changes {
        let of = |c: &Change| (c.key.clone(), json!([c.from, c.to]));
        event["changes"] = Value::Object(changes.iter().map(of).collect());
        event["settings"] = json!(settings);
        event["directory"] = json!(run);
    }
    if !notes.is_empty() {
        event["notes"] = json!(notes);
    }
    append(run, event)
}

/// How and where a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// All steps done, or stopped early.
    pub ending: Ending,
    /// The last step.
    pub step: u64,
}

impl End {
    /// Notes it.
    ///
    /// # Errors
    /// The file system.
    pub fn note(&self, run: &Path) -> Result<()> {
        let (event, how) = match self.ending {
            Ending::Finished => ("ended", "all steps"),
            Ending::Early => ("ended", "early"),
            Ending::Interrupted => return append(run, json!({"event": "interrupted", "step": self.step})),
        };
        append(run, json!({"event": event, "step": self.step, "how": how}))
    }
}

/// The end of a run, if nothing happened to it since.
///
/// # Errors
/// A history that cannot be read.
pub fn end(run: &Path) -> Result<Option<End>> {
    let all = events(run)?;
    let Some(last) = all.last().filter(|e| e.get("event") == Some(&json!("ended"))) else { return Ok(None) };
    let early = last.get("how") == Some(&json!("early"));
    let ending = if early { Ending::Early } else { Ending::Finished };
    Ok(last.get("step").and_then(Value::as_u64).map(|step| End { ending, step }))
}

/// The hash of the settings that the newest resumption with others has put in force.
pub(super) fn settings(run: &Path) -> Result<Option<String>> {
    newest(run, "settings")
}

/// Where the run was when its paths were written.
pub(super) fn directory(run: &Path) -> Result<Option<PathBuf>> {
    Ok(newest(run, "directory")?.map(PathBuf::from))
}

fn newest(run: &Path, field: &str) -> Result<Option<String>> {
    let all = events(run)?;
    Ok(all.iter().rev().find_map(|event| event.get(field)?.as_str().map(String::from)))
}

/// All events, oldest first.
///
/// # Errors
/// A file that cannot be read.
pub fn events(run: &Path) -> Result<Vec<Line>> {
    read(&run.join(FILE))
}

/// Adds an event, with time and version.
///
/// # Errors
/// The file system; the old history is then still whole.
pub fn append(run: &Path, event: Value) -> Result<()> {
    let path = run.join(FILE);
    let mut text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    text += &line(event);
    write_atomically(&path, text.as_bytes())
}

fn line(event: Value) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut all = Map::from_iter([
        ("unix_time".to_string(), json!(seconds)),
        ("version".to_string(), json!(env!("CARGO_PKG_VERSION"))),
    ]);
    all.extend(event.as_object().cloned().unwrap_or_default());
    Value::Object(all).to_string() + "\n"
}
