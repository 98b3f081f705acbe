//! Which files are read: paths, patterns, directories of shards; and what their paths say.

use crate::data::filenames::{self, is_json, is_parquet, name};
use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A file to read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Input {
    pub path: PathBuf,
    /// Columns that its path gives a value (`dt=2024-05-01/`, as Hive and Spark write them).
    pub partitions: Vec<(String, Option<String>)>,
}

impl Input {
    pub fn new(path: &Path) -> Self {
        let parts = path.parent().into_iter().flat_map(Path::components);
        let partitions = parts.filter_map(|part| partition(part.as_os_str().to_str()?)).collect();
        Self { path: path.into(), partitions }
    }
}

/// What a directory such as `dt=2024-05-01` says.
fn partition(directory: &str) -> Option<(String, Option<String>)> {
    let (key, value) = directory.split_once('=')?;
    let sound = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    let value = (value != "__HIVE_DEFAULT_PARTITION__").then(|| unescaped(value));
    sound.then(|| (key.to_string(), value))
}

/// A text whose special characters were written as `%2F`.
fn unescaped(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.into())
}

/// Files by what they hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub tables: Vec<Input>,
    /// Tables of items that lie in the directories beside those of events.
    pub items: Vec<Input>,
    /// Files of the directories that are not read.
    pub unread: Vec<PathBuf>,
}

/// What a file of a directory is, as its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Items,
    Unread,
}

fn kind(path: &Path) -> Kind {
    let (stem, suffix) = name(path);
    let table =
        matches!(suffix.as_str(), "csv" | "tsv" | "tab" | "inter") || is_json(&suffix) || is_parquet(&suffix);
    match suffix.as_str() {
        "item" => Kind::Items,
        "json" if stem == "card" => Kind::Unread,
        _ if table && filenames::shard(stem).0.eq_ignore_ascii_case("items") => Kind::Items,
        _ if table || is_table(path) => Kind::Table,
        _ => Kind::Unread,
    }
}

/// Whether a file of a directory is a table by its name, or rows packed in a way that must be refused by name.
pub(super) fn is_table(path: &Path) -> bool {
    let (stem, suffix) = name(path);
    let suffix = suffix.as_str();
    is_json(suffix)
        || is_parquet(suffix)
        || matches!(suffix, "csv" | "tsv" | "tab" | "inter" | "item")
        || matches!(suffix, "bz2" | "xz" | "lz4" | "snappy" | "orc" | "avro" | "arrow" | "feather")
        || stem.starts_with("part-") && matches!(suffix, "" | "txt" | "log" | "dat")
}

/// The tables of `paths`: files, patterns such as `logs/*.csv`, directories of shards. Each file once.
///
/// # Errors
/// A path that leads nowhere, a directory without tables, a set of shards that is not whole.
pub(super) fn find(paths: &[PathBuf]) -> Result<Found> {
    let mut found = Found::default();
    for path in paths {
        match path.exists() {
            true => found.take(path)?,
            false => expand(path)?.iter().try_for_each(|path| found.take(path))?,
        }
    }
    let mut seen = HashSet::new();
    let mut new = |path: &Path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.into()));
    found.tables.retain(|input| new(&input.path));
    found.items.retain(|input| new(&input.path));
    found.unread.retain(|path| new(path));
    let all: Vec<PathBuf> = found.tables.iter().map(|input| input.path.clone()).collect();
    filenames::check_shards(&all)?;
    Ok(found)
}

impl Found {
    fn take(&mut self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            self.tables.push(Input::new(path));
            return Ok(());
        }
        let all = files_below(path)?;
        let tables = self.tables.len() + self.items.len();
        for file in &all {
            match kind(file) {
                Kind::Table => self.tables.push(Input::new(file)),
                Kind::Items => self.items.push(Input::new(file)),
                Kind::Unread => self.unread.push(file.clone()),
            }
        }
        if self.tables.len() + self.items.len() == tables {
            let names: Vec<_> = all.iter().filter_map(|f| f.strip_prefix(path).ok()).take(8).collect();
            let there = names.iter().map(|n| n.display().to_string()).collect::<Vec<_>>().join(", ");
            let there = if there.is_empty() { "it is empty".into() } else { format!("there are: {there}") };
            return Err(Error::usage(format!("no tables in this directory; {there}")).at(path.display()).remedy(
                "in a directory .csv, .tsv, .jsonl (each also .gz or .zst), .parquet and .inter are read; name other files one by one",
            ));
        }
        Ok(())
    }
}

/// The files of a pattern.
fn expand(pattern: &Path) -> Result<Vec<PathBuf>> {
    let text = pattern.to_str().filter(|t| t.contains(['*', '?', '[']));
    let Some(text) = text else { return Err(filenames::missing(pattern)) };
    let bad =
        |what: String| Error::usage(what).at(pattern.display()).remedy("a pattern such as 'logs/*.csv'");
    let paths = glob::glob(text).map_err(|e| bad(format!("not a pattern: {e}")))?;
    let mut found: Vec<PathBuf> =
        paths.collect::<std::result::Result<_, _>>().map_err(|e| bad(format!("cannot be looked up: {e}")))?;
    found.sort_by(|a, b| in_order(a, b));
    found.retain(|p| !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(['.', '_'])));
    match found.is_empty() {
        true => Err(bad("no file matches".into())),
        false => Ok(found),
    }
}

/// Deepest directories that are looked into.
const DEPTH: usize = 8;

/// Files of a directory and those of its subdirectories, by name; without hidden ones and Spark's own (`_SUCCESS`).
///
/// # Errors
/// The file system; a directory that only a table format's own program can read.
pub(super) fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut waiting, mut been) = (Vec::new(), vec![(dir.to_path_buf(), 0)], HashSet::new());
    while let Some((dir, depth)) = waiting.pop() {
        let failed = |e| Error::io("read the directory", &dir, e);
        if !been.insert(dir.canonicalize().map_err(failed)?) {
            continue;
        }
        refuse_versioned(&dir)?;
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(['.', '_']));
            if hidden {
                continue;
            }
            if path.is_dir() && depth < DEPTH {
                waiting.push((path, depth + 1));
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort_by(|a, b| in_order(a, b));
    Ok(found)
}

/// The order of paths as people count: `part-2` before `part-10`.
fn in_order(a: &Path, b: &Path) -> Ordering {
    let (a_text, b_text) = (a.to_string_lossy(), b.to_string_lossy());
    let (mut a_rest, mut b_rest) = (a_text.as_bytes(), b_text.as_bytes());
    while let ([x, ..], [y, ..]) = (a_rest, b_rest) {
        let (a_number, b_number) = (number(a_rest), number(b_rest));
        let lengths = match (a_number.is_empty(), b_number.is_empty()) {
            (false, false) => {
                let order = a_number.len().cmp(&b_number.len()).then_with(|| a_number.cmp(b_number));
                if order != Ordering::Equal {
                    return order;
                }
                (digits(a_rest), digits(b_rest))
            }
            _ if x != y => return x.cmp(y),
            _ => (1, 1),
        };
        (a_rest, b_rest) = (&a_rest[lengths.0..], &b_rest[lengths.1..]);
    }
    a_rest.len().cmp(&b_rest.len()).then_with(|| a.cmp(b))
}

/// Digits at the beginning of a text.
fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// The number at the beginning of a text, without zeros before it; empty: there is none.
fn number(text: &[u8]) -> &[u8] {
    let digits = &text[..digits(text)];
    let zeros = digits.iter().take_while(|b| **b == b'0').count().min(digits.len().saturating_sub(1));
    &digits[zeros..]
}

/// Tables that keep old versions beside new ones: reading all files would bring deleted rows back.
fn refuse_versioned(dir: &Path) -> Result<()> {
    let iceberg = || {
        let entries = std::fs::read_dir(dir.join("metadata")).ok()?;
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        names.into_iter().find(|n| n.ends_with(".metadata.json"))
    };
    let what = if dir.join("_delta_log").is_dir() {
        "a Delta Lake table"
    } else if dir.join(".hoodie").is_dir() {
        "a Hudi table"
    } else if iceberg().is_some() {
        "an Iceberg table"
    } else {
        return Ok(());
    };
    Err(Error::data(format!("this is {what}: some of its files hold deleted rows"))
        .at(dir.display())
        .remedy("export the rows as Parquet or CSV"))
}

/// Tables below `dir` that belong to `name`: `name.csv`, `name/...parquet`, `name-00000-of-00001.parquet`.
///
/// # Errors
/// The file system; a set of shards that is not whole.
pub(super) fn named(dir: &Path, name: &str) -> Result<Vec<Input>> {
    let belongs = |path: &PathBuf| {
        let inside = path.strip_prefix(dir).unwrap_or(path);
        inside.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
        })
    };
    let paths: Vec<PathBuf> = files_below(dir)?.into_iter().filter(|p| is_table(p) && belongs(p)).collect();
    filenames::check_shards(&paths)?;
    Ok(paths.iter().map(|p| Input::new(p)).collect())
}

/// The files below `dir` that are none of `read`.
///
/// # Errors
/// The file system.
pub(super) fn others<'p>(dir: &Path, read: impl Iterator<Item = &'p Path>) -> Result<Vec<PathBuf>> {
    let read: HashSet<&Path> = read.collect();
    Ok(files_below(dir)?.into_iter().filter(|path| !read.contains(path.as_path())).collect())
}

/// What to say when a source's files are not where they were looked for.
pub(super) fn missing(dir: &Path, what: &str, remedy: &str) -> Error {
    if !dir.exists() {
        return filenames::missing(dir);
    }
    Error::usage(format!("no {what} here")).at(dir.display()).remedy(remedy)
}
