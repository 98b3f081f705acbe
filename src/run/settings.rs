//! A run's settings: how they are kept, and what later commands may change of them.

use super::{CONFIG, Run};
use crate::config::{Config, Layer};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::gems::Side;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Settings of a resumption that are about to be in force.
pub(super) const STAGED: &str = "config.toml.next";

/// What a command wants of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To go on training.
    Resume,
    /// To evaluate, rank or export.
    Read,
}

/// The closed list of what a later command may set otherwise than the run was started with; a section ends with a
/// dot. Where a base model or data lie may change, what they are may not. docs/runs.md says why each is on it.
const CHANGEABLE: &[(Purpose, &[&str])] = &[
    (
        Purpose::Resume,
        &[
            "train.steps",
            "train.validate_every",
            "train.patience",
            "train.max_bad_steps",
            "train.micro_batch_tokens",
            "train.activation_checkpointing",
            "train.evaluate_after",
            "train.export",
            "checkpoint.",
            "distributed.",
            "device",
            "precision",
            "model.path",
            "data.path",
        ],
    ),
    (
        Purpose::Read,
        &[
            "evaluate.",
            "distributed.",
            "data.skip_bad_rows",
            "data.general_held_out",
            "data.general_length",
            "device",
            "precision",
            "model.path",
            "data.path",
        ],
    ),
];

impl Purpose {
    fn list(self) -> &'static [&'static str] {
        CHANGEABLE.iter().find(|(purpose, _)| *purpose == self).map_or(&[], |(_, list)| list)
    }
    fn allows(self, key: &str, config: &Config) -> bool {
        // The published loss is a mean over passes: other passes, another loss.
        let passes_count = config.gems.side == Side::Published && key == "train.micro_batch_tokens";
        let on_list = |name: &&str| key == *name || (name.ends_with('.') && key.starts_with(*name));
        !passes_count && self.list().iter().any(on_list)
    }
    fn name(self) -> &'static str {
        match self {
            Purpose::Resume => "a resumed run",
            Purpose::Read => "a command that reads a run",
        }
    }
}

/// A setting that is not what it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its dotted key.
    pub key: String,
    /// What it was.
    pub from: Value,
    /// What it is.
    pub to: Value,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} -> {}", self.key, self.from, self.to)
    }
}

/// The settings that differ, in the order of the schema.
fn changes(from: &Config, to: &Config) -> Vec<Change> {
    let (from, to) = (from.flat(), to.flat());
    let gone = from.keys().filter(|key| !to.contains_key(*key));
    let value = |of: &Map<String, Value>, key: &String| of.get(key).cloned().unwrap_or_default();
    let pairs = to.keys().chain(gone).map(|key| (key, value(&from, key), value(&to, key)));
    let differing = pairs.filter(|(_, from, to)| from != to);
    differing.map(|(key, from, to)| Change { key: key.clone(), from, to }).collect()
}

/// The run's settings with `layers` over them.
pub(super) fn over(run: &Run, layers: Vec<Layer>, purpose: Purpose) -> Result<(Config, Vec<Change>)> {
    let source = run.path.join(CONFIG).display().to_string();
    let table = toml::Table::try_from(&run.config).map_err(|e| Error::data(e.to_string()).at(&source))?;
    let mut all = vec![Layer::table(source, table)];
    all.extend(layers);
    let mut config = Config::from_layers(all)?;
    paths(&mut config).into_iter().for_each(|path| *path = whole(Path::new(path)).display().to_string());
    let changes = changes(&run.config, &config);
    if let Some(change) = changes.iter().find(|c| !purpose.allows(&c.key, &config)) {
        let (key, who) = (&change.key, purpose.name());
        let what = format!("{who} cannot change {key}: it is {} in this run, not {}", change.from, change.to);
        let list: Vec<String> = purpose.list().iter().map(|name| name.trim_end_matches('.').into()).collect();
        let remedy = format!("leave it out, or start a new run; {who} may change {}", list.join(", "));
        return Err(Error::usage(what).at(run.path.display()).remedy(remedy));
    }
    Ok((config, changes))
}

/// The settings that are paths and are not empty.
fn paths(config: &mut Config) -> Vec<&mut String> {
    let all = [&mut config.model.path, &mut config.data.path, &mut config.train.match_step];
    all.into_iter().filter(|path| !path.is_empty()).collect()
}

/// The path from the root of the file system, without links, as far as it exists.
pub fn whole(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_path_buf())
}

/// Writes the settings of the run in `run`. Paths into the run are kept from it, others whole.
pub(super) fn write(run: &Path, config: &Config) -> Result<()> {
    write_atomically(&run.join(CONFIG), text(run, config)?.as_bytes())
}

fn text(run: &Path, config: &Config) -> Result<String> {
    let mut config = config.clone();
    for path in paths(&mut config) {
        let whole = whole(Path::new(path));
        *path = whole.strip_prefix(run).unwrap_or(&whole).display().to_string();
    }
    toml::to_string_pretty(&config).map_err(|e| Error::data(e.to_string()).at(run.join(CONFIG).display()))
}

/// Writes settings that are in force once the history has an event with the hash that comes back.
pub(super) fn stage(run: &Path, config: &Config) -> Result<String> {
    let text = text(run, config)?;
    write_atomically(&run.join(STAGED), text.as_bytes())?;
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// Where the settings in force stand, by the hash that the history has `noted`: a resume may have ended between its event
/// and its last file.
fn in_force(run: &Path, noted: Option<&str>) -> PathBuf {
    let staged = run.join(STAGED);
    let hash = std::fs::read(&staged).map(|text| blake3::hash(&text).to_hex());
    match hash.is_ok_and(|hash| noted == Some(hash.as_str())) {
        true => staged,
        false => run.join(CONFIG),
    }
}

/// Gives staged settings that are in force their place, and removes others.
pub(super) fn settle(run: &Path, noted: Option<&str>) -> Result<()> {
    let staged = run.join(STAGED);
    let done = match in_force(run, noted) == staged {
        true => std::fs::rename(&staged, run.join(CONFIG)),
        false => std::fs::remove_file(&staged).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        }),
    };
    done.map_err(|e| Error::io("replace", run.join(CONFIG), e))
}

/// Reads the settings of the run in `run`, paths made whole. What lay outside the run and is not there any more may have
/// moved together with it, from `home`.
pub(super) fn read(run: &Path, noted: Option<&str>, home: Option<&Path>) -> Result<Config> {
    let mut config = Config::from_layers(vec![Layer::file(&in_force(run, noted))?])?;
    for path in paths(&mut config) {
        let there = whole(&run.join(&*path));
        let moved = || Some(run.join(way(home?, &there)?)).filter(|path| path.exists());
        let found = if there.exists() { None } else { moved() };
        *path = found.map_or(there, |path| whole(&path)).display().to_string();
    }
    Ok(config)
}

/// The way from one directory to a path that has some of its parents.
fn way(from: &Path, to: &Path) -> Option<PathBuf> {
    let parent = from.ancestors().find(|parent| to.starts_with(parent) && parent.parent().is_some())?;
    let up = from.strip_prefix(parent).ok()?.components().map(|_| "..");
    Some(up.collect::<PathBuf>().join(to.strip_prefix(parent).ok()?))
}
