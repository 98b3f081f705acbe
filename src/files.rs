//! Writing files so that a crash or a full disk leaves either the old one or the new one, whole.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use tempfile::{NamedTempFile, TempDir};

/// Writes `contents` to `path` so that a crash leaves either the old file or the new one, whole.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<()> {
    replace(path, |file| file.as_file_mut().write_all(contents).map_err(|e| Error::io("write", path, e)))
}

/// Lets `write` fill a file beside `path`, given by its name, which then takes the place of `path` as a whole.
///
/// # Errors
/// Whatever `write` fails with; the file system.
pub fn write_aside(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    replace(path, |file| {
        write(file.path())?;
        // What wrote may have put another file there, with permissions of its own.
        let right = || -> std::io::Result<()> {
            let written = File::open(file.path())?;
            written.set_permissions(file.as_file().metadata()?.permissions())?;
            written.sync_all()
        };
        right().map_err(|e| Error::io("write", path, e))
    })
}

fn replace(path: &Path, fill: impl FnOnce(&mut NamedTempFile) -> Result<()>) -> Result<()> {
    let failed = |e| Error::io("write", path, e);
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = builder(0o666).tempfile_in(directory).map_err(failed)?;
    fill(&mut file)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map(drop).map_err(|e| failed(e.error))
}

/// Makes `link` a symbolic link to `target`, in place of one that may be there.
#[cfg(unix)]
pub fn link_atomically(link: &Path, target: &Path) -> Result<()> {
    let place = |e| Error::io("write a link", link, e);
    let aside = directory_aside(link.parent().unwrap_or(Path::new(".")), ".linking-").map_err(place)?;
    let new = aside.path().join("link");
    std::os::unix::fs::symlink(target, &new).and_then(|()| std::fs::rename(&new, link)).map_err(place)
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

/// Gives a file that a library wrote for its owner alone the permissions of any other new file.
pub fn permit(path: &Path) -> std::io::Result<()> {
    let usual = builder(0o666).tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    std::fs::set_permissions(path, usual.as_file().metadata()?.permissions())
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
