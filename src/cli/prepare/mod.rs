//! `gems-engine prepare`.

mod args;
mod reading;
mod sample;

use super::options::OutputArgs;
use crate::data::DataSettings;
use crate::error::{Error, Result};
use crate::model::hub;
use crate::prepare::{
    Amazon, EventColumns, Events, KuaiSar, Qilin, Reading, Settings, Source, SplitRule, Target, Watch, World,
    check, moment, run as prepare, synth,
};
use crate::report::Progress;
use args::{Command, CommonArgs, EventsArgs, SplitName, SynthArgs, WriteArgs};
use clap::Args;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Make a data directory from logs, or check one.
///
/// Example: gems-engine prepare events logs/ --items items.csv --out data
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct PrepareArgs {
    /// Check a data directory (as `prepare check DIR`).
    #[arg(long, value_name = "DIR")]
    check: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &PrepareArgs) -> Result<()> {
    match (&args.check, &args.command) {
        (Some(dir), _) => check_directory(dir, None, args.output.json),
        (None, Some(Command::Check(args))) => {
            check_directory(&args.dir, args.model.as_deref(), args.output.json)
        }
        (None, Some(Command::Synth(args))) => make_world(args),
        (None, Some(Command::Sample(args))) => sample::sample(args),
        (None, Some(Command::Events(args))) => {
            from_source(Source::Events(Box::new(events(args)?)), &args.common)
        }
        (None, Some(Command::Qilin(args))) => {
            let (dir, contents) = (args.dir.clone(), args.contents);
            from_source(Source::Qilin(Qilin { dir, contents }), &args.common)
        }
        (None, Some(Command::KuaiSar(args))) => {
            from_source(Source::KuaiSar(KuaiSar { dir: args.dir.clone() }), &args.common)
        }
        (None, Some(Command::Amazon(args))) => {
            from_source(Source::Amazon(Amazon { dir: args.dir.clone() }), &args.common)
        }
        (None, None) => Err(Error::usage("nothing to do")
            .remedy("prepare events|qilin|kuaisar|amazon|synth .. --out DIR, or prepare check DIR")),
    }
}

fn events(args: &EventsArgs) -> Result<Events> {
    let mut columns = EventColumns::default();
    args.columns.iter().try_for_each(|c| columns.set(c))?;
    args.item_columns.iter().try_for_each(|c| columns.set_item(c))?;
    args.query_columns.iter().try_for_each(|c| columns.set_query(c))?;
    let [reading, item_reading, query_reading] = reading::of(&args.text)?;
    let own = |other: Reading| (other != reading).then_some(other);
    let (item_reading, query_reading) = (own(item_reading), own(query_reading));
    let (files, items, queries) = (args.files.clone(), args.items.clone(), args.queries.clone());
    let (row_order, wanted) = (args.row_order, args.wanted.clone());
    Ok(Events { files, items, queries, columns, reading, item_reading, query_reading, row_order, wanted })
}

/// How the log is split; flags of another way are refused.
fn split(args: &CommonArgs) -> Result<SplitRule> {
    let shares = [("--valid-share", args.valid_share), ("--test-share", args.test_share)];
    let times = [("--valid-from", &args.valid_from), ("--test-from", &args.test_from)];
    let refuse = |flag: &str, what: &str, remedy: &str| Err(Error::usage(what).at(flag).remedy(remedy));
    let by_time = args.split == SplitName::Time;
    if let (Some((flag, _)), false) = (times.iter().find(|(_, t)| t.is_some()), by_time) {
        return refuse(flag, "only a split by time begins at a time", "add --split time, or leave it out");
    }
    let by_share = by_time || args.split == SplitName::Users;
    if let (Some((flag, _)), false) = (shares.iter().find(|(_, s)| s.is_some()), by_share) {
        return refuse(
            flag,
            "this split takes no shares",
            "add --split time or --split users, or leave it out",
        );
    }
    for ((share, a), (time, b)) in shares.iter().zip(times) {
        if a.is_some() && b.is_some() {
            let what = "a split begins at a time or takes a share";
            return refuse(&format!("{share}, {time}"), what, "leave one of them out");
        }
    }
    let time = |(flag, text): (&str, &Option<String>)| {
        text.as_deref().map(|t| moment(t, args.time_unit).map_err(|e| e.at(flag))).transpose()
    };
    let (valid, test) = (args.valid_share.unwrap_or(0.1), args.test_share.unwrap_or(0.1));
    Ok(match args.split {
        SplitName::LeaveOneOut => SplitRule::LeaveOneOut,
        SplitName::Given => SplitRule::Given,
        SplitName::Users => SplitRule::Users { valid, test },
        SplitName::Time => {
            SplitRule::Time { valid, test, valid_from: time(times[0])?, test_from: time(times[1])? }
        }
    })
}

fn settings(args: &CommonArgs, source: &Source) -> Result<Settings> {
    let mut s = Settings {
        seed: args.write.seed,
        format: args.write.format,
        skip_bad_rows: args.skip_bad_rows,
        min_label: args.min_label,
        time_unit: args.time_unit,
        split: split(args)?,
        align: args.align.clone(),
        ..Settings::default()
    };
    if args.published_split {
        source.publish(&mut s);
    }
    // What is said on the command line wins over what was published.
    macro_rules! take {
        ($($flag:ident => $place:expr),*) => {
            $(if let Some(value) = args.$flag { $place = value; })*
        };
    }
    take!(min_user => s.core.user, min_item => s.core.item, min_per_task => s.core.per_task,
        history => s.history, max_history => s.max_history, min_history => s.min_history,
        train_sample => s.train_sample, text_chars => s.text_chars, max_items => s.max_items);
    args.negatives.iter().try_for_each(|n| s.negatives.set(n))?;
    Ok(s)
}

fn target(args: &WriteArgs) -> Target {
    Target { out: args.out.clone(), overwrite: args.overwrite, general: args.general.clone() }
}

/// Runs `work` under a progress display and a handler of interrupts.
fn watched<T>(quiet: bool, work: impl FnOnce(&mut Watch) -> Result<T>) -> Result<T> {
    let interrupted = super::catch_interrupts()?;
    let (mut shown, mut progress) = ("", None::<Progress>);
    let mut tick = |stage: &'static str, done: u64, total: u64| {
        if stage != shown {
            shown = stage;
            if let Some(mut before) = progress.replace(Progress::new(stage, total, quiet)) {
                before.finish();
            }
        }
        if let Some(progress) = &mut progress {
            progress.tick(done, String::new);
        }
    };
    let result = work(&mut Watch { tick: &mut tick, interrupted });
    if let Some(mut progress) = progress {
        progress.finish();
    }
    result
}

fn from_source(source: Source, args: &CommonArgs) -> Result<()> {
    let settings = settings(args, &source)?;
    let (target, quiet) = (target(&args.write), args.write.output.json);
    let card = watched(quiet, |watch| prepare(&source, &settings, &target, watch))?;
    let value = serde_json::to_value(&card).unwrap_or_default();
    let text = format!("{}{}: items, train, valid, test, card.json", card.describe(), target.out.display());
    print(quiet, &target.out, value, &text)
}

fn make_world(args: &SynthArgs) -> Result<()> {
    let world = World {
        users: args.users,
        items: args.items,
        length: args.length.unwrap_or_else(|| World::usual_length(args.items)),
        conflict: args.conflict,
        noise: args.noise,
        leak: args.leak,
        seed: args.write.seed,
        format: args.write.format,
        events: args.events,
    };
    let (target, quiet) = (target(&args.write), args.write.output.json);
    let card = watched(quiet, |watch| synth(&world, &target, watch))?;
    let mut text = String::from("best possible on the test:\n");
    for (task, metrics) in card["written"]["optimum"].as_object().into_iter().flatten() {
        let of = |name: &str| metrics[name].as_f64().unwrap_or(0.0);
        text += &format!("  {task:<8} hit@10 {:.4}  ndcg@10 {:.4}\n", of("hit@10"), of("ndcg@10"));
    }
    text += &format!("{}: {}", target.out.display(), card["written"]["rows"]);
    print(quiet, &target.out, card, &text)
}

fn print(json: bool, out: &Path, card: Value, text: &str) -> Result<()> {
    match json {
        true => say(&format!("{}\n", json!({"out": out.display().to_string(), "card": card}))),
        false => say(&format!("{text}\n")),
    }
}

/// Prints a result. Nobody listens any more: that is no error.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Error::io("write", "standard output", e)),
    }
}

fn check_directory(dir: &Path, model: Option<&Path>, json: bool) -> Result<()> {
    let model = model.map(|model| hub::Cache::of_environment().locate(model));
    let found = check(dir, &DataSettings::default(), model.as_deref())?;
    say(&match json {
        true => serde_json::to_string(&found).unwrap_or_default() + "\n",
        false => found.describe(),
    })?;
    let what = match found.problems.len() {
        0 => return Ok(()),
        1 => "1 problem".into(),
        n => format!("{n} problems"),
    };
    Err(Error::data(what).at(dir.display()).remedy(if json {
        "`problems` has them"
    } else {
        "they are listed above"
    }))
}
