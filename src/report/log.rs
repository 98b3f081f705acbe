//! `metrics.jsonl`: one JSON object a line, one line a step, written as the step ends.
//!
//! A run that is killed may leave half a line behind. Opening the log drops it, and a resumed run
//! first removes the lines of steps its checkpoint does not know, so that its file ends up the same
//! as that of a run that was never interrupted.

use super::Line;
use crate::error::{Error, Result};
use crate::files::{sync_directory, write_atomically};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The metrics of a run, appended line by line.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens `path` for appending and creates it if need be. Lines of steps after `keep` (those that a
    /// resumed run does again) and a torn last line are dropped. A run that begins (`keep` is 0) writes step 0 again
    /// too: nothing of one that was killed before its first checkpoint stays.
    ///
    /// # Errors
    /// When the file cannot be opened, or a line other than the last is not a JSON object.
    pub fn open(path: &Path, keep: u64) -> Result<Self> {
        let mut log = Self { path: path.to_path_buf(), file: append_to(path)? };
        sync_directory(path.parent().unwrap_or(Path::new(".")))
            .map_err(|e| Error::io("open the metrics log", path, e))?;
        log.truncate_after(keep)?;
        Ok(log)
    }

    /// Appends a line. NaN and infinities are `null` in it: JSON has no others, and neither has [`Line`].
    ///
    /// # Errors
    /// When the line cannot be written; what was written before is intact.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        // One write call for the whole line: whoever follows the file never sees half of it.
        self.file.write_all(&encode(line)).map_err(|e| Error::io("write the metrics", &self.path, e))
    }

    /// Flushes everything appended so far to the disk; called before a checkpoint is written.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write the metrics", &self.path, e))
    }

    /// Removes every line of a step after `step`; of step 0 too, where that is `step`.
    ///
    /// # Errors
    /// When the file cannot be read or rewritten; the old one is then still whole.
    pub fn truncate_after(&mut self, step: u64) -> Result<()> {
        let mut found = Lines::read(&self.path)?;
        let beyond =
            |line: &Line| line.get("step").and_then(Value::as_u64).is_some_and(|s| s > step || step == 0);
        let before = found.lines.len();
        found.lines.retain(|line| !beyond(line));
        if found.lines.len() < before || found.torn {
            found.write(&self.path)?;
            self.file = append_to(&self.path)?;
        }
        Ok(())
    }
}

/// Reads all lines of a metrics log; none when there is no file. A torn last line is left out.
///
/// # Errors
/// When the file cannot be read, or a line other than the last is not a JSON object.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    Ok(Lines::read(path)?.lines)
}

/// The whole lines of a log, and whether its last one is torn: not a JSON object, or without its end.
struct Lines {
    lines: Vec<Line>,
    torn: bool,
}

impl Lines {
    /// Reads `path`; a missing file has no lines.
    fn read(path: &Path) -> Result<Self> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io("read the metrics", path, e)),
        };
        let rows: Vec<(usize, &[u8])> = bytes
            .split(|&byte| byte == b'\n')
            .enumerate()
            .filter(|(_, row)| !row.trim_ascii().is_empty())
            .collect();
        let last = rows.last().map(|(index, _)| *index);
        let mut found = Self { lines: Vec::new(), torn: !bytes.is_empty() && !bytes.ends_with(b"\n") };
        for (index, row) in rows {
            match serde_json::from_slice(row) {
                Ok(line) => found.lines.push(line),
                Err(_) if Some(index) == last => found.torn = true,
                Err(e) => {
                    return Err(Error::data(format!("not a JSON object: {e}"))
                        .at(format!("{}, line {}", path.display(), index + 1))
                        .remedy("delete the line; only the run's curves lose a point"));
                }
            }
        }
        Ok(found)
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text: Vec<u8> = self.lines.iter().flat_map(encode).collect();
        write_atomically(path, &text)
    }
}

fn encode(line: &Line) -> Vec<u8> {
    let mut text = Value::Object(line.clone()).to_string().into_bytes();
    text.push(b'\n');
    text
}

fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| Error::io("open the metrics log", path, e))
}
