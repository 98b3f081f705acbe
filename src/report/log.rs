//! `metrics.jsonl`: one JSON object a line, one line a step, written as the step ends.
//!
//! A run that is killed may leave half a line behind. Opening the log drops it, and a resumed run
//! first removes the lines of steps its checkpoint does not know, so that its file ends up the same
//! as that of a run that was never interrupted.

use super::Line;
use crate::error::{Error, Kind, Result};
use crate::files::{sync_directory, write_atomically};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
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
    /// When the file cannot be opened, or a line that a checkpoint vouches for is not a JSON object.
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
        let mut found = Lines::up_to(&self.path, step)?;
        let beyond = |line: &Line| step_of(line).is_some_and(|s| s > step || step == 0);
        let before = found.lines.len();
        found.lines.retain(|line| !beyond(line));
        if found.lines.len() < before || found.torn {
            found.write(&self.path)?;
            self.file = append_to(&self.path)?;
        }
        Ok(())
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
    Ok(Lines::read(path)?.lines)
}

/// The same, a line at a time: a long run's log is much larger in memory than in its file.
///
/// # Errors
/// As [`read`].
pub fn each_line(path: &Path, each: impl FnMut(Line)) -> Result<()> {
    go_through(path, each).map(drop)
}

/// The lines of a log that a page shows: of a long run evenly chosen ones, a few thousand. Those of a new best are among them.
///
/// # Errors
/// As [`read`].
pub fn read_for_page(path: &Path) -> Result<Vec<Line>> {
    let mut thinned = Thinned::default();
    go_through(path, |line| thinned.add(line))?;
    Ok(thinned.lines.into_iter().map(|(_, line)| line).collect())
}

/// Lines of a kind that a page shows at least, once there are so many.
const SHOWN: usize = 1000;

/// Lines of three kinds, each thinned by itself: rare ones would be lost among the others.
#[derive(Default)]
struct Thinned {
    lines: Vec<(usize, Line)>,
    kinds: [Kept; 3],
}

/// How many lines of a kind came, how many are kept, and that it is every so many-th: two to the power of `halved`.
#[derive(Default, Clone, Copy)]
struct Kept {
    came: usize,
    kept: usize,
    halved: u32,
}

impl Thinned {
    fn add(&mut self, line: Line) {
        if line.get("best") == Some(&Value::Bool(true)) {
            return self.lines.push((usize::MAX, line));
        }
        let validated = line.keys().any(|key| key.starts_with("valid."));
        let kind = if validated { 2 } else { usize::from(line.contains_key("room")) };
        let of = &mut self.kinds[kind];
        of.came += 1;
        if !(of.came - 1).is_multiple_of(1 << of.halved) {
            return;
        }
        of.kept += 1;
        self.lines.push((kind, line));
        if of.kept == 2 * SHOWN {
            of.halved += 1;
            of.kept = SHOWN;
            let mut place = 0;
            self.lines.retain(|(of, _)| {
                place += usize::from(*of == kind);
                *of != kind || !place.is_multiple_of(2)
            });
        }
    }
}

/// Gives the whole lines of a log to `each`; a missing file has none. Whether its last one is torn: not a JSON object, or
/// without its end.
fn go_through(path: &Path, mut each: impl FnMut(Line)) -> Result<bool> {
    let failed = |e| Error::io("read the metrics", path, e);
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed(e)),
    };
    let (mut row, mut number, mut torn, mut broken) = (Vec::new(), 0, false, None);
    while reader.read_until(b'\n', &mut row).map_err(failed)? > 0 {
        number += 1;
        torn = !row.ends_with(b"\n");
        if !row.trim_ascii().is_empty() {
            // Only the last one may be.
            if let Some(error) = broken.take() {
                return Err(error);
            }
            match serde_json::from_slice(&row) {
                Ok(line) => each(line),
                Err(e) => {
                    let error = Error::data(format!("not a JSON object: {e}"))
                        .at(format!("{}, line {number}", path.display()))
                        .remedy("delete the line; only the run's curves lose a point");
                    broken = Some(error);
                }
            }
        }
        row.clear();
    }
    Ok(torn || broken.is_some())
}

/// The whole lines of a log, and whether its last one is torn.
struct Lines {
    lines: Vec<Line>,
    torn: bool,
}

impl Lines {
    fn read(path: &Path) -> Result<Self> {
        let mut lines = Vec::new();
        let torn = go_through(path, |line| lines.push(line))?;
        Ok(Self { lines, torn })
    }

    /// At least those up to `step`, at which the log was flushed: a loss of power can have made anything of the later ones.
    fn up_to(path: &Path, step: u64) -> Result<Self> {
        let mut lines = Vec::new();
        match go_through(path, |line| lines.push(line)) {
            Ok(torn) => Ok(Self { lines, torn }),
            Err(e)
                if e.kind == Kind::Data && (step == 0 || lines.iter().any(|l| step_of(l) >= Some(step))) =>
            {
                Ok(Self { lines, torn: true })
            }
            Err(e) => Err(e),
        }
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
