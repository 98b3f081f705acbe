//! An error on its way to other ranks.

use crate::error::{Error, Kind};
use serde::{Deserialize, Serialize};

/// Bytes of an error that travel.
pub(super) const TEXT: usize = 4096;

/// What others are told of an error.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Told {
    kind: usize,
    what: String,
    place: Option<String>,
    remedy: Option<String>,
}

impl Told {
    const KINDS: [Kind; 9] = [
        Kind::Distributed,
        Kind::Usage,
        Kind::Data,
        Kind::Model,
        Kind::Device,
        Kind::Memory,
        Kind::Io,
        Kind::Numeric,
        Kind::Interrupted,
    ];

    pub fn of(error: &Error) -> Self {
        let cut = |text: &str| text.chars().take(TEXT / 16).collect::<String>();
        Self {
            kind: Self::KINDS.iter().position(|kind| *kind == error.kind).unwrap_or(0),
            what: cut(error.what()),
            place: error.place().map(cut),
            remedy: error.advice().map(cut),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.truncate(TEXT);
        bytes
    }

    pub fn read(bytes: &[u8]) -> Self {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        serde_json::from_slice(&bytes[..end]).unwrap_or_default()
    }

    pub fn error(self, rank: &str) -> Error {
        let kind = Self::KINDS.get(self.kind).copied().unwrap_or(Kind::Distributed);
        let mut error = Error::new(kind, self.what);
        error = self.place.into_iter().fold(error, Error::at).at(rank);
        self.remedy.into_iter().fold(error, Error::remedy)
    }
}
