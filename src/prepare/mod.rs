//! Public logs and event tables into the engine's data directory.
//!
//! ```text
//! source ─> log (events by user, in time order) ─> k-core ─> requests, split, histories
//!                                     ─> pairs held out ─> negatives ─> rows, card
//! ```
//!
//! Events are cut into parts by user and wait on disk, so memory holds the names of users and items, the items'
//! texts, a part, and no rows. Every random decision is a pure function of the seed: the same input gives the
//! same bytes on every machine. The directory is written aside and appears whole.

mod amazon;
mod build;
mod card;
mod cell;
mod check;
mod events;
mod ids;
mod intake;
mod kcore;
mod kuaisar;
mod leaks;
mod literal;
mod log;
mod negatives;
mod qilin;
mod requests;
mod settings;
mod sheet;
mod source;
mod spool;
mod staging;
mod synth;
mod table;

pub use amazon::Amazon;
pub use build::BuildReport;
pub use card::Card;
pub use check::{Check, check};
pub use events::{EventColumns, Events};
pub use intake::{Counts, Reason, Watch};
pub use kcore::CoreReport;
pub use kuaisar::KuaiSar;
pub use leaks::Leaks;
pub use qilin::Qilin;
pub use settings::{Core, Format, HistoryRule, NegativeKind, Negatives, Settings, SplitRule};
pub use source::Source;
pub use synth::{World, synth};

use crate::data::{DataSettings, GeneralText};
use crate::error::{Error, Result};
use build::{Builder, Built, SPLITS};
use intake::Intake;
use kcore::Alive;
use log::Log;
use negatives::Sampler;
use rayon::prelude::*;
use sheet::{Names, Output, Sheet};
use source::ItemTexts;
use spool::{PARTS, UNTIMED, WANTED, events as events_of};
use staging::Staging;
use std::path::{Path, PathBuf};

/// Where the result goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The data directory.
    pub out: PathBuf,
    /// Replace a directory that `prepare` made before.
    pub overwrite: bool,
    /// A file of general text to copy into it.
    pub general: Option<PathBuf>,
}

/// Makes a data directory of a source.
///
/// # Errors
/// A bad row (file, line, column, value, remedy), a split without rows, a catalogue that is too big, the file
/// system, an interruption. Then there is no directory.
pub fn run(source: &Source, settings: &Settings, target: &Target, watch: &mut Watch) -> Result<Card> {
    settings.validate()?;
    let staging = Staging::begin(&target.out, target.overwrite)?;
    let spool = tempfile::tempdir_in(staging.path()).map_err(|e| Error::io("create", staging.path(), e))?;
    let mut log = Log::new(spool.path());
    let mut intake = Intake::new(settings.skip_bad_rows, watch);
    source.read(&mut log, &mut intake, settings)?;
    let mut counts = intake.counts;
    let (repeated, untimed) = log.sort(&mut |done, all| watch.at("sorting", done, all))?;
    counts.drop("no event of the pair with a time", untimed);
    let sizes = (log.users.len(), log.items.len(), log.tasks.len());
    let (alive, core) =
        kcore::core(&log.spool, sizes, settings.core, &mut |pass| watch.at("k-core", pass, 0))?;
    check_size(settings, &core)?;
    let mut intake = Intake::new(settings.skip_bad_rows, watch);
    let mut texts = ItemTexts::new(&log.items, &alive, settings.text_chars);
    source.texts(&mut texts, &mut intake)?;
    let of_items = intake.counts;
    log.texts = texts.texts;
    let bounds = bounds(&log, &alive, settings.split)?;
    let written = write(&log, &alive, settings, bounds, staging.path(), watch)?;
    check_splits(&written)?;
    let items = write_items(&log, &alive, settings, staging.path())?;
    if let Some(general) = &target.general {
        copy_general(general, staging.path())?;
    }
    counts.rows += of_items.rows;
    for (reason, of_items) in of_items.bad {
        let all = counts.bad.entry(reason).or_default();
        all.rows += of_items.rows;
        if all.first.is_empty() {
            all.first = of_items.first;
        }
    }
    let card = Card {
        engine: env!("CARGO_PKG_VERSION"),
        source: serde_json::to_value(source).unwrap_or_default(),
        settings: serde_json::to_value(settings).unwrap_or_default(),
        read: counts,
        events: log.events,
        repeated,
        core,
        items: items.0,
        items_with_text: items.1,
        bounds: matches!(settings.split, SplitRule::Time { .. }).then_some(bounds),
        leak_rate_before: written.leaks_before.rate(),
        leak_rate: written.leaks.rate(),
        warnings: warnings(&log, settings, &written, items),
        written,
    };
    spool.close().map_err(|e| Error::io("remove the temporary files of", staging.path(), e))?;
    card.save(staging.path())?;
    staging.commit()?;
    Ok(card)
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

fn check_splits(written: &BuildReport) -> Result<()> {
    for split in SPLITS {
        if written.of(split) == 0 {
            let reasons: Vec<String> = written.dropped.iter().map(|(r, n)| format!("{n} x {r}")).collect();
            let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
            return Err(Error::data(format!("no {split} rows are left{why}")).at("--split").remedy(
                "leave-one-out needs users with three requests of a task, the first of them with a history; \
                 lower --min-history, or choose another split",
            ));
        }
    }
    Ok(())
}

/// First times of validation and test.
fn bounds(log: &Log, alive: &Alive, rule: SplitRule) -> Result<(i64, i64)> {
    let SplitRule::Time { valid, test, valid_from, test_from } = rule else { return Ok((0, 0)) };
    /// Bins of the histogram that shares are taken from.
    const BINS: usize = 1 << 16;
    let each = |act: &mut dyn FnMut(i64)| -> Result<()> {
        for part in 0..PARTS {
            let bytes = log.spool.load(part)?;
            let kept = events_of(&bytes).filter(|e| e.is(WANTED) && !e.is(UNTIMED));
            let kept = kept.filter(|e| alive.users[e.head.user as usize] && alive.item(e.head.item));
            kept.for_each(|e| act(e.head.time));
        }
        Ok(())
    };
    let (mut first, mut last, mut total) = (i64::MAX, i64::MIN, 0u64);
    each(&mut |t| (first, last, total) = (first.min(t), last.max(t), total + 1))?;
    let span = (last as i128 - first as i128).max(0) as u128 + 1;
    let mut bins = vec![0u64; BINS];
    let bin = |t: i64| ((t as i128 - first as i128) as u128 * BINS as u128 / span) as usize;
    each(&mut |t| bins[bin(t)] += 1)?;
    // The earliest bound that leaves at most the share behind it; times of one bin stay together.
    let from = |share: f64| -> i64 {
        let most = (share * total as f64) as u64;
        let mut behind = 0;
        for (number, count) in bins.iter().enumerate().rev() {
            behind += count;
            if behind > most {
                let offset = ((number as u128 + 1) * span).div_ceil(BINS as u128);
                return (first as i128 + offset as i128).min(i64::MAX as i128) as i64;
            }
        }
        first
    };
    let test = test_from.unwrap_or_else(|| from(test));
    Ok((valid_from.unwrap_or_else(|| from(valid + test_share(rule))).min(test), test))
}

fn test_share(rule: SplitRule) -> f64 {
    if let SplitRule::Time { test, .. } = rule { test } else { 0.0 }
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
    each_part(
        log,
        watch,
        "writing",
        |all| builder.build(all),
        |built: Built| {
            report.add(&built.report);
            outputs.iter_mut().zip(built.sheets).try_for_each(|(output, sheet)| output.append(sheet))
        },
    )?;
    outputs.into_iter().try_for_each(Output::finish)?;
    Ok(report)
}

/// Works on all parts, several at a time, and hands the results over in their order.
fn each_part<T: Send>(
    log: &Log,
    watch: &mut Watch,
    stage: &'static str,
    work: impl Fn(&[spool::Event]) -> T + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let step = rayon::current_num_threads().max(1);
    for first in (0..PARTS).step_by(step) {
        watch.at(stage, first as u64, PARTS as u64)?;
        let numbers = (first..PARTS.min(first + step)).into_par_iter();
        let results: Vec<Result<T>> = numbers
            .map(|number| {
                let bytes = log.spool.load(number)?;
                Ok(work(&events_of(&bytes).collect::<Vec<_>>()))
            })
            .collect();
        results.into_iter().try_for_each(|r| r.and_then(&mut take))?;
    }
    Ok(())
}

fn write_items(log: &Log, alive: &Alive, settings: &Settings, dir: &Path) -> Result<(u64, u64)> {
    let mut output = Output::create(dir, "items", settings.format)?;
    let numbers = alive.items();
    for chunk in numbers.chunks(1 << 14) {
        let row = |n: &u32| (log.items.name(*n), log.texts.get(*n as usize).and_then(|t| t.as_deref()));
        output.append(Sheet::items(&chunk.iter().map(row).collect::<Vec<_>>(), settings.format)?)?;
    }
    output.finish()?;
    let with_text = numbers.iter().filter(|n| log.texts.get(**n as usize).is_some_and(Option::is_some));
    Ok((numbers.len() as u64, with_text.count() as u64))
}

/// Copies general text, after reading it as training will.
fn copy_general(from: &Path, dir: &Path) -> Result<()> {
    let extension = from.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["txt", "jsonl"].contains(&extension) {
        return Err(Error::usage("general text is a .txt or .jsonl file")
            .at(from.display())
            .remedy("a document a line, or a {\"text\": ..} a line"));
    }
    GeneralText::load(&[from.to_path_buf()], &DataSettings::default())?;
    let to = dir.join(format!("general.{extension}"));
    std::fs::copy(from, &to).map(|_| ()).map_err(|e| Error::io("copy", from, e))
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
