//! A disk that keeps what was flushed, and of the rest what chance leaves.
//!
//! The model is POSIX's promise and no more. A file's bytes are safe once it was synced. A name (made, changed, removed)
//! is safe once the directory that it stands in was synced; a rename happens as a whole. After a loss of power, what was not
//! safe is there, or not, or torn at a sector's end. File systems promise more than that, each something else.

use crate::gate::{Act, Call};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Result;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

type Id = usize;
type Name = (Id, std::ffi::OsString);

#[derive(Debug, Clone)]
enum Kind {
    File,
    Directory,
    Link(PathBuf),
}

#[derive(Debug, Clone)]
enum Change {
    Make(Name, Id),
    Rename(Name, Name, Id),
    Exchange((Name, Id), (Name, Id)),
    Remove(Name, Id),
}

/// Everything below a directory, as it is and as it is safe.
pub struct Disk {
    root: PathBuf,
    lies: bool,
    kinds: Vec<Kind>,
    /// Names as the program sees them, and as they were at the start.
    live: BTreeMap<Name, Id>,
    start: BTreeMap<Name, Id>,
    /// What happened to names since, and whether it is safe.
    changes: Vec<(Change, bool)>,
    /// Bytes that are safe.
    synced: HashMap<Id, Vec<u8>>,
    /// Bytes of files that lost their last name.
    gone: HashMap<Id, Vec<u8>>,
}

impl Disk {
    /// What is there now is safe. A disk that `lies` keeps nothing that is flushed: as if the program flushed nothing.
    pub fn new(root: &Path, lies: bool) -> Self {
        let (root, kinds) = (root.to_path_buf(), vec![Kind::Directory]);
        let mut disk = Self {
            root: root.clone(),
            lies,
            kinds,
            live: BTreeMap::new(),
            start: BTreeMap::new(),
            changes: Vec::new(),
            synced: HashMap::new(),
            gone: HashMap::new(),
        };
        disk.read(&root, 0);
        disk.start = disk.live.clone();
        disk
    }

    fn read(&mut self, directory: &Path, id: Id) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            let kind = match kind {
                Ok(kind) if kind.is_dir() => Kind::Directory,
                Ok(kind) if kind.is_symlink() => Kind::Link(fs::read_link(&path).unwrap_or_default()),
                _ => Kind::File,
            };
            let new = self.add(kind.clone());
            self.live.insert((id, entry.file_name()), new);
            match kind {
                Kind::Directory => self.read(&path, new),
                Kind::File => drop(self.synced.insert(new, fs::read(&path).unwrap_or_default())),
                Kind::Link(_) => {}
            }
        }
    }

    fn add(&mut self, kind: Kind) -> Id {
        self.kinds.push(kind);
        self.kinds.len() - 1
    }

    /// What a path names.
    fn find(&self, path: &Path) -> Option<Id> {
        let inside = path.strip_prefix(&self.root).ok()?;
        inside.iter().try_fold(0, |at, name| self.live.get(&(at, name.to_owned())).copied())
    }

    fn name(&self, path: &Path) -> Option<Name> {
        Some((self.find(path.parent()?)?, path.file_name()?.to_owned()))
    }

    /// Notes what a call is about to do. A call that will fail changes nothing.
    pub fn before(&mut self, call: &Call) {
        match &call.act {
            Act::Open { creates: true, .. } => self.made(&call.path, Kind::File),
            Act::MakeDirectory => self.made(&call.path, Kind::Directory),
            Act::MakeLink(to) => self.made(&call.path, Kind::Link(to.clone())),
            Act::Rename(to) => self.renamed(&call.path, to),
            Act::Exchange(to) => self.exchanged(&call.path, to),
            Act::Remove => self.removed(&call.path),
            Act::Sync => self.flushed(&call.path),
            _ => {}
        }
    }

    fn made(&mut self, path: &Path, kind: Kind) {
        let Some(name) = self.name(path).filter(|name| !self.live.contains_key(name)) else { return };
        if let Kind::Directory | Kind::Link(_) | Kind::File = kind
            && path.parent().is_some_and(Path::is_dir)
        {
            let id = self.add(kind);
            self.live.insert(name.clone(), id);
            self.changes.push((Change::Make(name, id), false));
        }
    }

    /// Keeps the bytes of what is about to lose its name.
    fn keep(&mut self, path: &Path, id: Id) {
        if matches!(self.kinds[id], Kind::File) {
            self.gone.insert(id, fs::read(path).unwrap_or_default());
        }
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        let (Some(old), Some(new)) = (self.name(from), self.name(to)) else { return };
        let full = |path: &Path| fs::read_dir(path).is_ok_and(|mut found| found.next().is_some());
        let Some(id) = self.live.get(&old).copied().filter(|_| !full(to)) else { return };
        if let Some(replaced) = self.live.get(&new).copied() {
            self.keep(to, replaced);
        }
        self.live.remove(&old);
        self.live.insert(new.clone(), id);
        self.changes.push((Change::Rename(old, new, id), false));
    }

    fn exchanged(&mut self, one: &Path, other: &Path) {
        let (Some(a), Some(b)) = (self.name(one), self.name(other)) else { return };
        let (Some(x), Some(y)) = (self.live.get(&a).copied(), self.live.get(&b).copied()) else { return };
        self.live.insert(a.clone(), y);
        self.live.insert(b.clone(), x);
        self.changes.push((Change::Exchange((a, x), (b, y)), false));
    }

    fn removed(&mut self, path: &Path) {
        let full = fs::read_dir(path).is_ok_and(|mut found| found.next().is_some());
        let Some(name) = self.name(path).filter(|_| !full) else { return };
        let Some(id) = self.live.remove(&name) else { return };
        self.keep(path, id);
        self.changes.push((Change::Remove(name, id), false));
    }

    fn flushed(&mut self, path: &Path) {
        let Some(id) = self.find(path).filter(|_| !self.lies) else { return };
        match self.kinds[id] {
            Kind::File => drop(self.synced.insert(id, fs::read(path).unwrap_or_default())),
            _ => self.changes.iter_mut().for_each(|(change, safe)| {
                *safe |= match change {
                    Change::Make(name, _) | Change::Remove(name, _) => name.0 == id,
                    Change::Rename(_, to, _) => to.0 == id,
                    Change::Exchange(a, b) => a.0.0 == id && b.0.0 == id,
                };
            }),
        }
    }

    /// Puts in the place of everything what a loss of power leaves.
    ///
    /// # Errors
    /// The file system on which this runs.
    pub fn lose_power(&self, chance: &mut ChaCha8Rng) -> Result<()> {
        let names = self.names_left(chance);
        let aside = self.root.with_extension("after");
        fs::create_dir(&aside)?;
        // By directory: a parent may come after its child.
        let mut places = vec![(0, aside.clone())];
        while let Some((directory, place)) = places.pop() {
            for ((_, name), id) in names.iter().filter(|((of, _), _)| *of == directory) {
                let path = place.join(name);
                match &self.kinds[*id] {
                    Kind::Directory => {
                        fs::create_dir(&path)?;
                        places.push((*id, path));
                    }
                    Kind::Link(to) => std::os::unix::fs::symlink(to, &path)?,
                    Kind::File => {
                        fs::write(&path, self.bytes_left(*id, chance))?;
                        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
                    }
                }
            }
        }
        fs::remove_dir_all(&self.root)?;
        fs::rename(&aside, &self.root)
    }

    fn names_left(&self, chance: &mut ChaCha8Rng) -> BTreeMap<Name, Id> {
        // As a journal does it, up to some point; or each by itself; or nothing that need not be.
        let (journal, up_to) = (chance.random_range(0..3), chance.random_range(0..=self.changes.len()));
        let mut names = self.start.clone();
        for (i, (change, safe)) in self.changes.iter().enumerate() {
            let kept = match journal {
                0 => false,
                1 => i < up_to,
                _ => chance.random_bool(0.5),
            };
            if !safe && !kept {
                continue;
            }
            let is = |names: &BTreeMap<Name, Id>, name: &Name, id: &Id| names.get(name) == Some(id);
            match change {
                Change::Make(name, id) => drop(names.insert(name.clone(), *id)),
                Change::Rename(from, to, id) => {
                    if is(&names, from, id) {
                        names.remove(from);
                    }
                    names.insert(to.clone(), *id);
                }
                Change::Exchange((a, x), (b, y)) => {
                    if is(&names, a, x) && is(&names, b, y) {
                        names.insert(a.clone(), *y);
                        names.insert(b.clone(), *x);
                    }
                }
                Change::Remove(name, id) => {
                    if is(&names, name, id) {
                        names.remove(name);
                    }
                }
            }
        }
        names
    }

    /// A file's path as the program sees it.
    fn path(&self, id: Id) -> Option<PathBuf> {
        if id == 0 {
            return Some(self.root.clone());
        }
        let ((directory, name), _) = self.live.iter().find(|(_, of)| **of == id)?;
        Some(self.path(*directory)?.join(name))
    }

    /// Safe sectors, and those of the rest that chance leaves.
    fn bytes_left(&self, id: Id, chance: &mut ChaCha8Rng) -> Vec<u8> {
        let live = self.path(id).and_then(|path| fs::read(path).ok());
        let live = live.or_else(|| self.gone.get(&id).cloned()).unwrap_or_default();
        let safe = self.synced.get(&id).cloned().unwrap_or_default();
        if live == safe {
            return live;
        }
        let mut bytes = match chance.random_range(0..3) {
            0 => return safe,
            1 => vec![0; live.len()],
            _ => vec![0; chance.random_range(live.len().min(safe.len())..=live.len().max(safe.len()))],
        };
        for (i, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            let from = if chance.random_bool(0.5) { &live } else { &safe };
            let there = from.get(i * SECTOR..).unwrap_or_default();
            let length = there.len().min(sector.len());
            sector[..length].copy_from_slice(&there[..length]);
        }
        bytes
    }
}
