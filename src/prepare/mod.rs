//! Public logs and event tables into the engine's data directory.
//!
//! ```text
//! source ─> tables ─> log (events by user, in time order) ─> k-core ─> requests, split, histories
//!                                     ─> pairs held out ─> negatives ─> rows, card
//! ```
//!
//! Events are cut into parts by user and wait on disk, so memory holds the names of users and items, the items'
//! texts, a part, and no rows. Every random decision is a pure function of the seed: the same input gives the
//! same bytes on every machine. The directory is written aside and appears whole.

mod alignment;
mod amazon;
mod bm25;
mod bounds;
mod build;
mod card;
mod cell;
mod check;
mod columns;
mod events;
mod ids;
mod inputs;
mod intake;
mod kcore;
mod kuaisar;
mod leaks;
mod literal;
mod log;
mod negatives;
mod notes;
mod qilin;
mod reader;
mod requests;
mod settings;
mod sheet;
mod source;
mod spool;
mod staging;
mod synth;
mod table;
mod target;
mod time;
mod unit;

pub use amazon::Amazon;
pub use build::BuildReport;
pub use card::Card;
pub use check::{Check, check};
pub use columns::EventColumns;
pub use events::Events;
pub use intake::{Counts, Reason, Watch};
pub use kcore::CoreReport;
pub use kuaisar::KuaiSar;
pub use leaks::Leaks;
pub use qilin::Qilin;
pub use settings::{Align, Core, Format, HistoryRule, NegativeKind, Negatives, Settings, SplitRule};
pub use source::Source;
pub use synth::{World, synth};
pub use table::Reading;
pub use target::Target;
pub use time::moment;
pub use unit::Unit;

use crate::error::{self, Error, Result};
use bounds::Bounds;
use build::{Builder, Built, SPLITS};
use intake::Intake;
use kcore::Alive;
use log::{Log, Sorting};
use negatives::Sampler;
use rayon::prelude::*;
use reader::ItemTexts;
use sheet::{Names, Output, Sheet};
use spool::{PARTS, all_events};
use staging::Staging;
use std::path::Path;
use std::sync::Mutex;

/// Makes a data directory of a source.
///
/// # Errors
/// What is asked for and cannot be, before anything is read; a bad row (file, line, column, value, remedy), a split
/// without rows, a catalogue that is too big, the file system, an interruption. Then there is no directory.
pub fn run(source: &Source, settings: &Settings, target: &Target, watch: &mut Watch) -> Result<Card> {
    settings.validate()?;
    target.check_general()?;
    let mut reader = source.open(settings)?;
    let staging = Staging::begin(&target.out, target.overwrite)?;
    let spool = tempfile::tempdir_in(staging.path()).map_err(|e| Error::io("create", staging.path(), e))?;
    let mut log = Log::new(spool.path(), settings.time_unit);
    let mut intake = Intake::new(settings.skip_bad_rows, watch);
    reader.read(&mut log, &mut intake, settings)?;
    let (mut counts, mut notes) = (intake.counts, intake.notes);
    check_tasks(&log, settings)?;
    let sorting = log.sort(&mut |done, all| watch.at("sorting", done, all))?;
    counts.drop("no event of the pair with a time", sorting.untimed);
    let sizes = (log.users.len(), log.items.len(), log.tasks.len());
    let (alive, core) =
        kcore::core(&log.spool, sizes, settings.core, &mut |pass| watch.at("k-core", pass, 0))?;
    check_size(settings, &core)?;
    let mut intake = Intake::new(settings.skip_bad_rows, watch);
    let mut texts = ItemTexts::new(&log.items, &alive, settings.text_chars);
    reader.texts(&mut texts, &mut intake)?;
    counts.add(intake.counts);
    notes.append(&mut intake.notes);
    log.texts = texts.texts;
    let bounds = Bounds::of(&log, &alive, settings.split)?;
    let written = write(&log, &alive, settings, bounds.first(), staging.path(), watch)?;
    check_splits(&log, &written, settings, &sorting, &bounds)?;
    let items = write_items(&log, &alive, settings, staging.path())?;
    target.copy_general(staging.path())?;
    notes.extend(warnings(&log, settings, &written, items));
    notes.extend(target.general_note());
    let card = Card {
        engine: env!("CARGO_PKG_VERSION"),
        source: serde_json::to_value(source).unwrap_or_default(),
        settings: serde_json::to_value(settings).unwrap_or_default(),
        read: counts,
        events: log.events,
        repeated: sorting.repeated,
        core,
        items: items.0,
        items_with_text: items.1,
        bounds: matches!(settings.split, SplitRule::Time { .. }).then_some(bounds.first()),
        leak_rate_before: written.leaks_before.rate(),
        leak_rate: written.leaks.rate(),
        warnings: notes,
        written,
    };
    spool.close().map_err(|e| Error::io("remove the temporary files of", staging.path(), e))?;
    card.save(staging.path())?;
    staging.commit()?;
    Ok(card)
}

/// What was named must be a task of the log.
fn check_tasks(log: &Log, settings: &Settings) -> Result<()> {
    let Some(task) = settings.negatives.tasks().find(|task| !log.tasks.iter().any(|t| t == task)) else {
        return Ok(());
    };
    let near = error::nearest(task, log.tasks.iter().map(String::as_str));
    let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
    Err(Error::usage(format!("the log has no task `{task}`"))
        .at("--negatives")
        .remedy(format!("{near}there are: {}", log.tasks.join(", "))))
}

fn check_size(settings: &Settings, core: &CoreReport) -> Result<()> {
    if core.users_left == 0 || core.items_left == 0 {
        return Err(Error::data(format!(
            "nothing is left: no user has {} events with items that have {}",
            settings.core.user, settings.core.item
        ))
        .at("--min-user, --min-item, --min-per-task")
        .remedy("lower them"));
    }
    if core.items_left > settings.max_items as u64 {
        return Err(Error::data(format!(
            "{} items are more than {}: each would be a row of the model's vocabulary",
            core.items_left, settings.max_items
        ))
        .at("--max-items")
        .remedy("raise --min-item, or raise --max-items and use data.item_identity = \"semantic\""));
    }
    Ok(())
}

fn check_splits(
    log: &Log,
    written: &BuildReport,
    settings: &Settings,
    sorting: &Sorting,
    bounds: &Bounds,
) -> Result<()> {
    let has = |split: &str| {
        written.rows.get(split).is_some_and(|rows| log.tasks.iter().any(|task| rows.contains_key(task)))
    };
    let Some(split) = SPLITS.into_iter().find(|split| !has(split)) else { return Ok(()) };
    let reasons: Vec<String> = written.dropped.iter().map(|(r, n)| format!("{n} x {r}")).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let error = Error::data(format!("no {split} rows are left{why}")).at("--split");
    if sorting.several > 0 && sorting.at_one_time == sorting.several {
        return Err(error.remedy(
            "all events of a user have the same time, so none is history of another; is it the right column? \
             --row-order takes the order of the rows instead",
        ));
    }
    Err(error.remedy(match settings.split {
        SplitRule::LeaveOneOut => {
            "leave-one-out needs users with three requests of a task, the first of them with a history; lower \
             --min-history, or choose another split"
                .into()
        }
        SplitRule::Time { .. } => bounds.advice(),
        SplitRule::Users { .. } => "raise --valid-share or --test-share: too few users were drawn".into(),
        SplitRule::Given => {
            "the source's own test has no requests that are left; lower --min-user and --min-item, or choose another \
             split"
                .into()
        }
    }))
}

/// Writes the splits.
fn write(
    log: &Log,
    alive: &Alive,
    settings: &Settings,
    bounds: (i64, i64),
    dir: &Path,
    watch: &mut Watch,
) -> Result<BuildReport> {
    let names = Names::new(&log.items, &log.tasks);
    let searches = &log.searches;
    let items = alive.items();
    let mut popularity = vec![0u64; log.items.len()];
    if settings.negatives.wants(NegativeKind::Popularity) {
        let builder = Builder::new(settings, (&log.users, &names), alive, bounds, searches, None);
        each_part(
            log,
            watch,
            "counting",
            |all| builder.train_targets(all),
            |targets: Vec<u32>| {
                targets.into_iter().for_each(|t| popularity[t as usize] += 1);
                Ok(())
            },
        )?;
    }
    if settings.negatives.wants(NegativeKind::Bm25) && log.texts.iter().all(Option::is_none) {
        return Err(Error::usage("BM25 negatives need texts of the items, and there are none")
            .at("--negatives")
            .remedy("give the items' texts (`prepare events --items FILE`), or use uniform negatives"));
    }
    let sampler = Sampler::new(settings, items, &popularity, &log.texts);
    let builder = Builder::new(settings, (&log.users, &names), alive, bounds, searches, Some(&sampler));
    let outputs = SPLITS.map(|split| Output::create(dir, split, settings.format));
    let [train, valid, test] = outputs;
    let mut outputs = [train?, valid?, test?];
    let mut report = BuildReport::default();
    // Sheets that were written serve again: their memory is at hand.
    let spare = Mutex::<Vec<[Sheet; 3]>>::default();
    each_part(
        log,
        watch,
        "writing",
        |all| {
            let sheets = spare.lock().ok().and_then(|mut spare| spare.pop());
            builder.build(all, sheets.unwrap_or_else(|| SPLITS.map(|_| Sheet::new(settings.format))))
        },
        |mut built: Built| {
            report.add(&built.report);
            let mut sheets = outputs.iter_mut().zip(&mut built.sheets);
            sheets.try_for_each(|(output, sheet)| output.append(sheet))?;
            if let Ok(mut spare) = spare.lock() {
                spare.push(built.sheets);
            }
            Ok(())
        },
    )?;
    if !settings.align.is_empty() {
        let (mut sheet, counts) = alignment::rows(log, alive, &names, settings)?;
        outputs[0].append(&mut sheet)?;
        for (align, rows) in counts {
            report.rows.entry(SPLITS[0]).or_default().insert(align.task().into(), rows);
        }
    }
    outputs.into_iter().try_for_each(Output::finish)?;
    Ok(report)
}

/// Works on all parts, several at a time, and hands the results over in their order, those of some parts while the next
/// are worked on.
fn each_part<T: Send>(
    log: &Log,
    watch: &mut Watch,
    stage: &'static str,
    work: impl Fn(&[spool::Event]) -> T + Sync,
    mut take: impl FnMut(T) -> Result<()> + Send,
) -> Result<()> {
    let load = |number| {
        let bytes = log.spool.load(number)?;
        Ok(work(&all_events(&bytes)))
    };
    let mut done = Vec::new();
    let step = rayon::current_num_threads().max(1);
    for first in (0..PARTS).step_by(step) {
        watch.at(stage, first as u64, PARTS as u64)?;
        let numbers = (first..PARTS.min(first + step)).into_par_iter();
        let before = std::mem::take(&mut done);
        let (taken, found) = rayon::join(
            || before.into_iter().try_for_each(&mut take),
            || numbers.map(load).collect::<Result<Vec<T>>>(),
        );
        taken?;
        done = found?;
    }
    done.into_iter().try_for_each(take)
}

fn write_items(log: &Log, alive: &Alive, settings: &Settings, dir: &Path) -> Result<(u64, u64)> {
    let mut output = Output::create(dir, "items", settings.format)?;
    let numbers = alive.items();
    for chunk in numbers.chunks(1 << 14) {
        let row = |n: &u32| (log.items.name(*n), log.texts.get(*n as usize).and_then(|t| t.as_deref()));
        let mut sheet = Sheet::items(&chunk.iter().map(row).collect::<Vec<_>>(), settings.format)?;
        output.append(&mut sheet)?;
    }
    output.finish()?;
    let with_text = numbers.iter().filter(|n| log.texts.get(**n as usize).is_some_and(Option::is_some));
    Ok((numbers.len() as u64, with_text.count() as u64))
}

fn warnings(log: &Log, settings: &Settings, written: &BuildReport, items: (u64, u64)) -> Vec<String> {
    let mut notes = Vec::new();
    for (task, split) in log.tasks.iter().flat_map(|t| SPLITS.map(|s| (t, s))) {
        if written.rows.get(split).is_none_or(|rows| !rows.contains_key(task)) {
            notes.push(format!("task {task} has no {split} rows"));
        }
    }
    if items.1 < items.0 {
        notes.push(format!(
            "{} of {} items have no text: only atomic item tokens work",
            items.0 - items.1,
            items.0
        ));
    }
    if written.leaks.any > 0 {
        let rate = 100.0 * written.leaks.rate();
        let remedy = if settings.exclude_pairs { "" } else { " (as published; leave --published-split out)" };
        notes.push(format!("{rate:.1} % of the test pairs are known from training{remedy}"));
    }
    if written.short_of_negatives > 0 {
        notes.push(format!("{} rows have fewer negatives than asked for", written.short_of_negatives));
    }
    notes
}
