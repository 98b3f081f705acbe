//! `log.txt`: what a run told its user, with the time since it was opened; a resumed run appends to it.

use super::talk::{Talk, talk, tell};
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells the user on standard error, unless quiet, and keeps what was told.
pub struct Journal {
    /// Nothing is kept without one.
    file: Option<File>,
    opened: Instant,
    quiet: bool,
}

impl Journal {
    /// Opens `path` for appending. `command` is the first thing noted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(path: &Path, command: &str, quiet: bool) -> Result<Self> {
        let failed = |e| Error::io("write the log", path, e);
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        writeln!(file, "# {command} (gems-engine {}, Unix time {now})", env!("CARGO_PKG_VERSION"))
            .map_err(failed)?;
        Ok(Self { file: Some(file), opened: Instant::now(), quiet })
    }

    /// One that tells and keeps nothing: another process does.
    pub fn silent() -> Self {
        Self { file: None, opened: Instant::now(), quiet: true }
    }

    /// Tells and keeps.
    pub fn say(&self, text: &str) {
        if !self.quiet && talk() != Talk::Errors {
            tell(text);
        }
        self.note(text);
    }

    /// Keeps, and tells only who wants to hear everything: it was shown in another way.
    pub fn keep(&self, text: &str) {
        if !self.quiet && talk() == Talk::All {
            tell(text);
        }
        self.note(text);
    }

    /// A log that cannot be written is no reason to stop the work. A line is one write: threads share the journal.
    fn note(&self, text: &str) {
        if let Some(mut file) = self.file.as_ref() {
            let line = format!("{:9.1} s  {text}\n", self.opened.elapsed().as_secs_f64());
            let _ = file.write_all(line.as_bytes());
        }
    }
}
