//! `gems-engine rank`.

use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::Session;
use crate::data::{Record, check_names, json_objects};
use crate::error::{Error, Kind, Result};
use crate::eval::{EvaluateSettings, Request, Scorer, Trie, candidate_trie, order};
use crate::run::Reads;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

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
    /// Many requests: a JSONL file of {history?, query?, task?}; answered by a JSON object a line, {error} where one cannot
    /// be answered.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["history", "query", "task"])]
    batch: Option<PathBuf>,
    /// How many items.
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Requests of a batch that are answered together.
const TOGETHER: usize = 64;

/// What is asked.
struct Asked {
    history: Vec<String>,
    query: Option<String>,
    task: Option<String>,
}

/// What is answered: the task, and items with their log-likelihoods, best first.
type Answer = (u32, Vec<(u32, f32)>);

/// Runs the command.
pub fn run(args: &RankArgs) -> Result<()> {
    let mut session = Session::open_run(&args.run, &args.settings, &args.device, Reads::Items)?;
    session.restore_best(&args.run)?;
    let items: Vec<u32> = (0..session.data.items.len() as u32).collect();
    let trie = candidate_trie(&items, &session.vocabulary);
    let mut out = std::io::stdout().lock();
    let failed = |e| Error::io("write", "standard output", e);
    let Some(path) = &args.batch else {
        let asked =
            Asked { history: args.history.clone(), query: args.query.clone(), task: args.task.clone() };
        let record = record(&session, &asked)?;
        let (task, best) = answer(&session, &trie, &[&record], args.top.get())?.swap_remove(0);
        let text = match args.output.json {
            true => answer_json(&session, task, &best).to_string(),
            false => answer_table(&session, &best),
        };
        return writeln!(out, "{text}").map_err(failed);
    };
    let (mut together, mut all, mut unanswered) = (Vec::new(), 0, 0);
    let mut rows = json_objects(path)?.peekable();
    while let Some(row) = rows.next() {
        let found = match row {
            Err(e) if e.kind == Kind::Io => return Err(e),
            Err(e) => Err(e),
            Ok((line, fields)) => asked(&fields)
                .and_then(|a| record(&session, &a))
                .map_err(|e| e.at(format!("{} line {line}", path.display()))),
        };
        (all, unanswered) = (all + 1, unanswered + usize::from(found.is_err()));
        together.push(found);
        if together.len() == TOGETHER || rows.peek().is_none() {
            for line in answers(&session, &trie, &together, args.top.get())? {
                writeln!(out, "{line}").map_err(failed)?;
            }
            together.clear();
        }
    }
    out.flush().map_err(failed)?;
    match unanswered {
        0 => Ok(()),
        n => Err(Error::data(format!("{n} of {all} requests could not be answered"))
            .at(path.display())
            .remedy("the answers have an `error` in their places")),
    }
}

/// The lines that answer requests, in their order; of what is no request, why.
fn answers(session: &Session, trie: &Trie, asked: &[Result<Record>], top: usize) -> Result<Vec<Value>> {
    let records: Vec<&Record> = asked.iter().flatten().collect();
    let mut found = answer(session, trie, &records, top)?.into_iter();
    let line = |asked: &Result<Record>| match asked {
        Ok(_) => found.next().map_or(Value::Null, |(task, best)| answer_json(session, task, &best)),
        Err(e) => json!({"error": e.to_string().replace("\n  try: ", "; try: ")}),
    };
    Ok(asked.iter().map(line).collect())
}

/// A row of a batch.
fn asked(fields: &serde_json::Map<String, Value>) -> Result<Asked> {
    check_names(fields, &["history", "query", "task"])?;
    let wrong = |field: &str, wanted: &str| {
        Error::data(format!("{} instead of {wanted}", fields[field]))
            .at(field)
            .remedy(format!("write {wanted}"))
    };
    let text = |field: &'static str| match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong(field, "a string")),
    };
    let id = |value: &Value| match value {
        Value::String(id) => Ok(id.clone()),
        Value::Number(id) if id.is_i64() || id.is_u64() => Ok(id.to_string()),
        _ => Err(wrong("history", "a list of item ids")),
    };
    let history = match fields.get("history") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.iter().map(id).collect::<Result<_>>()?,
        Some(_) => return Err(wrong("history", "a list of item ids")),
    };
    Ok(Asked { history, query: text("query")?, task: text("task")? })
}

/// What is asked as a record of one of the run's tasks.
fn record(session: &Session, asked: &Asked) -> Result<Record> {
    let data = &session.data;
    let usual = if asked.query.is_some() { "search" } else { "rec" };
    let (history, query) = (!asked.history.is_empty(), asked.query.is_some());
    let name = match &asked.task {
        Some(task) => task.as_str(),
        None if data.task(usual).is_some() => usual,
        None => data
            .tasks
            .iter()
            .find(|t| session.prompts.missing(t, history, query).is_none())
            .map_or(usual, |t| t),
    };
    let task = data
        .task(name)
        .ok_or_else(|| Error::usage(format!("there is no task {name:?}")).meant(name, &data.tasks))?;
    if let Some(missing) = session.prompts.missing(name, history, query) {
        return Err(
            Error::usage(format!("task {name} needs a {missing}")).remedy(format!("give --{missing}"))
        );
    }
    if query && !session.prompts.shows_query(name) {
        return Err(Error::usage(format!("the prompt of task {name} shows no query: it would be ignored"))
            .remedy("ask without --query, or choose another --task"));
    }
    let number = |id: &String| {
        data.items.number(id).ok_or_else(|| {
            let ids: Vec<&str> = (0..data.items.len() as u32).map(|i| data.items.id(i)).collect();
            Error::usage(format!("there is no item {id:?}"))
                .at("--history")
                .remedy("ids are those of catalogue.jsonl in the run's directory")
                .meant(id, &ids)
        })
    };
    Ok(Record {
        task,
        history: asked.history.iter().map(number).collect::<Result<_>>()?,
        query: asked.query.as_deref().map(Into::into),
        ..Record::default()
    })
}

/// The `top` items for each record.
fn answer(session: &Session, trie: &Trie, records: &[&Record], top: usize) -> Result<Vec<Answer>> {
    let encoder = session.encoder();
    let prompts = records.iter().map(|r| encoder.prompt(r)).collect::<Result<Vec<_>>>()?;
    let requests: Vec<Request> = prompts.iter().map(|prompt| Request { prompt, trie }).collect();
    let batch_tokens = EvaluateSettings::default().batch_tokens;
    let scores = Scorer::new(&session.model, session.prompt_side, batch_tokens).scores(&requests)?;
    let items: Vec<u32> = (0..session.data.items.len() as u32).collect();
    let best = scores.iter().map(|scores| order(&items, scores, 0).into_iter().take(top).collect());
    Ok(records.iter().map(|r| r.task).zip(best).collect())
}

fn answer_json(session: &Session, task: u32, best: &[(u32, f32)]) -> Value {
    let items = &session.data.items;
    let row =
        |(i, s): &(u32, f32)| json!({"item": items.id(*i), "text": items.text(*i), "log_likelihood": s});
    json!({"task": session.data.tasks[task as usize], "items": best.iter().map(row).collect::<Vec<_>>()})
}

fn answer_table(session: &Session, best: &[(u32, f32)]) -> String {
    let items = &session.data.items;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "item", "log likelihood", "text"]);
    for (place, (i, s)) in best.iter().enumerate() {
        let text = items.text(*i).unwrap_or_default().to_string();
        table.add_row([(place + 1).to_string(), items.id(*i).to_string(), format!("{s:.3}"), text]);
    }
    table.to_string()
}
