//! Asking a tuned model: what `rank` and `serve` have in common.

use super::session::Session;
use crate::data::{Record, check_names};
use crate::error::{Error, Result};
use crate::eval::{EvaluateSettings, Request, Scorer, Trie, Wanted, candidate_trie, leading};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

/// Requests that are answered together, at most.
pub const TOGETHER: usize = 64;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Item ids, oldest first.
    pub history: Vec<String>,
    /// What was typed.
    pub query: Option<String>,
    /// The task; else [`Asker`] chooses.
    pub task: Option<String>,
    /// How many items; else as [`Rules`] say.
    pub top: Option<NonZeroUsize>,
    /// The items that may be answered; else as [`Rules`] say.
    pub among: Option<Vec<String>>,
    /// Items that may not.
    pub exclude: Vec<String>,
    /// Whether those of the history may not either; else as [`Rules`] say.
    pub exclude_history: Option<bool>,
}

/// What holds where a request says nothing else.
#[derive(Debug, Clone)]
pub struct Rules {
    /// How many items are answered.
    pub top: NonZeroUsize,
    /// The items that may be answered; else all.
    pub among: Option<Vec<String>>,
    /// Whether the history's items may not.
    pub exclude_history: bool,
}

/// An answer: the task, and items with their log-likelihoods, best first. Items of equal score stand in an order that is
/// drawn once and always the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    task: u32,
    best: Vec<(u32, f32)>,
}

impl Ask {
    /// The fields that a request may have.
    pub const FIELDS: [&str; 7] = ["history", "query", "task", "top", "among", "exclude", "exclude_history"];

    /// A request of JSON: a row of a batch, or a body.
    ///
    /// # Errors
    /// A field of another type, and one that is nearly a known one; other fields are the asker's own.
    pub fn from_json(fields: &Map<String, Value>) -> Result<Self> {
        check_names(fields, &Self::FIELDS)?;
        let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let wrong = |name: &str, wanted: &str| {
            Error::data(format!("{} instead of {wanted}", fields[name]))
                .at(name)
                .remedy(format!("write {wanted}"))
        };
        let text = |name: &str| match field(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.trim().is_empty())),
            Some(_) => Err(wrong(name, "a string")),
        };
        let ids = |name: &str| {
            let wrong = || wrong(name, "a list of item ids");
            let id = |value: &Value| match value {
                Value::String(id) => Ok(id.clone()),
                Value::Number(id) if id.is_i64() || id.is_u64() => Ok(id.to_string()),
                _ => Err(wrong()),
            };
            let list = field(name).map(|value| value.as_array().ok_or_else(wrong)).transpose()?;
            list.map(|list| list.iter().map(id).collect::<Result<Vec<_>>>()).transpose()
        };
        let number = |value: &Value| NonZeroUsize::new(usize::try_from(value.as_u64()?).ok()?);
        let whether =
            |value: &Value| value.as_bool().ok_or_else(|| wrong("exclude_history", "true or false"));
        Ok(Self {
            history: ids("history")?.unwrap_or_default(),
            query: text("query")?,
            task: text("task")?,
            top: field("top")
                .map(|value| number(value).ok_or_else(|| wrong("top", "a number of items, at least 1")))
                .transpose()?,
            among: ids("among")?,
            exclude: ids("exclude")?.unwrap_or_default(),
            exclude_history: field("exclude_history").map(whether).transpose()?,
        })
    }
}

/// Answers requests with a run's model.
pub struct Asker<'a> {
    session: &'a Session,
    rules: Rules,
    catalogue: Candidates,
}

/// Items that may be answered, ascending, and the trie of their tokens.
struct Candidates {
    items: Vec<u32>,
    trie: Trie,
}

/// A request that can be answered.
struct Sound {
    record: Record,
    prompt: Vec<u32>,
    /// The candidates, where they are not those of the rules.
    own: Option<Candidates>,
    excluded: BTreeSet<u32>,
    top: usize,
}

impl<'a> Asker<'a> {
    /// Over the model of `session`.
    ///
    /// # Errors
    /// Rules that name an item that there is not.
    pub fn new(session: &'a Session, rules: Rules) -> Result<Self> {
        let items = match &rules.among {
            Some(among) => allowed(session, among)?,
            None => (0..session.data.items.len() as u32).collect(),
        };
        Ok(Self { session, rules, catalogue: Candidates::of(items, session) })
    }

    /// The answers to `asks`, in their order, or why one cannot be answered.
    ///
    /// # Errors
    /// What keeps the model from answering anything: likelihoods that are not finite, the device.
    pub fn answer(&self, asks: &[&Ask]) -> Result<Vec<Result<Answer>>> {
        let sound: Vec<Result<Sound>> = asks.iter().map(|ask| self.sound(ask)).collect();
        let asked: Vec<&Sound> = sound.iter().flatten().collect();
        let requests: Vec<Request> =
            asked.iter().map(|s| Request { prompt: &s.prompt, trie: &self.candidates(s).trie }).collect();
        let (side, batch_tokens) = (self.session.prompt_side, EvaluateSettings::default().batch_tokens);
        let depth = |s: &Sound| s.top.saturating_add(s.excluded.len());
        let wanted: Vec<Wanted> =
            asked.iter().map(|s| Wanted { depth: depth(s), ..Wanted::default() }).collect();
        let scores = Scorer::new(&self.session.model, side, batch_tokens).best(&requests, &wanted)?;
        let best = |(s, scores): (&&Sound, &Vec<f32>)| {
            let ranked = leading(&self.candidates(s).items, scores, depth(s), 0).into_iter();
            let best = ranked.filter(|(item, _)| !s.excluded.contains(item)).take(s.top).collect();
            Answer { task: s.record.task, best }
        };
        let mut answers: Vec<Answer> = asked.iter().zip(&scores).map(best).rev().collect();
        Ok(sound.into_iter().map(|s| s.map(|_| answers.pop().unwrap_or_default())).collect())
    }

    fn candidates<'s>(&'s self, sound: &'s Sound) -> &'s Candidates {
        sound.own.as_ref().unwrap_or(&self.catalogue)
    }

    fn sound(&self, ask: &Ask) -> Result<Sound> {
        let record = record(self.session, ask)?;
        let prompt = self.session.encoder().prompt(&record)?;
        let own = match &ask.among {
            Some(among) => Some(Candidates::of(allowed(self.session, among)?, self.session)),
            None => None,
        };
        let mut excluded: BTreeSet<u32> =
            numbers(self.session, "exclude", &ask.exclude)?.into_iter().collect();
        if ask.exclude_history.unwrap_or(self.rules.exclude_history) {
            excluded.extend(&record.history);
        }
        let top = ask.top.unwrap_or(self.rules.top).get();
        Ok(Sound { record, prompt, own, excluded, top })
    }

    /// An answer as JSON.
    pub fn json(&self, answer: &Answer) -> Value {
        let data = &self.session.data;
        let row = |(i, s): &(u32, f32)| json!({"item": data.items.id(*i), "text": data.items.text(*i), "log_likelihood": s});
        let items: Vec<Value> = answer.best.iter().map(row).collect();
        json!({"task": data.tasks[answer.task as usize], "items": items})
    }

    /// An answer as a table.
    pub fn table(&self, answer: &Answer) -> String {
        let items = &self.session.data.items;
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "item", "log likelihood", "text"]);
        for (place, (i, s)) in answer.best.iter().enumerate() {
            let text = items.text(*i).unwrap_or_default().to_string();
            table.add_row([(place + 1).to_string(), items.id(*i).to_string(), format!("{s:.3}"), text]);
        }
        table.to_string()
    }
}

impl Candidates {
    fn of(items: Vec<u32>, session: &Session) -> Self {
        let trie = candidate_trie(&items, &session.vocabulary);
        Self { items, trie }
    }
}

/// Why a request was not answered, on one line.
pub fn why(error: &Error) -> String {
    error.to_string().replace("\n  try: ", "; try: ")
}

/// What is asked as a record of one of the run's tasks.
fn record(session: &Session, ask: &Ask) -> Result<Record> {
    let data = &session.data;
    let usual = if ask.query.is_some() { "search" } else { "rec" };
    let (history, query) = (!ask.history.is_empty(), ask.query.is_some());
    let name = match &ask.task {
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
        return Err(Error::usage(format!("task {name} needs a {missing}"))
            .remedy(format!("give --{missing}, or `{missing}` in JSON")));
    }
    if query && !session.prompts.shows_query(name) {
        return Err(Error::usage(format!("the prompt of task {name} shows no query: it would be ignored"))
            .remedy("ask without a query, or another task"));
    }
    Ok(Record {
        task,
        history: numbers(session, "history", &ask.history)?.into(),
        query: ask.query.as_deref().map(Into::into),
        ..Record::default()
    })
}

/// The numbers of the items that may be answered, ascending.
fn allowed(session: &Session, ids: &[String]) -> Result<Vec<u32>> {
    let mut items = numbers(session, "among", ids)?;
    items.sort_unstable();
    items.dedup();
    match items.is_empty() {
        true => Err(Error::usage("no item at all").at("among").remedy("name the items that may be answered")),
        false => Ok(items),
    }
}

fn numbers(session: &Session, field: &str, ids: &[String]) -> Result<Vec<u32>> {
    let items = &session.data.items;
    let number = |id: &String| {
        items.number(id).ok_or_else(|| {
            let ids: Vec<&str> = (0..items.len() as u32).map(|i| items.id(i)).collect();
            Error::usage(format!("there is no item {id:?}"))
                .at(field)
                .remedy("ids are those of catalogue.jsonl in the run's directory")
                .meant(id, &ids)
        })
    };
    ids.iter().map(number).collect()
}
