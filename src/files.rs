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

/// Writes a directory as a whole: `write` fills one beside it, which takes the name `dir` only when all has worked.
///
/// # Errors
/// A directory of that name that is not empty; whatever `write` fails with; the file system.
pub fn write_directory<T>(dir: &Path, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if dir.exists() && !std::fs::read_dir(dir).is_ok_and(|mut d| d.next().is_none()) {
        return Err(Error::usage("the directory is not empty")
            .at(dir.display())
            .remedy("choose another --out"));
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    let aside =
        directory_aside(parent, ".exporting-").map_err(|e| Error::io("write a directory", parent, e))?;
    let value = write(aside.path())?;
    let aside = aside.keep();
    let _ = std::fs::remove_dir(dir);
    std::fs::rename(&aside, dir).map_err(|e| Error::io("write the directory", dir, e))?;
    Ok(value)
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
