//! `gems-engine evaluate`.

use super::measure::{SLICES, few_requests, rankings, reference, summary};
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::ranks;
use super::session::Session;
use super::summary::without_requests;
use crate::data::{Catalogue, Split};
use crate::error::{Error, Result};
use crate::eval::slices::coverage;
use crate::eval::{EvaluateSettings, LayerChange, Paired, Rankings, compare_runs, layer_changes, trec};
use crate::report::before_after;
use crate::run::{Reads, part};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Rank a run's test records and measure what its model forgot.
///
/// Example: gems-engine evaluate --run runs/first --against runs/second --trec runs/first/trec
#[derive(Args)]
pub struct EvaluateArgs {
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Another run on the same data: paired randomisation test and bootstrap interval of every difference.
    #[arg(long, value_name = "RUN")]
    against: Option<PathBuf>,
    /// Also print metrics by history length and by popularity of the target.
    #[arg(long)]
    slices: bool,
    /// Also report the non-standard metrics of published work, as published_...
    #[arg(long)]
    published_metrics: bool,
    /// Also report how far each layer moved on general text, and how much of that is in its knowledge space.
    /// Loads the base model a second time.
    #[arg(long)]
    layers: bool,
    /// Also write TREC run and qrels files into this directory.
    #[arg(long, value_name = "DIR")]
    trec: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &EvaluateArgs) -> Result<()> {
    let mut session = Session::open_run(&args.run, &args.settings, &args.device, Reads::Tests)?;
    session.same_on_all_ranks()?;
    let reference = reference(&session)?;
    session.restore_best(&args.run)?;
    let mut settings = session.config.evaluate.clone();
    settings.published_metrics |= args.published_metrics;
    let ranked = rankings(&session, &settings, args.output.json)?;
    if let Some(dir) = args.trec.as_ref().filter(|_| ranks::world().is_first()) {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        for (split, rankings) in &ranked {
            trec::write(dir, &split.name, &session.data, split, rankings)?;
        }
    }
    let general = reference.map(|r| r.measure_each_over(ranks::world(), &session.model)).transpose()?;
    let mut result = json!({
        "run": args.run.display().to_string(),
        "result": summary(&session, &settings, &ranked, general),
    });
    result["slices"] = result["result"][SLICES].take();
    result["coverage"] = shown(&session, &settings, &ranked);
    if args.layers {
        result["layers"] = json!(layers(&session, args)?);
    }
    if !session.notes.is_empty() {
        result["changed"] = json!(session.notes);
    }
    if let Some(other) = &args.against {
        let ours: Vec<(Split, Rankings)> = ranked.into_iter().map(|(s, r)| (s.clone(), r)).collect();
        let ours =
            Judged { items: session.data.items.clone(), tasks: session.data.tasks.clone(), ranked: ours };
        // One model at a time.
        drop(session);
        let pairs = against(args, other, &ours, &settings)?;
        result["against"] = json!({"run": other.display().to_string(), "metrics": pairs});
    }
    if !ranks::world().is_first() {
        return Ok(());
    }
    let text = match args.output.json {
        true => without_requests(&result).to_string(),
        false => describe(&result, args.slices),
    };
    writeln!(std::io::stdout(), "{}", text.trim_end()).map_err(|e| Error::io("write", "standard output", e))
}

/// Catalogue coverage where all requests were ranked, by split and task as in the summary.
fn shown(session: &Session, settings: &EvaluateSettings, ranked: &[(&Split, Rankings)]) -> Value {
    let (data, mut shares) = (&session.data, Map::new());
    let key = |split: &str, task: String| if split == "test" { task } else { format!("{split}.{task}") };
    for (split, rankings) in ranked {
        // What a part of the requests shows says little of what all would show.
        let asked = split.records.iter().filter(|record| !record.target.is_empty()).count();
        if rankings.requests.len() < asked {
            continue;
        }
        for (task, of_task) in coverage(rankings, &data.tasks, data.items.len(), &settings.k) {
            shares.insert(key(&split.name, task), json!(of_task));
        }
    }
    Value::Object(shares)
}

fn layers(session: &Session, args: &EvaluateArgs) -> Result<Vec<LayerChange>> {
    let chunks = session.chunks(&session.general.held_out, session.config.evaluate.general_tokens)?;
    if chunks.is_empty() {
        return Err(Error::data("there is no held-out general text to measure the layers on")
            .at("--layers")
            .remedy("add general.txt to the data directory; `gems-engine prepare sample` writes some"));
    }
    let base = session.base_again(&args.device)?;
    let knowledge = session.stored_basis(&args.run)?;
    let protection = knowledge.as_ref().map(|k| session.protection(k)).transpose()?.unwrap_or_default();
    let side = session.config.null_space.side;
    layer_changes(&base.model, &session.model, &chunks, &protection, side)
}

/// What a run was judged on, and how it did.
struct Judged {
    items: Catalogue,
    tasks: Vec<String>,
    ranked: Vec<(Split, Rankings)>,
}

fn against(
    args: &EvaluateArgs,
    run: &Path,
    ours: &Judged,
    settings: &EvaluateSettings,
) -> Result<Vec<Paired>> {
    let mut other = Session::open_run(run, &args.settings, &args.device, Reads::Tests)?;
    other.restore_best(run)?;
    let Judged { items, tasks, ranked: ours } = ours;
    // Each run numbers its items itself.
    let same = |a: &Split, b: &Split| {
        a.name == b.name && part(a, &other.data.items, &other.data.tasks) == part(b, items, tasks)
    };
    let (count, mut pairs) = (other.data.tests().count(), other.data.tests().zip(ours));
    if count != ours.len() || !pairs.all(|(a, (b, _))| same(a, b)) || other.data.tasks != *tasks {
        return Err(Error::usage("this run is judged by other test records, so requests cannot be paired")
            .at(run.display())
            .remedy("compare runs on the same data directory"));
    }
    let known = (0..items.len() as u32).all(|n| other.data.items.number(items.id(n)).is_some());
    if !known || items.len() != other.data.items.len() {
        return Err(Error::usage("this run ranks other items, so its requests cannot be paired with ours")
            .at(run.display())
            .remedy("compare runs of the same catalogue"));
    }
    let theirs = rankings(&other, settings, args.output.json)?;
    let splits: Vec<_> = theirs.iter().zip(ours).map(|((s, t), (_, o))| (s.name.as_str(), t, o)).collect();
    Ok(compare_runs(&splits, tasks, settings, other.config.seed))
}

fn describe(result: &Value, slices: bool) -> String {
    let mut text = before_after(None, &result["result"]) + "\n" + &few_requests(&result["result"]);
    let empty = Map::new();
    let entries = |value: &'_ Value| value.as_object().unwrap_or(&empty).clone();
    for (task, shares) in entries(&result["coverage"]) {
        let shares: Vec<String> = entries(&shares)
            .iter()
            .map(|(name, share)| format!("{name} {:.1} %", 100.0 * share.as_f64().unwrap_or(0.0)))
            .collect();
        text += &format!("items ever shown, {task}: {}\n", shares.join(", "));
    }
    if slices {
        let rows = entries(&result["slices"]).into_iter().flat_map(|(task, of_task)| {
            let cells = |(name, slice): (String, Value)| {
                let of = |metric: &str| number(&slice["metrics"][metric]);
                vec![
                    task.clone(),
                    name,
                    slice["requests"].to_string(),
                    of("ndcg@10"),
                    of("hit@10"),
                    of("recall@10"),
                ]
            };
            entries(&of_task).into_iter().map(cells).collect::<Vec<_>>()
        });
        text += &table(&["task", "slice", "requests", "ndcg@10", "hit@10", "recall@10"], rows);
    }
    if let Some(layers) = result["layers"].as_array() {
        let percent = |v: &Value| v.as_f64().map_or("—".into(), |x| format!("{:.2} %", 100.0 * x));
        let rows = layers.iter().map(|l| {
            let name = l["name"].as_str().unwrap_or_default().to_string();
            let share = format!("{} ({})", small(&l["in_knowledge"]), percent(&l["by_chance"]));
            vec![name, percent(&l["change"]), small(&l["drift"]), small(&l["relative_drift"]), share]
        });
        text +=
            &table(&["layer", "|dW|/|W|", "drift", "over the output's", "in knowledge space (chance)"], rows);
    }
    if let Some(metrics) = result["against"]["metrics"].as_array() {
        let rows = metrics.iter().map(|m| {
            let name = |key: &str| m[key].as_str().unwrap_or_default().to_string();
            let task = if m["split"] == "test" {
                name("task")
            } else {
                format!("{}.{}", name("split"), name("task"))
            };
            let interval = format!("{} to {}", signed(&m["interval"][0]), signed(&m["interval"][1]));
            let difference = signed(&m["difference"]);
            vec![
                task,
                name("metric"),
                number(&m["theirs"]),
                number(&m["ours"]),
                difference,
                interval,
                number(&m["p_holm"]),
            ]
        });
        text += &format!("against {}:\n", result["against"]["run"].as_str().unwrap_or_default());
        text +=
            &table(&["task", "metric", "theirs", "ours", "difference", "95 % interval", "p (Holm)"], rows);
    }
    text
}

fn number(value: &Value) -> String {
    value.as_f64().map_or("—".into(), |x| format!("{x:.4}"))
}

fn small(value: &Value) -> String {
    value.as_f64().map_or("—".into(), |x| format!("{x:.2e}"))
}

fn signed(value: &Value) -> String {
    value.as_f64().map_or("—".into(), |x| format!("{x:+.4}"))
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().copied());
    rows.for_each(|row| {
        table.add_row(row);
    });
    format!("{table}\n")
}
