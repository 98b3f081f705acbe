//! Where logs come from.

use super::amazon::Amazon;
use super::events::Events;
use super::ids::Ids;
use super::intake::Intake;
use super::kcore::Alive;
use super::kuaisar::KuaiSar;
use super::log::Log;
use super::qilin::Qilin;
use super::settings::{HistoryRule, NegativeKind, Settings};
use super::table::{self, Checked};
use crate::data::rows::Fault;
use crate::error::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A source of logs, as it is distributed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case", tag = "source")]
pub enum Source {
    /// A table of events of any kind.
    Events(Box<Events>),
    /// Qilin: Parquet as published, or CSV.
    Qilin(Qilin),
    /// KuaiSAR: CSV.
    #[serde(rename = "kuaisar")]
    KuaiSar(KuaiSar),
    /// Amazon reviews with product-search queries.
    Amazon(Amazon),
}

impl Source {
    pub(super) fn read(&self, log: &mut Log, intake: &mut Intake, settings: &Settings) -> Result<()> {
        match self {
            Source::Events(source) => source.read(log, intake, settings),
            Source::Qilin(source) => source.read(log, intake),
            Source::KuaiSar(source) => source.read(log, intake),
            Source::Amazon(source) => source.read(log, intake, settings),
        }
    }
    pub(super) fn texts(&self, texts: &mut ItemTexts, intake: &mut Intake) -> Result<()> {
        match self {
            Source::Events(source) => source.texts(texts, intake),
            Source::Qilin(source) => source.texts(texts, intake),
            Source::KuaiSar(source) => source.texts(texts, intake),
            Source::Amazon(source) => source.texts(texts, intake),
        }
    }
    /// Changes settings to what published work did with this source.
    pub fn publish(&self, settings: &mut Settings) {
        settings.exclude_pairs = false;
        // The kinds are known, so this cannot fail.
        let _ = settings.negatives.set("uniform:99");
        debug_assert!(settings.negatives.wants(NegativeKind::Uniform));
        match self {
            Source::Qilin(_) => {
                settings.history = HistoryRule::Log;
                settings.expand_targets = true;
                (settings.core.user, settings.core.item, settings.core.per_task) = (3, 3, 3);
                settings.core.count_shown = true;
            }
            Source::Amazon(_) => {
                settings.history = HistoryRule::SearchSeesAll;
                (settings.min_history, settings.max_history, settings.train_sample) = (5, 20, 0.3);
            }
            Source::Events(_) | Source::KuaiSar(_) => {}
        }
    }
}

/// Takes up the texts of the items that are left.
pub(super) struct ItemTexts<'a> {
    ids: &'a Ids,
    alive: &'a Alive,
    chars: usize,
    pub texts: Vec<Option<Box<str>>>,
    pub known: Vec<bool>,
}

impl<'a> ItemTexts<'a> {
    pub fn new(ids: &'a Ids, alive: &'a Alive, chars: usize) -> Self {
        Self { ids, alive, chars, texts: vec![None; ids.len()], known: vec![false; ids.len()] }
    }
    /// The text of an item, if it is one that is left.
    pub fn set(&mut self, id: &str, text: Option<&str>) -> Checked<()> {
        let Some(number) = self.ids.find(id).filter(|n| self.alive.item(*n)) else { return Ok(()) };
        if std::mem::replace(&mut self.known[number as usize], true) {
            let error = Error::data(format!("item `{id}` is listed twice")).at("item");
            return Err(Fault::new("repeated item", error.remedy("keep one row of every item")));
        }
        let words = text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let cut: String = words.chars().take(self.chars).collect();
        self.texts[number as usize] = (!cut.trim().is_empty()).then(|| cut.trim().into());
        Ok(())
    }
}

/// A table, or all tables of a directory by name.
pub(super) fn tables(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let found: Vec<PathBuf> = files_below(path)?.into_iter().filter(|p| table::is_table(p)).collect();
    match found.is_empty() {
        true => Err(Error::usage("no tables in this directory")
            .at(path.display())
            .remedy("files that end in .csv, .tsv, .jsonl (each also .gz or .zst) or .parquet")),
        false => Ok(found),
    }
}

/// Files of a directory and those of its subdirectories, by name.
pub(super) fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut waiting) = (Vec::new(), vec![(dir.to_path_buf(), 0)]);
    while let Some((dir, depth)) = waiting.pop() {
        let failed = |e| Error::io("read the directory", &dir, e);
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
            if hidden {
                continue;
            }
            if path.is_dir() && depth < 3 {
                waiting.push((path, depth + 1));
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Tables below `dir` that belong to `name`: `name.csv`, `name/...parquet`, `name-00000-of-00001.parquet`.
pub(super) fn named(dir: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let belongs = |path: &PathBuf| {
        let inside = path.strip_prefix(dir).unwrap_or(path);
        inside.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
        })
    };
    Ok(files_below(dir)?.into_iter().filter(|p| table::is_table(p) && belongs(p)).collect())
}

/// What to say when a source's files are not where they were looked for.
pub(super) fn missing(dir: &Path, what: &str, remedy: &str) -> Error {
    Error::usage(format!("no {what} here")).at(dir.display()).remedy(remedy)
}
