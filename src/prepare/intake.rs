//! What goes in: rows counted, bad ones by reason, progress and interruption.

use crate::data::fault::Fault;
use crate::error::{Error, Kind, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Is told how far the work is, and tells when to stop.
pub struct Watch<'a> {
    /// Told (stage, done, in all); in all is 0 where it is unknown.
    pub tick: &'a mut dyn FnMut(&'static str, u64, u64),
    /// Set when the user wants to stop.
    pub interrupted: &'a AtomicBool,
}

impl Watch<'_> {
    /// Says how far `stage` is.
    ///
    /// # Errors
    /// The user wants to stop.
    pub fn at(&mut self, stage: &'static str, done: u64, total: u64) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Interrupted, "stopped; nothing was written")
                .remedy("run the same command again"));
        }
        (self.tick)(stage, done, total);
        Ok(())
    }
}

/// Rows that were left out for one reason.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Reason {
    /// How many.
    pub rows: u64,
    /// The first one's message.
    pub first: String,
}

/// Counts of what was read.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Rows read, bad ones included.
    pub rows: u64,
    /// Rows that were not as they must be, by reason.
    pub bad: BTreeMap<String, Reason>,
    /// What was left out on purpose, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Files, by what they were taken for.
    pub files: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds the counts of another reading.
    pub(super) fn add(&mut self, other: Counts) {
        self.rows += other.rows;
        for (reason, more) in other.bad {
            let all = self.bad.entry(reason).or_default();
            all.rows += more.rows;
            if all.first.is_empty() {
                all.first = more.first;
            }
        }
        other.dropped.into_iter().for_each(|(reason, n)| *self.dropped.entry(reason).or_default() += n);
        other.files.into_iter().for_each(|(what, n)| *self.files.entry(what).or_default() += n);
    }
    /// Counts `n` more things left out on purpose.
    pub(super) fn drop(&mut self, reason: &'static str, n: u64) {
        if n > 0 {
            *self.dropped.entry(reason.into()).or_default() += n;
        }
    }
}

/// Reads of all files of a source, with a common allowance of bad rows.
pub(super) struct Intake<'a, 'w> {
    pub counts: Counts,
    /// What to know about the input.
    pub notes: Vec<String>,
    /// Rows, and bad ones, before the file that is read.
    before: (u64, u64),
    allowed: usize,
    watch: &'a mut Watch<'w>,
    bytes: Arc<AtomicU64>,
    total: u64,
}

/// Rows between two looks at the clock.
const STRIDE: u64 = 4096;

impl<'a, 'w> Intake<'a, 'w> {
    pub fn new(allowed: usize, watch: &'a mut Watch<'w>) -> Self {
        let (counts, notes) = (Counts::default(), Vec::new());
        Self { counts, notes, before: (0, 0), allowed, watch, bytes: Arc::default(), total: 0 }
    }
    /// Says that `path` will be read, for the progress.
    pub fn expect(&mut self, path: &Path) {
        self.total += std::fs::metadata(path).map_or(0, |m| m.len());
    }
    /// `path` as a stream whose bytes count as progress.
    pub fn stream(&self, path: &Path) -> Result<impl Read + use<>> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Counted { file, bytes: Arc::clone(&self.bytes) })
    }
    /// Counts bytes that were read by other means.
    pub fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    /// Counts one row, and what came of it.
    pub fn row(&mut self, outcome: std::result::Result<(), Fault>) -> Result<()> {
        self.counts.rows += 1;
        if self.counts.rows.is_multiple_of(STRIDE) {
            self.watch.at("reading", self.bytes.load(Ordering::Relaxed), self.total)?;
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(fault) => self.bad(fault),
        }
    }
    /// Says that a file begins.
    pub fn begin(&mut self) {
        self.before = (self.counts.rows, self.all_bad());
    }
    /// Says that a file ends.
    ///
    /// # Errors
    /// Not one of its rows was as it must be: that is no matter of a few bad rows.
    pub fn end(&self, path: &Path) -> Result<()> {
        let (rows, bad) = (self.counts.rows - self.before.0, self.all_bad() - self.before.1);
        if rows == 0 || bad < rows || rows == 1 {
            return Ok(());
        }
        let first =
            self.counts.bad.values().map(|r| r.first.as_str()).find(|f| f.contains(&*path.to_string_lossy()));
        let first = first.map_or(String::new(), |first| format!("; the first: {first}"));
        Err(Error::data(format!("none of the {rows} rows can be used{first}")).at(path.display()))
    }
    fn all_bad(&self) -> u64 {
        self.counts.bad.values().map(|r| r.rows).sum()
    }
    fn bad(&mut self, fault: Fault) -> Result<()> {
        let so_far = self.all_bad();
        if !fault.is_skippable() {
            return Err(fault.error);
        }
        if so_far >= self.allowed as u64 {
            return Err(match so_far {
                0 => fault.error,
                n => {
                    Error::data(format!("{n} bad rows were left out, and here is one more: {}", fault.error))
                        .at("--skip-bad-rows")
                }
            });
        }
        let reason = self.counts.bad.entry(fault.reason.into()).or_default();
        reason.rows += 1;
        if reason.rows == 1 {
            reason.first = fault.error.to_string();
        }
        Ok(())
    }
}

struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
