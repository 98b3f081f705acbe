//! Writing files so that a crash or a full disk leaves either the old one or the new one, whole.

use crate::error::{Error, Result};
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

/// Writes `contents` to `path` so that a crash leaves either the old file or the new one, whole.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = builder(0o666).tempfile_in(directory)?;
        file.write_all(contents)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|e| Error::io("write", path, e))
}

/// A directory in `parent` to write something in before it takes its place; gone if it never does.
pub fn directory_aside(parent: &Path, prefix: &str) -> std::io::Result<TempDir> {
    builder(0o777).prefix(prefix).tempdir_in(parent)
}

/// Temporary files are private by default; these become results, so the user's umask decides.
fn builder(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    builder
}
