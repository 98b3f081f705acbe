//! `gems-engine rank`.

use super::ask::{Answer, Ask, Asker, Rules, TOGETHER, why};
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::ranks::world;
use super::session::Session;
use crate::data::{json_objects, lines_of, read_json_objects};
use crate::error::{Error, Kind, Result};
use crate::run::Reads;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::{BufReader, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

/// Ask a tuned model: what comes after this history, or answers this query?
///
/// Items of equal score stand in an order that is drawn once and always the same; it does not follow the catalogue.
///
/// Example, with ids of your items.jsonl: gems-engine rank --run runs/first --history B0003,B0110 --query "warm scarf" --top 5
#[derive(Args)]
pub struct RankArgs {
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Item ids, oldest first, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    history: Vec<String>,
    /// What was typed.
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,
    /// The task [default: search with a query, rec without; else the first that takes what is given].
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Many requests: a JSONL file of {history?, query?, task?, top?, among?, exclude?, exclude_history?}, or - for standard
    /// input, answered as it comes; answered by a JSON object a line, {error} where one cannot be answered.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["history", "query", "task", "exclude"])]
    batch: Option<PathBuf>,
    /// How many items.
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    /// Rank these items only: a file of ids, one a line.
    #[arg(long, value_name = "FILE")]
    among: Option<PathBuf>,
    /// Items that are not answered, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    exclude: Vec<String>,
    /// Do not answer items of the history.
    #[arg(long)]
    exclude_history: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &RankArgs) -> Result<()> {
    let rules = Rules {
        top: args.top,
        among: args.among.as_deref().map(lines_of).transpose()?,
        exclude_history: args.exclude_history,
    };
    let mut session = Session::open_run(&args.run, &args.settings, &args.device, Reads::Items)?;
    session.same_on_all_ranks()?;
    session.restore_best(&args.run)?;
    let asker = Asker::new(&session, rules)?;
    match &args.batch {
        Some(path) => batch(&asker, path),
        None => one(&asker, args),
    }
}

fn one(asker: &Asker, args: &RankArgs) -> Result<()> {
    let ask = Ask {
        history: args.history.clone(),
        query: args.query.clone(),
        task: args.task.clone(),
        exclude: args.exclude.clone(),
        ..Ask::default()
    };
    let answers = asker.answer(&[&ask])?.into_iter().collect::<Result<Vec<Answer>>>()?;
    for answer in answers.iter().filter(|_| world().is_first()) {
        let text = if args.output.json { asker.json(answer).to_string() } else { asker.table(answer) };
        writeln!(std::io::stdout(), "{text}").map_err(failed)?;
    }
    Ok(())
}

fn failed(e: std::io::Error) -> Error {
    Error::io("write", "standard output", e)
}

/// A row of a batch with its line.
type Row = Result<(usize, Map<String, Value>)>;

/// Answers the requests of a file, so many together that the answers do not depend on the moment; those of standard input
/// as they come.
fn batch(asker: &Asker, path: &Path) -> Result<()> {
    let mut count = Count::default();
    if path == Path::new("-") {
        if !world().is_alone() {
            return Err(Error::usage("standard input belongs to one process")
                .at("--batch -")
                .remedy("give a file, which every rank reads, or start one rank"));
        }
        let rows = arriving();
        while let Ok(first) = rows.recv() {
            let rows = std::iter::once(first).chain(rows.try_iter()).take(TOGETHER).collect();
            answer(asker, rows, "standard input", &mut count)?;
        }
        return count.verdict("standard input");
    }
    let name = path.display().to_string();
    let mut rows = json_objects(path)?.peekable();
    while rows.peek().is_some() {
        let rows = rows.by_ref().take(TOGETHER * world().size()).collect();
        answer(asker, rows, &name, &mut count)?;
    }
    count.verdict(&name)
}

/// The rows of standard input while they come.
fn arriving() -> Receiver<Row> {
    let (send, rows) = sync_channel(TOGETHER);
    std::thread::spawn(move || {
        let read = read_json_objects(Box::new(BufReader::new(std::io::stdin())), "standard input".as_ref());
        for row in read {
            if send.send(row).is_err() {
                break;
            }
        }
    });
    rows
}

#[derive(Default)]
struct Count {
    all: usize,
    unanswered: usize,
}

impl Count {
    fn verdict(&self, place: &str) -> Result<()> {
        let Self { all, unanswered } = self;
        match unanswered {
            0 => Ok(()),
            n => Err(Error::data(format!("{n} of {all} requests could not be answered"))
                .at(place)
                .remedy("the answers have an `error` in their places")),
        }
    }
}

/// Answers rows, a line each, as many together for each rank; of what is no request, why.
fn answer(asker: &Asker, rows: Vec<Row>, place: &str, count: &mut Count) -> Result<()> {
    let mut asks = Vec::with_capacity(rows.len());
    for row in rows {
        asks.push(match row {
            Err(e) if e.kind == Kind::Io => return Err(e),
            Err(e) => Err(e),
            Ok((line, fields)) => {
                Ask::from_json(&fields).map(|ask| (line, ask)).map_err(|e| at_line(e, place, line))
            }
        });
    }
    let groups: Vec<&[Result<(usize, Ask)>]> = asks.chunks(TOGETHER).collect();
    let told = world().in_turns(groups.len(), |group| lines(asker, groups[group], place))?;
    let mut out = std::io::stdout().lock();
    for (line, answered) in told.iter().flatten() {
        (count.all, count.unanswered) = (count.all + 1, count.unanswered + usize::from(!answered));
        if world().is_first() {
            writeln!(out, "{line}").map_err(failed)?;
        }
    }
    out.flush().map_err(failed)
}

fn at_line(error: Error, place: &str, line: usize) -> Error {
    error.at(format!("{place} line {line}"))
}

/// What is told of requests, in their order, and whether it is an answer.
fn lines(asker: &Asker, asks: &[Result<(usize, Ask)>], place: &str) -> Result<Vec<(String, bool)>> {
    let sound: Vec<&Ask> = asks.iter().flatten().map(|(_, ask)| ask).collect();
    let mut found = asker.answer(&sound)?.into_iter();
    let refused = |e: &Error| (json!({"error": why(e)}).to_string(), false);
    let line = |ask: &Result<(usize, Ask)>| match ask {
        Err(e) => refused(e),
        Ok((line, _)) => match found.next() {
            Some(Ok(answer)) => (asker.json(&answer).to_string(), true),
            Some(Err(e)) => refused(&at_line(e, place, *line)),
            None => refused(&Error::data("no answer")),
        },
    };
    Ok(asks.iter().map(line).collect())
}
