//! `metrics.jsonl`: one JSON object a line, one line a step, written as the step ends.
//!
//! A run that is killed may leave half a line behind. Opening the log drops it, and a resumed run
//! first removes the lines of steps its checkpoint does not know, so that its file ends up the same
//! as that of a run that was never interrupted.

use super::Line;
use super::overview::Overview;
use crate::error::{Error, Kind, Result};
use crate::files::sync_directory;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The metrics of a run, appended line by line, and an overview of them.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    overview: Overview,
}

impl MetricsLog {
    /// Opens `path` for appending and creates it if need be. From the first line of a step after `keep` on (those that a
    /// resumed run does again), and from a torn one on, it is cut off. A run that begins (`keep` is 0) writes step 0 again
    /// too: nothing of one that was killed before its first checkpoint stays.
    ///
    /// # Errors
    /// When the file cannot be opened, or a line that a checkpoint vouches for is not a JSON object.
    pub fn open(path: &Path, keep: u64) -> Result<Self> {
        let failed = |e| Error::io("open the metrics log", path, e);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        sync_directory(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        let mut log = Self { path: path.to_path_buf(), file, overview: Overview::default() };
        log.take_up(keep)?;
        Ok(log)
    }

    /// Takes up what is there of the steps up to `keep`, and cuts off the rest.
    fn take_up(&mut self, keep: u64) -> Result<()> {
        let (mut end, mut ended, mut vouched) = (0, true, keep == 0);
        for found in lines(&self.path)? {
            let found = match found {
                // The log was flushed at step `keep`: a loss of power can have made anything of what came later.
                Err(e) if e.kind == Kind::Data && vouched => break,
                found => found?,
            };
            let step = step_of(&found.line);
            if step.is_some_and(|step| step > keep || keep == 0) {
                break;
            }
            vouched |= step == Some(keep);
            (end, ended) = (found.end, found.ended);
            self.overview.add(found.line);
        }
        let cut = || -> io::Result<()> {
            if self.file.metadata()?.len() > end {
                self.file.set_len(end)?;
            }
            if ended { Ok(()) } else { (&self.file).write_all(b"\n") }
        };
        cut().map_err(|e| Error::io("write the metrics", &self.path, e))
    }

    /// Appends a line. NaN and infinities are `null` in it: JSON has no others, and neither has [`Line`].
    ///
    /// # Errors
    /// When the line cannot be written; what was written before is intact.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let text = format!("{}\n", json!(line));
        // One write call for the whole line: whoever follows the file never sees half of it.
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io("write the metrics", &self.path, e))?;
        self.overview.add(line.clone());
        Ok(())
    }

    /// Flushes everything appended so far to the disk; called before a checkpoint is written.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write the metrics", &self.path, e))
    }

    /// That of all lines: the same as [`read_overview`] gives.
    pub fn overview(&self) -> &Overview {
        &self.overview
    }
}

fn step_of(line: &Line) -> Option<u64> {
    line.get("step").and_then(Value::as_u64)
}

/// Reads all lines of a metrics log; none when there is no file. A torn last line is left out.
///
/// # Errors
/// When the file cannot be read, or a line other than the last is not a JSON object.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    lines(path)?.map(|found| Ok(found?.line)).collect()
}

/// The overview of a metrics log; an empty one when there is no file.
///
/// # Errors
/// As [`read`].
pub fn read_overview(path: &Path) -> Result<Overview> {
    let mut overview = Overview::default();
    for found in lines(path)? {
        overview.add(found?.line);
    }
    Ok(overview)
}

/// A whole line of a log.
struct Found {
    line: Line,
    /// Where it ends in the file, in bytes.
    end: u64,
    /// Whether a line break ends it.
    ended: bool,
}

/// The lines of a log one by one: a long run's are much larger in memory than in the file. A last one that is not a JSON
/// object is torn and left out; any other is an error.
fn lines(path: &Path) -> Result<Lines<'_>> {
    let reader = match File::open(path) {
        Ok(file) => Some(BufReader::new(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io("read the metrics", path, e)),
    };
    Ok(Lines { path, reader, row: Vec::new(), end: 0, number: 0 })
}

struct Lines<'a> {
    path: &'a Path,
    /// None at the end.
    reader: Option<BufReader<File>>,
    row: Vec<u8>,
    /// Bytes and lines that were read.
    end: u64,
    number: u64,
}

impl Lines<'_> {
    /// Reads the next row that is not empty; whether there is one.
    fn advance(&mut self) -> Result<bool> {
        let Some(reader) = &mut self.reader else { return Ok(false) };
        loop {
            self.row.clear();
            let read = reader
                .read_until(b'\n', &mut self.row)
                .map_err(|e| Error::io("read the metrics", self.path, e))?;
            self.end += read as u64;
            self.number += 1;
            if read == 0 || !self.row.trim_ascii().is_empty() {
                return Ok(read > 0);
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<Found>> {
        if !self.advance()? {
            return Ok(None);
        }
        let (end, ended) = (self.end, self.row.ends_with(b"\n"));
        let error = match serde_json::from_slice(&self.row) {
            Ok(line) => return Ok(Some(Found { line, end, ended })),
            Err(e) => Error::data(format!("not a JSON object: {e}"))
                .at(format!("{}, line {}", self.path.display(), self.number))
                .remedy("delete the line; only the run's curves lose a point"),
        };
        // Only the last one may be torn.
        if self.advance()? { Err(error) } else { Ok(None) }
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_line();
        if !matches!(next, Ok(Some(_))) {
            self.reader = None;
        }
        next.transpose()
    }
}
