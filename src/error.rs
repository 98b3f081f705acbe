//! One error type: what went wrong, where, and what to do about it.
//!
//! Every failure a user can cause or meet ends as one [`Error`], printed once by `main` as
//! `what`, `where` and `remedy`, with the exit code of its [`Kind`].

use std::fmt;
use std::path::Path;

/// The class of a failure; it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A flag, a configuration value or a combination of them is not usable (exit code 2).
    Usage,
    /// A record, a table or a text of the user's is not as it must be (exit code 1).
    Data,
    /// A checkpoint, a tokenizer or a basis cannot be read or does not fit (exit code 1).
    Model,
    /// A device is missing, too old or lost (exit code 1).
    Device,
    /// A device's memory is full (exit code 1).
    Memory,
    /// The file system said no (exit code 1).
    Io,
    /// NaN, infinity, a decomposition that does not converge (exit code 1).
    Numeric,
    /// Stopped by the user after saving (exit code 130).
    Interrupted,
}

/// What went wrong, where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    /// The class of the failure.
    pub kind: Kind,
    what: String,
    place: Option<String>,
    remedy: Option<String>,
}

/// The crate's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` that says `what` is wrong.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), place: None, remedy: None }
    }
    /// A flag or configuration value that cannot be used.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }
    /// A record or table that is not as it must be.
    pub fn data(what: impl Into<String>) -> Self {
        Self::new(Kind::Data, what)
    }
    /// A checkpoint, tokenizer or basis that cannot be used.
    pub fn model(what: impl Into<String>) -> Self {
        Self::new(Kind::Model, what)
    }
    /// A device that is missing, full or lost.
    pub fn device(what: impl Into<String>) -> Self {
        Self::new(Kind::Device, what)
    }
    /// A numerical failure.
    pub fn numeric(what: impl Into<String>) -> Self {
        Self::new(Kind::Numeric, what)
    }
    /// A file-system error at `path`, while doing `what` (for example "read").
    pub fn io(what: &str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let remedy = match source.kind() {
            std::io::ErrorKind::NotFound => Some("check the path"),
            std::io::ErrorKind::PermissionDenied => Some("check the permissions"),
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => {
                Some("free some space or choose another --out; what was saved before is intact")
            }
            _ => None,
        };
        let error = Self::new(Kind::Io, format!("cannot {what}: {source}")).at(path.as_ref().display());
        match remedy {
            Some(remedy) => error.remedy(remedy),
            None => error,
        }
    }
    /// Says where: a file, a line, a field, a tensor. An outer place goes before an inner one.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(match self.place {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        });
        self
    }
    /// Says what to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
    /// What is wrong, without place and remedy.
    pub fn what(&self) -> &str {
        &self.what
    }
    /// The process exit code: 2 for bad usage, 130 when interrupted, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => 2,
            Kind::Interrupted => 130,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.what)?,
            None => write!(f, "{}", self.what)?,
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n  try: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
