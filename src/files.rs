//! Writing files so that a crash, a full disk or a loss of power leaves either the old one or the new one, whole.
//!
//! A file is written aside, flushed, renamed; then the directory is flushed, for a name is safe only with the directory that
//! it stands in. What a killed process leaves aside begins with [`ASIDE`].

use crate::error::{Error, Kind, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use tempfile::{NamedTempFile, TempDir};

/// How names begin of what is on its way.
pub const ASIDE: &str = ".writing-";

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
        let right = || -> io::Result<()> {
            let written = File::open(file.path())?;
            written.set_permissions(file.as_file().metadata()?.permissions())?;
            written.sync_all()
        };
        right().map_err(|e| Error::io("write", path, e))
    })
}

fn replace(path: &Path, fill: impl FnOnce(&mut NamedTempFile) -> Result<()>) -> Result<()> {
    let failed = |e| Error::io("write", path, e);
    let directory = parent(path);
    let mut file = builder(0o666).prefix(ASIDE).tempfile_in(directory).map_err(failed)?;
    fill(&mut file)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    sync_directory(directory).map_err(failed)
}

/// Makes `link` a symbolic link to `target`, in place of one that may be there.
#[cfg(unix)]
pub fn link_atomically(link: &Path, target: &Path) -> Result<()> {
    let place = |e| Error::io("write a link", link, e);
    let aside = directory_aside(parent(link), ASIDE).map_err(place)?;
    let new = aside.path().join("link");
    std::os::unix::fs::symlink(target, &new).and_then(|()| fs::rename(&new, link)).map_err(place)?;
    sync_directory(parent(link)).map_err(place)
}

/// Writes a directory as a whole: `write` fills one beside it, which takes the name `dir` only when all has worked.
///
/// # Errors
/// A directory of that name that is not empty; whatever `write` fails with; the file system.
pub fn write_directory<T>(dir: &Path, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if dir.exists() && !fs::read_dir(dir).is_ok_and(|mut d| d.next().is_none()) {
        return Err(Error::usage("the directory is not empty")
            .at(dir.display())
            .remedy("choose another --out"));
    }
    create_directory(parent(dir)).map_err(|e| Error::io("create", parent(dir), e))?;
    let aside = directory_aside(parent(dir), ".exporting-")
        .map_err(|e| Error::io("write a directory", parent(dir), e))?;
    let value = write(aside.path())?;
    put_into_place(aside, dir, false).map_err(|e| Error::io("write the directory", dir, e))?;
    Ok(value)
}

/// A directory in `parent` to write something in before it takes its place; gone if it never does.
pub fn directory_aside(parent: &Path, prefix: &str) -> io::Result<TempDir> {
    builder(0o777).prefix(prefix).tempdir_in(parent)
}

/// Gives a directory that was written aside its place, flushed with everything in it. With `replaces`, a full one that is
/// there stays until the new one is safe, and there is never none.
///
/// # Errors
/// A full directory of that name, unless it `replaces`; the file system.
pub fn put_into_place(aside: TempDir, dir: &Path, replaces: bool) -> io::Result<()> {
    sync_all_below(aside.path())?;
    #[cfg(not(unix))]
    let _ = fs::remove_dir(dir); // an empty one
    match fs::rename(aside.path(), dir) {
        Err(e) if replaces && e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            exchange(aside.path(), dir)?;
            sync_directory(parent(dir))?;
            // The old one; if it stays, it is in nobody's way.
            let _ = aside.close();
            Ok(())
        }
        done => {
            done?;
            // It has another name now: nothing is left to remove.
            let _ = aside.keep();
            sync_directory(parent(dir))
        }
    }
}

/// Exchanges what two names of one directory stand for: at once where the file system can. Where it cannot (NFS, some of
/// FUSE), `other` names nothing for a moment; whole directories with safe names are then all that a loss of power can leave.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            done => return Ok(done?),
        }
    }
    let between = directory_aside(parent(other), ASIDE)?;
    let old = between.path().join("old");
    sync_directory(parent(other))?;
    fs::rename(other, &old)?;
    if let Err(error) = fs::rename(one, other) {
        return match fs::rename(&old, other) {
            Ok(()) => Err(error),
            Err(_) => Err(io::Error::new(
                error.kind(),
                format!("{error}; the old one is now {}", between.keep().join("old").display()),
            )),
        };
    }
    // Flushed by both names before it is removed by one.
    sync_directory(parent(other))?;
    fs::rename(&old, one)
}

/// Makes a directory and those above it; their names are safe.
///
/// # Errors
/// The file system.
pub fn create_directory(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if parent(dir) != dir {
        create_directory(parent(dir))?;
    }
    create_last(dir)
}

/// Makes a directory in one that is there; its name is safe. One that is there already will do.
///
/// # Errors
/// The file system; nothing to make it in.
pub fn create_last(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_directory(parent(dir)),
    }
}

/// Flushes a directory: the names in it, not what they name.
///
/// # Errors
/// The file system.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    match File::open(dir).and_then(|directory| directory.sync_all()) {
        // Where directories cannot be flushed, a name is as safe as it gets.
        Err(e) if cfg!(not(unix)) || e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Flushes every file and every name below a directory.
fn sync_all_below(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => sync_all_below(&entry.path())?,
            kind if kind.is_file() => File::open(entry.path())?.sync_all()?,
            _ => {}
        }
    }
    sync_directory(dir)
}

/// Removes from a directory that is ours alone what a killed process left on its way there; `.tmp` and six characters are
/// what the safetensors library writes aside.
pub fn remove_left_aside(dir: &Path) {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    let aside = |name: &str| {
        let library = name.starts_with(".tmp") && name.len() == 10;
        library || name.starts_with(ASIDE) || name.starts_with(".exporting-")
    };
    for entry in found.filter(|entry| entry.file_name().to_str().is_some_and(aside)) {
        let path = entry.path();
        // What cannot be removed is in nobody's way.
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// Refuses to begin with what does not fit: `bytes` below `dir`, on top of everything that is there.
///
/// # Errors
/// Too little free space, with both numbers.
pub fn check_room(dir: &Path, bytes: u64) -> Result<()> {
    let Some(free) = free_space(dir).filter(|free| *free < bytes) else { return Ok(()) };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let what = format!("no room: {:.1} MiB are to be written, {:.1} MiB are free", mib(bytes), mib(free));
    Err(Error::new(Kind::Io, what)
        .at(dir.display())
        .remedy("free some space; what was saved before is intact, and a run goes on with --resume"))
}

/// Bytes that may still be written where `path` is; nothing where the system does not tell.
pub fn free_space(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(path).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Gives a file that a library wrote for its owner alone the permissions of any other new file, as they show in its
/// directory, which was made for it.
pub fn permit(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let directory = fs::metadata(parent(path))?.permissions().mode();
        fs::set_permissions(path, fs::Permissions::from_mode(directory & 0o666))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// The directory that a path stands in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// Temporary files are private by default; these become results, so the user's umask decides.
fn builder(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    builder
}
