//! A directory that is written aside and appears whole, or not at all.

use crate::error::{Error, Result};
use crate::files::{create_directory, directory_aside, put_into_place};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory on its way to `out`; dropped, it leaves nothing behind.
pub(super) struct Staging {
    out: PathBuf,
    new: TempDir,
    overwrite: bool,
}

impl Staging {
    /// Begins a directory that will become `out`.
    ///
    /// # Errors
    /// `out` holds something and `overwrite` is not set; the file system.
    pub fn begin(out: &Path, overwrite: bool) -> Result<Self> {
        let occupied = match fs::read_dir(out) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(Error::io("open", out, e)),
        };
        // Only what this command once made is ever replaced.
        let ours = out.join("card.json").is_file();
        if occupied && !(overwrite && ours) {
            let remedy = match ours {
                true => "choose another --out, or replace it with --overwrite",
                false => "choose another --out",
            };
            return Err(Error::usage("this directory is not empty").at(out.display()).remedy(remedy));
        }
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_directory(parent).map_err(|e| Error::io("create", parent, e))?;
        let new = directory_aside(parent, ".prepare-")
            .map_err(|e| Error::io("create a directory in", parent, e))?;
        Ok(Self { out: out.into(), new, overwrite })
    }
    /// Where to write.
    pub fn path(&self) -> &Path {
        self.new.path()
    }
    /// Lets the directory appear, in the place of an older one that may be there.
    pub fn commit(self) -> Result<()> {
        put_into_place(self.new, &self.out, self.overwrite)
            .map_err(|e| Error::io("put into place", &self.out, e))
    }
}
