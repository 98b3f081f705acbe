//! Ranks the test records and measures general knowledge: for `train` and `evaluate`.

use super::ranks::world;
use super::session::Session;
use crate::data::{Record, Split};
use crate::error::Result;
use crate::eval::metrics::Place;
use crate::eval::slices::{by_slice, popularity};
use crate::eval::{
    EvaluateSettings, General, Metrics, PerText, Ranked, Rankings, Reference, compared, rank_split_over,
};
use crate::model::{Inference, general_pass};
use crate::report::Progress;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The base model's predictions on held-out general text, or nothing where there is no such text.
pub fn reference(session: &Session) -> Result<Option<Reference>> {
    let chunks = session.chunks(&session.general.held_out, session.config.evaluate.general_tokens)?;
    match chunks.is_empty() {
        true => Ok(None),
        false => {
            let (chunks, old, kept) = (chunks, session.old_vocabulary, session.states.as_ref());
            Reference::capture_over(world(), &session.model, chunks, old, kept).map(Some)
        }
    }
}

/// Ranked test splits, `test` first.
pub fn rankings<'a>(
    session: &'a Session,
    settings: &EvaluateSettings,
    quiet: bool,
) -> Result<Vec<(&'a Split, Rankings)>> {
    let encoder = session.encoder();
    session
        .data
        .tests()
        .map(|split| {
            let mut progress = Progress::new(
                &format!("ranking {}", split.name),
                split.records.len() as u64,
                quiet || !world().is_first(),
            );
            let mut tell = |done: usize, _: usize| progress.tick(done as u64, String::new);
            let (model, data) = (&session.model, &session.data);
            let ranked = rank_split_over(world(), model, &encoder, data, split, settings, &mut tell)?;
            progress.finish();
            Ok((split, ranked))
        })
        .collect()
}

/// The key of [`per_request`] among the tasks of a summary.
pub const PER_REQUEST: &str = "per_request";

/// The key of the divergence of every text among the tasks of a summary.
pub const PER_TEXT: &str = "per_text";

/// The key of [`answers`] among the tasks of a summary.
pub const ANSWERS: &str = "answers";

/// The key of the metrics by kind of request among the tasks of a summary: `{task: {slice: {"requests": n, "metrics": ..}}}`.
pub const SLICES: &str = "slices";

/// `{task: {metric: value}, "SPLIT.task": .., "slices": .., "per_request": {task: {metric: [value ..]}}, "general": ..,
/// "per_text": {"divergence": [nats ..], "tokens": [n ..]}}`; single requests are of the test split, for tests of what a
/// run changed.
pub fn summary(
    session: &Session,
    settings: &EvaluateSettings,
    ranked: &[(&Split, Rankings)],
    general: Option<(General, PerText)>,
) -> Value {
    let (data, mut all, mut slices) = (&session.data, Map::new(), Map::new());
    let kinds = popularity(data.items.len(), &data.train);
    for (split, rankings) in ranked {
        let key = |task: String| if split.name == "test" { task } else { format!("{}.{task}", split.name) };
        let metrics: Metrics = rankings.metrics(&data.tasks, settings);
        all.extend(metrics.into_iter().map(|(task, values)| (key(task), json!(values))));
        let of_split = by_slice(rankings, split, &data.tasks, &kinds, settings);
        slices.extend(of_split.into_iter().map(|(task, of_task)| (key(task), json!(of_task))));
        if split.name == "test" {
            all.insert(PER_REQUEST.into(), per_request(session, settings, rankings));
            all.insert(ANSWERS.into(), answers(session, split, rankings));
        }
    }
    all.insert(SLICES.into(), Value::Object(slices));
    if let Some((general, texts)) = general {
        all.insert("general".into(), json!(general));
        all.insert(PER_TEXT.into(), json!(texts));
    }
    Value::Object(all)
}

/// A few metrics of every request, by task.
fn per_request(session: &Session, settings: &EvaluateSettings, rankings: &Rankings) -> Value {
    let tasks = session.data.tasks.iter().enumerate().map(|(number, task)| {
        let values = |metric: String| {
            let each = rankings.values(number as u32, &metric);
            // Six digits are more than any test sees.
            let each: Vec<f64> = each.into_iter().map(|v| (v * 1e6).round() / 1e6).collect();
            (metric, json!(each))
        };
        (task.clone(), Value::Object(compared(settings).into_iter().map(values).collect()))
    });
    Value::Object(tasks.collect())
}

/// Requests of a task whose answers are kept.
const KEPT: usize = 200;
/// Items of a history that are told, and answers of a request.
const TOLD: usize = 3;

/// The first requests of every task as people read them: what was asked and wanted, at which rank it stands, the best
/// answers.
fn answers(session: &Session, split: &Split, rankings: &Rankings) -> Value {
    let items = &session.data.items;
    let name = |item: &u32| {
        let text = items.text(*item).unwrap_or_else(|| items.id(*item));
        let short: String = text.chars().take(60).collect();
        if short.len() < text.len() { short + "…" } else { short }
    };
    let answer = |ranked: &&Ranked| {
        let record = &split.records[ranked.record];
        let newest = &record.history[record.history.len().saturating_sub(TOLD)..];
        let history = newest.iter().map(name).collect::<Vec<_>>().join(" · ");
        let query = record.query.as_ref().map(|query| format!("“{query}”"));
        let asked: Vec<String> = query.into_iter().chain((!history.is_empty()).then_some(history)).collect();
        // In the middle of those that are equally good.
        let rank = ranked.places.first().map(|place| place.ahead + place.tied.div_ceil(2).max(1));
        let top: Vec<String> = ranked.top.iter().take(TOLD).map(|(item, _)| name(item)).collect();
        let mut told =
            json!({"asked": asked.join(" after "), "wanted": record.target.first().map(name), "rank": rank});
        told["top"] = json!(top);
        // Nobody has counted what stands before it.
        let is_behind = |place: &Place| ranked.is_cut && place.ahead >= ranked.top.len();
        if ranked.places.first().is_some_and(is_behind) {
            told["rank_or_later"] = json!(true);
        }
        told
    };
    let tasks = session.data.tasks.iter().enumerate().map(|(number, task)| {
        let of_task = rankings.requests.iter().filter(|ranked| ranked.task as usize == number);
        (task.clone(), of_task.take(KEPT).map(|ranked| answer(&ranked)).collect::<Value>())
    });
    Value::Object(tasks.collect())
}

/// A command that asks the run's model what a test record asks, to be typed as it is.
pub fn example(session: &Session, run: &Path) -> Option<String> {
    let data = &session.data;
    let wanted = |r: &&Record| {
        let task = &data.tasks[r.task as usize];
        !r.target.is_empty()
            && session.prompts.missing(task, !r.history.is_empty(), r.query.is_some()).is_none()
    };
    let records = || data.tests().flat_map(|split| &split.records).filter(wanted);
    let record =
        records().find(|r| r.query.is_some() && !r.history.is_empty()).or_else(|| records().next())?;
    let quoted = |text: &str| match text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:,".contains(c)) {
        true if !text.starts_with('-') => text.to_string(),
        _ => format!("'{}'", text.replace('\'', "'\\''")),
    };
    let newest = &record.history[record.history.len().saturating_sub(3)..];
    // Ids are separated by commas: one that holds a comma cannot be shown.
    let ids: Vec<&str> = newest.iter().map(|i| data.items.id(*i)).filter(|id| !id.contains(',')).collect();
    let mut line = format!("gems-engine rank --run {}", quoted(&run.display().to_string()));
    if !ids.is_empty() {
        line += &format!(" --history={}", quoted(&ids.join(",")));
    }
    if let Some(query) = &record.query {
        line += &format!(" --query={}", quoted(query));
    }
    Some(line + " --task=" + &quoted(&data.tasks[record.task as usize]))
}

/// Fewer requests than this say little about a model.
const FEW: usize = 100;

/// A line for each task whose metrics are of few requests only.
pub fn few_requests(measured: &Value) -> String {
    let tasks = measured[PER_REQUEST].as_object().into_iter().flatten();
    let count =
        |metrics: &Value| metrics.as_object().and_then(|m| m.values().next()?.as_array().map(Vec::len));
    let few =
        tasks.filter_map(|(task, metrics)| Some((task, count(metrics).filter(|n| (1..FEW).contains(n))?)));
    few.map(|(task, n)| format!("{task}: {n} requests only; metrics of so few are mostly luck\n")).collect()
}

/// A few prompts of the catalogue's items, to compare logits with.
pub fn probe(session: &Session) -> Result<Inference> {
    let (encoder, items) = (session.encoder(), &session.data.items);
    let first: Vec<u32> = (0..items.len() as u32).take(4).collect();
    let text = first.iter().find_map(|item| items.text(*item)).unwrap_or("one");
    let tasks = session.data.tasks.iter().enumerate().filter(|(_, task)| session.prompts.knows(task));
    let record = |(task, _): (usize, &String)| {
        let (task, history, query) = (task as u32, first.clone().into(), Some(text.into()));
        encoder.prompt(&Record { task, history, query, ..Record::default() })
    };
    let mut prompts: Vec<Vec<u32>> = tasks.take(4).map(record).collect::<Result<_>>()?;
    prompts.retain(|p| p.len() > 1);
    if prompts.is_empty() {
        prompts.push((0..8.min(session.old_vocabulary as u32)).collect());
    }
    Ok(general_pass(&session.model, &prompts))
}

/// Both at once, of a model that was tuned.
pub fn measure(session: &Session, reference: Option<&Reference>, quiet: bool) -> Result<Value> {
    let ranked = rankings(session, &session.config.evaluate, quiet)?;
    let general = reference.map(|r| r.measure_each_over(world(), &session.model)).transpose()?;
    Ok(summary(session, &session.config.evaluate, &ranked, general))
}

/// The same of the base model, before anything of it is changed: the reference has its states on general text.
pub fn measure_base(session: &Session, reference: Option<&Reference>, quiet: bool) -> Result<Value> {
    let ranked = rankings(session, &session.config.evaluate, quiet)?;
    let general = reference.map(|r| r.base_over(world(), &session.model, usize::MAX)).transpose()?;
    Ok(summary(session, &session.config.evaluate, &ranked, general))
}
