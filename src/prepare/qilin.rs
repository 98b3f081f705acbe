//! Qilin (arXiv 2503.00501): searches and recommendations of a note-sharing site.
//!
//! `search_train`, `search_test`, `recommendation_train`, `recommendation_test`: a row a request, its results as a
//! list of structs; `notes`: titles and contents. Parquet as published, or CSV in which lists are Python or
//! numpy literals.

use super::cell::{Cell, absent};
use super::inputs::{self, missing};
use super::intake::Intake;
use super::log::{Entry, Log};
use super::notes;
use super::reader::{ItemTexts, Reader};
use super::settings::Settings;
use super::table::{self, Column, Reading, Table};
use crate::data::fault::{Checked, Fault, describe};
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// Qilin's files.
#[derive(Debug, Clone, Serialize)]
pub struct Qilin {
    /// The directory that holds them.
    pub dir: PathBuf,
    /// Take the notes' contents behind their titles.
    pub contents: bool,
}

/// One of its tables of requests.
struct Config {
    name: &'static str,
    task: &'static str,
    results: &'static str,
    time: &'static str,
    test: bool,
}

const SEARCH: (&str, &str, &str) = ("search", "search_result_details_with_idx", "search_timestamp");
const REC: (&str, &str, &str) = ("rec", "rec_result_details_with_idx", "request_timestamp");

const fn config(name: &'static str, kind: (&'static str, &'static str, &'static str), test: bool) -> Config {
    Config { name, task: kind.0, results: kind.1, time: kind.2, test }
}

const CONFIGS: [Config; 4] = [
    config("search_train", SEARCH, false),
    config("search_test", SEARCH, true),
    config("recommendation_train", REC, false),
    config("recommendation_test", REC, true),
];

const HISTORY: &str = "recent_clicked_note_idxs";

/// A table of requests once it was looked at.
struct Requests {
    config: &'static Config,
    columns: [Column; 4],
    tables: Vec<Table>,
}

/// The files once they were looked at.
pub(super) struct Opened {
    contents: bool,
    requests: Vec<Requests>,
    texts: Vec<Table>,
    unread: Vec<PathBuf>,
}

fn note_columns() -> [Column; 3] {
    [Column::required("note_idx"), Column::optional("note_title"), Column::optional("note_content")]
}

impl Qilin {
    pub(super) fn open(&self) -> Result<Opened> {
        let mut requests = Vec::new();
        let open = |inputs: &[_], columns: &[Column]| table::open_all(inputs, columns, &Reading::default());
        for config in &CONFIGS {
            let files = if self.dir.exists() { inputs::named(&self.dir, config.name)? } else { Vec::new() };
            if files.is_empty() {
                continue;
            }
            let columns = [
                Column::required("user_idx"),
                Column::optional("query"),
                Column::optional(HISTORY),
                Column::required(config.results),
            ];
            requests.push(Requests { config, tables: open(&files, &columns)?, columns });
        }
        if requests.is_empty() {
            return Err(missing(
                &self.dir,
                "search_train, search_test, recommendation_train or recommendation_test",
                "give the directory of the data set: search_train/*.parquet, or search_train.csv, and so on",
            ));
        }
        let texts = inputs::named(&self.dir, "notes")?;
        let texts = if texts.is_empty() { Vec::new() } else { open(&texts, &note_columns())? };
        let read = requests.iter().flat_map(|r| &r.tables).chain(&texts).map(Table::path);
        let unread = inputs::others(&self.dir, read)?;
        Ok(Opened { contents: self.contents, requests, texts, unread })
    }
}

impl Reader for Opened {
    fn read(&mut self, log: &mut Log, intake: &mut Intake, _: &Settings) -> Result<()> {
        intake.notes.extend(notes::not_read(&self.unread));
        self.requests.iter().flat_map(|r| &r.tables).for_each(|t| intake.expect(t.path()));
        let (mut request, mut unclicked) = (0u64, 0u64);
        for Requests { config, columns, tables } in &mut self.requests {
            for table in tables {
                table.read(intake, columns, &mut |row| {
                    request += 1;
                    unclicked += u64::from(!add(log, config, row, request)?);
                    Ok(())
                })?;
            }
        }
        intake.counts.drop("request without a click", unclicked);
        Ok(())
    }

    fn texts(&mut self, texts: &mut ItemTexts, intake: &mut Intake) -> Result<()> {
        let contents = self.contents;
        for table in &mut self.texts {
            table.read(intake, &note_columns(), &mut |row| {
                let [note, title, content] = row else { return Ok(()) };
                let id = note.integer_id("note_idx")?.ok_or_else(|| absent("note_idx"))?;
                let title = title.text("note_title")?.unwrap_or_default();
                let content = content.text("note_content")?.unwrap_or_default();
                match contents || title.is_empty() {
                    true => texts.set(&id, Some(&format!("{title} {content}"))),
                    false => texts.set(&id, Some(&title)),
                }
            })?;
        }
        Ok(())
    }
}

/// A result of a request.
struct Shown {
    note: String,
    clicked: bool,
    time: Option<Value>,
}

/// Adds a request; `false`: nothing was clicked.
fn add(log: &mut Log, config: &Config, row: &[Cell], request: u64) -> Checked<bool> {
    let [user, query, history, results] = row else { return Ok(true) };
    let user = user.integer_id("user_idx")?.ok_or_else(|| absent("user_idx"))?;
    let query = query.text("query")?.unwrap_or_default();
    let history = list(history.nested(HISTORY)?, HISTORY)?;
    let history = history.iter().enumerate().map(|(i, v)| note(v, &format!("{HISTORY}[{i}]")));
    let history: Vec<String> = history.collect::<Checked<_>>()?;
    let shown = list(results.nested(config.results)?, config.results)?;
    let shown = shown.iter().enumerate().map(|(i, result)| read_result(result, config, i));
    let shown: Vec<Shown> = shown.collect::<Checked<_>>()?;
    if !shown.iter().any(|s| s.clicked) {
        return Ok(false);
    }
    let time = shown.iter().find_map(|s| s.time.as_ref()).ok_or_else(|| absent(config.time))?;
    let time = log.clock.read(&time.clone().into(), config.time)?;
    let task = log.task(config.task)?;
    let user = log.users.number(&user, "user_idx")?;
    let history = history.iter().map(|h| log.items.number(h, HISTORY)).collect::<Checked<Vec<u32>>>()?;
    for (place, shown) in shown.iter().enumerate() {
        let entry = Entry {
            user,
            item: log.items.number(&shown.note, config.results)?,
            task,
            time: Some(time),
            wanted: shown.clicked,
            test: config.test,
            request,
            query: &query,
            // Once a request is enough: it is read from the first event.
            history: if place == 0 { &history } else { &[] },
        };
        log.push(entry)?;
    }
    Ok(true)
}

fn read_result(result: &Value, config: &Config, place: usize) -> Checked<Shown> {
    let at = |field: &str| format!("{}[{place}].{field}", config.results);
    let Some(fields) = result.as_object() else {
        return Err(bad(&format!("{}[{place}]", config.results), result, "an object"));
    };
    let note = note(fields.get("note_idx").unwrap_or(&Value::Null), &at("note_idx"))?;
    let clicked = match fields.get("click") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(clicked)) => *clicked,
        Some(value) => value.as_f64().ok_or_else(|| bad(&at("click"), value, "0 or 1"))? > 0.0,
    };
    let time = [config.time, "timestamp"].iter().find_map(|name| fields.get(*name));
    Ok(Shown { note, clicked, time: time.filter(|t| !t.is_null()).cloned() })
}

/// A list; null is empty.
fn list(value: Value, column: &str) -> Checked<Vec<Value>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => Ok(list),
        other => Err(bad(column, &other, "a list")),
    }
}

/// The number of a note; one that a data frame stored as a float is one.
fn note(value: &Value, place: &str) -> Checked<String> {
    let whole = value.as_i64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0).map(|x| x as i64));
    match (whole, value) {
        (Some(number), _) => Ok(number.to_string()),
        (None, Value::String(text)) if !text.trim().is_empty() => Ok(text.trim().into()),
        _ => Err(bad(place, value, "the number of a note")),
    }
}

fn bad(place: &str, value: &Value, wanted: &str) -> Fault {
    let error = Error::data(format!("{} instead of {wanted}", describe(value))).at(place);
    Fault::new("bad nested value", error.remedy("correct it, or leave such rows out with --skip-bad-rows N"))
}
