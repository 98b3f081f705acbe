//! A run's own catalogue laid over the data of today.

use super::catalogue::{ItemChanges, first, joined};
use super::sources::{differences, documents, records};
use super::{Run, Sources};
use crate::config::Config;
use crate::data::{Catalogue, Dataset, GeneralText, ItemIdentity, Prompts, Split};
use crate::error::{Error, Result};
use std::path::Path;

/// What a command reads of the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Which items it lists, to say what changed; the run does without.
    Items,
    /// Everything, to measure with what is there now.
    Tests,
    /// Everything, to go on training: what a run learns and is judged by must be what it was.
    Training,
}

/// The data of a run.
#[derive(Debug, Default)]
pub struct RunData {
    /// Items numbered as the model's tokens, and records in these numbers.
    pub data: Dataset,
    /// Its general text.
    pub general: GeneralText,
    /// What changed since the run was made, and what was done about it.
    pub notes: Vec<String>,
    /// Whether what is measured is measured on what it was when the run was made.
    pub same_tests: bool,
}

/// What there is, before it is compared with what there was.
struct Found {
    all: RunData,
    /// How the items differ.
    changes: ItemChanges,
    /// Items that can be ranked: the first so many.
    known: u32,
}

impl Run {
    /// The data of the run under `config`, the run's settings or what a command made of them.
    ///
    /// # Errors
    /// Data that cannot be read; for [`Reads::Training`], records that are not those the run was started with.
    pub fn data(&self, config: &Config, reads: Reads) -> Result<RunData> {
        // An item that was added has a meaning where items are their texts.
        let joins = config.data.item_identity == ItemIdentity::Text && reads != Reads::Training;
        let Found { mut all, changes, known } = match reads {
            Reads::Items => self.items_only(config),
            _ => self.everything(config)?,
        };
        let known = if joins { known } else { self.items.len() as u32 };
        if reads == Reads::Training {
            self.check_training(config, &all.data)?;
        }
        let fate = match (joins, reads) {
            (true, _) => "they are ranked by their texts, if they have any",
            (_, Reads::Training) => "they are no part of this run",
            _ => "this model has no tokens for them and cannot rank them; train anew to have them",
        };
        all.notes.extend(changes.notes(fate));
        if reads != Reads::Items {
            self.compare(&mut all);
            leave_out_unknown(config, &mut all, known)?;
        }
        all.data.items = first(&all.data.items, known);
        let since = |note: &String| format!("since this run was made: {note}");
        all.notes = all.notes.iter().map(since).collect();
        Ok(all)
    }

    /// The items and tasks without any record.
    fn items_only(&self, config: &Config) -> Found {
        let mut all = RunData::default();
        let dir = Path::new(&config.data.path);
        let listed = Dataset::listed_items(dir, &config.data).unwrap_or_else(|error| {
            let what = format!("{}: {}, and this command does without", dir.display(), error.what());
            all.notes.push(what);
            self.items.clone()
        });
        let (items, known) = joined(&self.items, &listed);
        all.data = Dataset { items, tasks: config.data.tasks.clone(), ..Dataset::default() };
        Found { all, changes: ItemChanges::between(&self.items, &listed), known }
    }

    /// Everything in the data directory, with the run's items first.
    fn everything(&self, config: &Config) -> Result<Found> {
        let dir = Path::new(&config.data.path);
        if !dir.is_dir() {
            return Err(Error::usage("the data of this run is not there any more")
                .at(dir.display())
                .remedy("put it back, or say where it is with --set data.path=DIR"));
        }
        let (mut changes, mut known) = (ItemChanges::default(), 0);
        let choose = |listed: Catalogue| {
            changes = ItemChanges::between(&self.items, &listed);
            let (items, rankable) = joined(&self.items, &listed);
            known = rankable;
            items
        };
        let data = Dataset::load_with(dir, &config.data, choose)?;
        let general = GeneralText::load(&data.general, &config.data)?;
        let all = RunData { data, general, notes: Vec::new(), same_tests: true };
        Ok(Found { all, changes, known })
    }

    /// Refuses to learn from, and to be judged during training by, other records than the run was started with.
    fn check_training(&self, config: &Config, data: &Dataset) -> Result<()> {
        let mut differ = differences(&self.sources.records, &records(data), "records");
        differ.retain(|name, _| name == "train" || name == "valid");
        if differ.is_empty() {
            return Ok(());
        }
        let what = differ.into_values().collect::<Vec<_>>().join("; ");
        Err(Error::usage(format!("the records that this run learns from are not what they were ({what})"))
            .at(&config.data.path)
            .remedy("put them back, or begin a new run with --model RUN/model, which keeps the tokens"))
    }

    /// Says how records and general text differ from what the run was made of.
    fn compare(&self, all: &mut RunData) {
        let Sources { records: then, general: text, .. } = &self.sources;
        let of_records = differences(then, &records(&all.data), "records");
        let of_text = differences(text, &documents(&all.general), "documents of general text");
        let tests = of_records.keys().any(|name| name.starts_with("test"));
        all.same_tests = !tests && !of_text.contains_key("held-out");
        all.notes.extend(of_records.into_values().chain(of_text.into_values()));
    }
}

/// Takes items from number `known` on out of the records, and records that cannot do without them.
fn leave_out_unknown(config: &Config, all: &mut RunData, known: u32) -> Result<()> {
    let prompts = Prompts::with_chat(&config.data, None, None)?;
    let RunData { data: Dataset { train, valid, test, extra, tasks, .. }, notes, .. } = all;
    for split in [train, valid, test].into_iter().chain(extra) {
        let (left_out, shortened) = without_unknown(split, known, &prompts, tasks);
        if left_out + shortened > 0 {
            notes.push(format!(
                "{}: {left_out} records are left out, {shortened} shortened: they name items that the model does not \
                 know",
                split.name
            ));
        }
    }
    Ok(())
}

/// Counts the records left out and those that lost items of history or negatives.
fn without_unknown(split: &mut Split, known: u32, prompts: &Prompts, tasks: &[String]) -> (usize, usize) {
    let (before, mut shortened) = (split.records.len(), 0);
    split.records.retain_mut(|record| {
        let count = record.history.len() + record.target.len() + record.negatives.len();
        let no_target = record.target.is_empty();
        for list in [&mut record.history, &mut record.target, &mut record.negatives] {
            if list.iter().any(|n| *n >= known) {
                *list = list.iter().copied().filter(|n| *n < known).collect();
            }
        }
        let lost = count > record.history.len() + record.target.len() + record.negatives.len();
        let (history, query) = (!record.history.is_empty(), record.query.is_some());
        let mute = lost && prompts.missing(&tasks[record.task as usize], history, query).is_some();
        let kept = !mute && no_target == record.target.is_empty();
        shortened += usize::from(kept && lost);
        kept
    });
    (before - split.records.len(), shortened)
}
