//! The run directory: one place for everything a run writes, and one run at a time in it.

use crate::error::{Error, Result};
use crate::files::{create_directory, remove_left_aside};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `runs/<name>/`: config.toml, metrics.jsonl, tensorboard/, checkpoints/, report.html, log.txt.
/// Holds the directory's lock while it lives.
pub struct RunDirectory {
    /// The directory.
    pub path: PathBuf,
    /// Locked as long as it is open. The file itself stays: removing it could part two processes' locks.
    _lock: Option<File>,
}

impl RunDirectory {
    /// Opens `path` for a new run, or for going on with one (`resume`).
    ///
    /// # Errors
    /// When another process works in it, when a new run would overwrite an old one, or when there is
    /// nothing to resume.
    pub fn open(path: &Path, resume: bool) -> Result<Self> {
        if resume && !path.join("config.toml").is_file() {
            return Err(Error::usage("there is no run to resume here")
                .at(path.display())
                .remedy("give the directory of an earlier run with --out, or leave --resume out"));
        }
        create_directory(path).map_err(|e| Error::io("create the run directory", path, e))?;
        let lock_path = path.join(".lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| Error::io("lock the run directory", &lock_path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::usage("another process is working in this run directory")
                    .at(path.display())
                    .remedy("wait for it to end, or choose another directory with --out"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock the run directory", &lock_path, e)),
        }
        if !resume && (path.join("metrics.jsonl").exists() || path.join("checkpoints").exists()) {
            return Err(Error::usage("this directory already holds a run")
                .at(path.display())
                .remedy("continue it with --resume, or choose another directory with --out"));
        }
        // Nobody else is here: what lies aside is of a process that was killed.
        remove_left_aside(path);
        remove_left_aside(&path.join("checkpoints"));
        let _ = lock.set_len(0);
        let _ = writeln!(lock, "{}", std::process::id());
        Ok(Self { path: path.to_path_buf(), _lock: Some(lock) })
    }
    /// The directory of a run that another process has opened, which writes it.
    pub fn followed(path: &Path) -> Self {
        Self { path: path.to_path_buf(), _lock: None }
    }
    /// A path inside the run directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
    /// The first of `runs/<stem>`, `runs/<stem>-2`, ... that does not hold a run yet.
    pub fn fresh(root: &Path, stem: &str) -> PathBuf {
        (1u32..)
            .map(|n| root.join(if n == 1 { stem.to_string() } else { format!("{stem}-{n}") }))
            .find(|p| !p.join("metrics.jsonl").exists() && !p.join("checkpoints").exists())
            .unwrap_or_else(|| root.join(stem))
    }
}
