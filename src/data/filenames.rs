//! What files are called: how they are written, of which table they are a part, and which table of a data directory.

use crate::error::{self, Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The name of a file without its suffixes, and its suffix in lower case, both below `.gz` and `.zst`.
pub(crate) fn name(path: &Path) -> (&str, String) {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let ending = |ending: &str| name.len().checked_sub(ending.len()).filter(|at| name.is_char_boundary(*at));
    let packed = [".gz", ".gzip", ".zst", ".zstd"];
    let packed = packed.iter().find_map(|e| ending(e).filter(|at| name[*at..].eq_ignore_ascii_case(e)));
    let name = &name[..packed.unwrap_or(name.len())];
    match name.rsplit_once('.') {
        Some((stem, suffix)) if !stem.is_empty() => (stem, suffix.to_ascii_lowercase()),
        _ => (name, String::new()),
    }
}

/// Whether a suffix is that of JSON, an object a line.
pub(crate) fn is_json(suffix: &str) -> bool {
    matches!(suffix, "jsonl" | "ndjson" | "json")
}

/// Whether a suffix is that of Parquet.
pub(crate) fn is_parquet(suffix: &str) -> bool {
    matches!(suffix, "parquet" | "pq")
}

/// What `train-00000-of-00010` is a part of, its number, and how many there are.
pub(crate) fn shard(stem: &str) -> (&str, Option<(u32, u32)>) {
    let whole = (stem, None);
    let Some((head, tail)) = stem.rsplit_once("-of-") else { return whole };
    let digits = |text: &str| text.len() >= 3 && text.bytes().all(|b| b.is_ascii_digit());
    // Older hubs put a checksum behind: `train-00000-of-00001-1fd2a2c0e8c5d8a3`.
    let total = tail.split(['-', '.']).next().unwrap_or_default();
    let Some((base, number)) = head.rsplit_once(['-', '.', '_']) else { return whole };
    match (digits(number), digits(total), number.parse(), total.parse()) {
        (true, true, Ok(number), Ok(total)) => (base, Some((number, total))),
        _ => whole,
    }
}

/// Checks that no numbered part of a table is missing.
///
/// # Errors
/// Names the part.
pub(crate) fn check_shards(files: &[PathBuf]) -> Result<()> {
    let mut sets: BTreeMap<(PathBuf, &str, u32), Vec<u32>> = BTreeMap::new();
    for path in files {
        if let (base, Some((number, total))) = shard(name(path).0) {
            let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
            sets.entry((directory, base, total)).or_default().push(number);
        }
    }
    for ((directory, base, total), mut there) in sets {
        there.sort_unstable();
        there.dedup();
        if there.len() as u64 == u64::from(total) {
            continue;
        }
        let missing =
            (0..total).zip(&there).find(|(want, is)| want != *is).map_or(there.len() as u32, |(n, _)| n);
        let what = format!(
            "only {} of the {total} parts of `{base}` are here; number {missing} is missing",
            there.len()
        );
        return Err(Error::data(what)
            .at(directory.display())
            .remedy("fetch the others, or rename the parts if they are all there are"));
    }
    Ok(())
}

/// What to say of a file that is not there: the names near it.
pub(crate) fn missing(path: &Path) -> Error {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    let wanted = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let remedy = match error::nearest(wanted, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{}`?", directory.join(near).display()),
        None => "check the path".into(),
    };
    Error::new(Kind::Io, "there is no such file or directory").at(path.display()).remedy(remedy)
}

/// The files of a data directory.
#[derive(Debug, Default)]
pub(crate) struct DataFiles {
    tables: BTreeMap<String, Vec<PathBuf>>,
    /// General text.
    pub general: Vec<PathBuf>,
    /// What no part of a run reads.
    pub unread: Vec<PathBuf>,
}

impl DataFiles {
    /// Looks what there is in `dir`: `train.jsonl`, `train.jsonl.gz`, `train-00000-of-00002.parquet`, `train/*.parquet`,
    /// `data/train-...` and `validation` are known, as they are on the Hugging Face hub.
    ///
    /// # Errors
    /// A table that is there twice, or of which a part is missing; the file system.
    pub fn of(dir: &Path) -> Result<Self> {
        if !dir.exists() {
            return Err(missing(dir));
        }
        let mut files = Self::default();
        for path in entries(dir)? {
            match (path.is_dir(), path.file_name().and_then(|n| n.to_str())) {
                (false, _) => files.take(path, None),
                (true, Some("data")) => entries(&path)?.into_iter().for_each(|p| files.take(p, None)),
                (true, Some(name)) if table(name).is_some() => {
                    let table = table(name);
                    entries(&path)?.into_iter().for_each(|p| files.take(p, table.clone()));
                }
                (true, _) => files.unread.push(path),
            }
        }
        for (table, parts) in &files.tables {
            check_parts(dir, table, parts)?;
        }
        Ok(files)
    }
    /// The parts of a table, in their order.
    pub fn table(&self, name: &str) -> &[PathBuf] {
        self.tables.get(name).map_or(&[], Vec::as_slice)
    }
    /// Names of further evaluation sets.
    pub fn extra(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().filter_map(|name| name.strip_prefix("test-"))
    }

    fn take(&mut self, path: PathBuf, of: Option<String>) {
        let (stem, suffix) = name(&path);
        let rows = is_json(&suffix) || is_parquet(&suffix);
        if path.is_dir() || stem == "card" && suffix == "json" {
            if path.is_dir() {
                self.unread.push(path);
            }
        } else if matches!(stem, "general" | "general-heldout") && (rows || suffix == "txt") {
            self.general.push(path);
        } else if let (true, Some(table)) = (rows, of.or_else(|| table(shard(stem).0))) {
            self.tables.entry(table).or_default().push(path);
        } else {
            self.unread.push(path);
        }
    }
}

/// The table that a name stands for.
fn table(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "items" | "train" | "valid" | "test" => Some(lower),
        "validation" | "val" | "dev" => Some("valid".into()),
        _ => lower.strip_prefix("test-").filter(|n| !n.is_empty()).map(|_| format!("test-{}", &name[5..])),
    }
}

/// The entries of a directory by name, without hidden ones and what Spark leaves behind (`_SUCCESS`).
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("read the directory", dir, e);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with(['.', '_']) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Several files are one table if they are its numbered parts or lie in its directory, written alike.
fn check_parts(dir: &Path, table: &str, parts: &[PathBuf]) -> Result<()> {
    let [first, rest @ ..] = parts else { return Ok(()) };
    let kind = |path: &Path| {
        let (stem, suffix) = name(path);
        let in_own = path.parent().is_some_and(|p| p != dir && p != dir.join("data"));
        (path.parent().map(Path::to_path_buf), in_own || shard(stem).1.is_some(), is_parquet(&suffix))
    };
    let of_first = kind(first);
    if let Some(other) = rest.iter().find(|p| kind(p) != of_first || !of_first.1) {
        let show = |path: &Path| path.strip_prefix(dir).unwrap_or(path).display().to_string();
        return Err(Error::data(format!("both {} and {} exist", show(first), show(other)))
            .at(dir.display())
            .remedy(format!("keep one {table} table: remove one of them")));
    }
    check_shards(parts)
}
