//! `metrics.jsonl`: one JSON object a line.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Appends lines; what is written survives a crash up to its last whole line.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the log. Lines of steps after `keep` (those a resumed run does again) and a torn last line are
    /// dropped first.
    pub fn open(path: &Path, keep: u64) -> Result<Self> {
        let lines = read(path)?;
        let kept: String = lines
            .iter()
            .filter(|l| l.get("step").and_then(Value::as_u64).is_none_or(|s| s <= keep))
            .map(|l| format!("{}\n", Value::Object(l.clone())))
            .collect();
        if path.exists() {
            crate::files::write_atomically(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { file: file.map_err(|e| Error::io("open", path, e))?, path: path.to_path_buf() })
    }
    /// Appends a line.
    pub fn write(&mut self, line: &Map<String, Value>) -> Result<()> {
        writeln!(self.file, "{}", Value::Object(line.clone())).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// The whole lines of a log; none when there is no file.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("read", path, e)),
    }
}
