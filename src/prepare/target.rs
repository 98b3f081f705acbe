//! Where the result goes, and the general text that goes with it.

use crate::data::{DataSettings, GeneralText, filenames};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Where the result goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The data directory.
    pub out: PathBuf,
    /// Replace a directory that `prepare` made before.
    pub overwrite: bool,
    /// A file of general text to copy into it.
    pub general: Option<PathBuf>,
}

impl Target {
    /// Reads the general text as training will.
    pub(super) fn check_general(&self) -> Result<()> {
        let Some(from) = &self.general else { return Ok(()) };
        if !from.exists() {
            return Err(filenames::missing(from));
        }
        let suffix = filenames::name(from).1;
        if !["txt", "jsonl", "parquet"].contains(&suffix.as_str()) {
            return Err(Error::usage("general text is a .txt, .jsonl or .parquet file")
                .at(from.display())
                .remedy("a document a line, or a {\"text\": ..} a line"));
        }
        let text = GeneralText::load(std::slice::from_ref(from), &DataSettings::default())?;
        match text.calibration.is_empty() && text.held_out.is_empty() {
            true => Err(Error::data("there is no text in this file").at(from.display())),
            false => Ok(()),
        }
    }
    /// Copies the general text, packed as it is.
    pub(super) fn copy_general(&self, dir: &Path) -> Result<()> {
        let Some(from) = &self.general else { return Ok(()) };
        let name = from.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let suffixes = &name[filenames::name(from).0.len()..];
        std::fs::copy(from, dir.join(format!("general{suffixes}")))
            .map(|_| ())
            .map_err(|e| Error::io("copy", from, e))
    }
    /// Training protects and measures what the base model knows on general text, so it asks for some.
    pub(super) fn general_note(&self) -> Option<String> {
        let out = self.out.display();
        self.general.is_none().then(|| {
            format!(
                "no general text yet, which training protects and measures knowledge with: give some with --general \
                 FILE, or let the model write it: gems-engine prepare sample --model MODEL --out {out}/general.jsonl"
            )
        })
    }
}
