//! `gems-engine rank`.

use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::Session;
use crate::data::Record;
use crate::error::{Error, Result};
use crate::eval::{order, score};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Ask a tuned model: what comes after this history, or answers this query?
///
/// Example: gems-engine rank --run runs/first --history B0003,B0110 --query "warm scarf" --top 5
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
    /// How many items.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &RankArgs) -> Result<()> {
    let session = Session::open_run(&args.run, &args.settings, &args.device)?;
    let data = &session.data;
    let usual = if args.query.is_some() { "search" } else { "rec" };
    let (history, query) = (!args.history.is_empty(), args.query.is_some());
    let name = match &args.task {
        Some(task) => task.as_str(),
        None if data.task(usual).is_some() => usual,
        None => data
            .tasks
            .iter()
            .find(|t| session.prompts.missing(t, history, query).is_none())
            .map_or(usual, |t| t),
    };
    let task = data.task(name).ok_or_else(|| {
        Error::usage(format!("unknown task {name:?}")).remedy(format!("one of {}", data.tasks.join(", ")))
    })?;
    if let Some(missing) = session.prompts.missing(name, history, query) {
        return Err(
            Error::usage(format!("task {name} needs a {missing}")).remedy(format!("give --{missing}"))
        );
    }
    let number = |id: &String| {
        data.items.number(id).ok_or_else(|| {
            Error::usage(format!("there is no item {id:?}"))
                .at("--history")
                .remedy("ids are those of items.jsonl")
        })
    };
    let record = Record {
        task,
        history: args.history.iter().map(number).collect::<Result<_>>()?,
        query: args.query.as_deref().map(Into::into),
        ..Record::default()
    };
    let prompt = session.encoder().prompt(&record)?;
    let items: Vec<u32> = (0..data.items.len() as u32).collect();
    let scores = score(&session.model, &session.vocabulary, session.architecture, &prompt, &items)?;
    let best = order(&items, &scores).into_iter().take(args.top);
    let mut out = std::io::stdout();
    let written = if args.output.json {
        let rows: Vec<_> = best
            .map(|(i, s)| json!({"item": data.items.id(i), "text": data.items.text(i), "log_likelihood": s}))
            .collect();
        writeln!(out, "{}", json!({"task": name, "items": rows}))
    } else {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "item", "log likelihood", "text"]);
        for (place, (i, s)) in best.enumerate() {
            let text = data.items.text(i).unwrap_or_default().to_string();
            table.add_row([(place + 1).to_string(), data.items.id(i).to_string(), format!("{s:.3}"), text]);
        }
        writeln!(out, "{table}")
    };
    written.map_err(|e| Error::io("write", "standard output", e))
}
