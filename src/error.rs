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
    /// Another rank of the same run is silent, or does something else (exit code 1).
    Distributed,
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
        // One wording, whichever layer of the system it was that said so.
        let why = match source.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_string(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_string(),
            _ => source.to_string(),
        };
        let error = Self::new(Kind::Io, format!("cannot {what}: {why}")).at(path.as_ref().display());
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
    /// Says what was probably meant by `word`; otherwise a remedy given before stays, or what there is is listed.
    pub fn meant<S: AsRef<str>>(self, word: &str, known: &[S]) -> Self {
        let nearest = nearest(word, known.iter().map(AsRef::as_ref));
        let listed = || {
            let some: Vec<&str> = known.iter().take(Self::LISTED).map(AsRef::as_ref).collect();
            let more = if known.len() > some.len() { ", .." } else { "" };
            format!("one of {}{more}", some.join(", "))
        };
        match nearest {
            Some(name) if known.len() > Self::LISTED => self.remedy(format!("did you mean {name:?}?")),
            Some(name) if known.len() > 1 => {
                self.remedy(format!("did you mean {name:?}? There are {}", &listed()["one of ".len()..]))
            }
            Some(name) => self.remedy(format!("did you mean {name:?}?")),
            None if known.is_empty() || self.remedy.is_some() => self,
            None => self.remedy(listed()),
        }
    }
    /// So many names are listed where none of them is near.
    const LISTED: usize = 12;
    /// Where it is, as far as anybody said.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }
    /// What is wrong, without place and remedy.
    pub fn what(&self) -> &str {
        &self.what
    }
    /// The same for machines: `{"error": {"what", "where", "try"}, "exit_code"}`; what nobody said is null.
    pub fn json(&self) -> serde_json::Value {
        let said = serde_json::json!({"what": self.what, "where": self.place, "try": self.remedy});
        serde_json::json!({"error": said, "exit_code": self.exit_code()})
    }
    /// What to do, as far as anybody said.
    pub fn advice(&self) -> Option<&str> {
        self.remedy.as_deref()
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

/// The one of `known` that `name` is probably meant to be.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-', ' '], "");
    let wanted = plain(name);
    let near = known.into_iter().filter_map(|k| {
        let k_plain = plain(k);
        let typos = strsim::damerau_levenshtein(&k_plain, &wanted);
        let within = typos <= 1 + usize::from(wanted.chars().count() > 5);
        let part =
            wanted.len() > 2 && (k_plain.contains(&wanted) || k_plain.len() > 2 && wanted.contains(&k_plain));
        (within || part).then_some((if within { typos } else { 10 + typos }, k))
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, k)| k)
}
