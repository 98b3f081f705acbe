//! Reading and checking a data directory.

use super::fault::{Checked, Fault, describe};
use super::filenames::{self, DataFiles};
use super::prompt::Prompts;
use super::record::{Catalogue, Record, Split};
use super::rows::{self, Row};
use super::settings::DataSettings;
use crate::error::{self, Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A whole data directory, checked.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// The items.
    pub items: Catalogue,
    /// Task names; a record holds its task's position here.
    pub tasks: Vec<String>,
    /// Records to learn from.
    pub train: Split,
    /// Records to choose the best checkpoint with.
    pub valid: Split,
    /// Records to judge the result with.
    pub test: Split,
    /// Further evaluation sets: `test-NAME` files, sorted by name.
    pub extra: Vec<Split>,
    /// Files of general text: to learn the null space from, and (`general-heldout`) to measure with.
    pub general: Vec<PathBuf>,
    /// Files of the directory that no part of a run reads.
    pub unread: Vec<PathBuf>,
    /// Rows left out, by reason.
    pub skipped: BTreeMap<String, usize>,
    /// The message of the first row left out for each reason.
    pub first_faults: BTreeMap<String, String>,
}

impl Dataset {
    /// Reads `dir`. Rows that are not as they must be are errors, or are left out and counted while
    /// there are no more than `settings.skip_bad_rows` of them.
    ///
    /// # Errors
    /// Names file, line (row), field, value and remedy.
    pub fn load(dir: &Path, settings: &DataSettings) -> Result<Self> {
        Self::load_with(dir, settings, |listed| listed)
    }
    /// The same with the items that `choose` makes of those listed in `dir`: records are read by its numbers.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn load_with(
        dir: &Path,
        settings: &DataSettings,
        choose: impl FnOnce(Catalogue) -> Catalogue,
    ) -> Result<Self> {
        settings.validate()?;
        let prompts = Prompts::new(settings, None, None)?;
        let files = DataFiles::of(dir)?;
        let mut loader = Loader::new(settings, prompts);
        loader.read_items(dir, files.table("items"))?;
        loader.items = choose(loader.items);
        let mut split = |name: &str| loader.read_split(files.table(name), name);
        let (train, valid, test) = (split("train")?, split("valid")?, split("test")?);
        if [&train, &valid, &test].iter().all(|s| s.records.is_empty()) {
            return Err(Error::data("no records: neither train, valid nor test has any")
                .at(dir.display())
                .remedy("`gems-engine prepare` makes a data directory from logs"));
        }
        let extra = files.extra().map(|name| loader.read_split(files.table(&format!("test-{name}")), name));
        let extra = extra.collect::<Result<_>>()?;
        let (general, unread) = (files.general, files.unread);
        let Loader { items, tasks, skipped, first_faults, .. } = loader;
        Ok(Self { items, tasks, train, valid, test, extra, general, unread, skipped, first_faults })
    }
    /// The items that `dir` lists, and nothing else of it.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn listed_items(dir: &Path, settings: &DataSettings) -> Result<Catalogue> {
        let mut loader = Loader::new(settings, Prompts::new(settings, None, None)?);
        loader.read_items(dir, DataFiles::of(dir)?.table("items"))?;
        Ok(loader.items)
    }
    /// All evaluation sets: `test` first, then the extra ones.
    pub fn tests(&self) -> impl Iterator<Item = &Split> {
        std::iter::once(&self.test).chain(&self.extra)
    }
    /// The number of task `name`.
    pub fn task(&self, name: &str) -> Option<u32> {
        self.tasks.iter().position(|t| t == name).map(|i| i as u32)
    }
}

struct Loader<'a> {
    settings: &'a DataSettings,
    prompts: Prompts,
    items: Catalogue,
    tasks: Vec<String>,
    skipped: BTreeMap<String, usize>,
    first_faults: BTreeMap<String, String>,
}

/// A value of the wrong kind in `field`.
fn wrong(field: &str, value: &Value, wanted: &str) -> Fault {
    let error = Error::data(format!("{} instead of {wanted}", describe(value))).at(field);
    Fault::new("wrong type", error.remedy(format!("write {wanted}")))
}

impl<'a> Loader<'a> {
    fn new(settings: &'a DataSettings, prompts: Prompts) -> Self {
        let (items, tasks) = (Catalogue::default(), settings.tasks.clone());
        Self { settings, prompts, items, tasks, skipped: BTreeMap::new(), first_faults: BTreeMap::new() }
    }

    /// Counts a bad row, or gives its error back when there are too many.
    fn skip(&mut self, fault: Fault) -> Result<()> {
        let so_far: usize = self.skipped.values().sum();
        if !fault.is_skippable() || so_far >= self.settings.skip_bad_rows {
            return Err(match (so_far, fault.is_skippable()) {
                (0, _) | (_, false) => fault.error,
                (n, true) => {
                    Error::data(format!("{n} bad rows were left out, and here is one more: {}", fault.error))
                        .at("data.skip_bad_rows")
                }
            });
        }
        *self.skipped.entry(fault.reason.into()).or_default() += 1;
        self.first_faults.entry(fault.reason.into()).or_insert_with(|| fault.error.to_string());
        Ok(())
    }

    fn read_items(&mut self, dir: &Path, parts: &[PathBuf]) -> Result<()> {
        if parts.is_empty() {
            return Err(Error::data("no items.jsonl or items.parquet").at(dir.display()).remedy(
                "list every item as {\"item\": id, \"text\": title}; `gems-engine prepare` writes it",
            ));
        }
        self.each(parts, ITEM_FIELDS, |loader, fields| add_item(&mut loader.items, &fields))?;
        if self.items.is_empty() {
            return Err(Error::data("no items").at(parts[0].display()).remedy("list every item"));
        }
        Ok(())
    }

    fn read_split(&mut self, parts: &[PathBuf], name: &str) -> Result<Split> {
        let mut split = Split { name: name.into(), records: Vec::new() };
        self.each(parts, RECORD_FIELDS, |loader, fields| {
            split.records.push(loader.record(fields)?);
            Ok(())
        })?;
        Ok(split)
    }

    /// Hands the fields of every row of a table over, and counts or returns what is wrong with them.
    fn each(
        &mut self,
        parts: &[PathBuf],
        known: &'static [&'static str],
        mut take: impl FnMut(&mut Self, Map<String, Value>) -> Checked<()>,
    ) -> Result<()> {
        for path in parts {
            let unit = if filenames::is_parquet(&filenames::name(path).1) { "row" } else { "line" };
            for row in rows::open(path, Some(known))? {
                let taken = row.and_then(|Row { number, fields }| {
                    take(self, fields).map_err(|f| f.place(path, unit, number as u64))
                });
                taken.or_else(|fault| self.skip(fault))?;
            }
        }
        Ok(())
    }

    fn record(&mut self, mut fields: Map<String, Value>) -> Checked<Record> {
        check_names(&fields, RECORD_FIELDS)?;
        let name = match fields.get("task") {
            Some(Value::String(name)) if !name.trim().is_empty() => name.clone(),
            Some(other) if !other.is_null() => return Err(wrong("task", other, "the name of a task")),
            _ => return Err(absent("task", "write \"task\": \"rec\" or \"search\"")),
        };
        let text = string(&mut fields, "text")?;
        let mut record = match text {
            Some(text) => self.text_record(&fields, text)?,
            None => self.request(&name, &mut fields)?,
        };
        record.task = self.task_number(&name, record.text.is_some())?;
        Ok(record)
    }

    /// The number of the task; a new one is appended unless the settings list them all.
    fn task_number(&mut self, name: &str, is_text: bool) -> Checked<u32> {
        let known = self.tasks.iter().position(|t| t == name);
        let allowed = self.settings.tasks.is_empty() && (is_text || self.prompts.knows(name));
        match known {
            Some(number) if is_text || self.prompts.knows(name) => Ok(number as u32),
            None if allowed => {
                self.tasks.push(name.into());
                Ok(self.tasks.len() as u32 - 1)
            }
            _ => {
                let mut names: Vec<&str> = self.prompts.tasks().collect();
                names.extend(
                    self.settings.tasks.iter().map(String::as_str).filter(|t| !self.prompts.knows(t)),
                );
                let error = Error::data(format!("unknown task `{name}`; known: {}", names.join(", ")));
                let near = error::nearest(name, names.iter().copied());
                let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? otherwise "));
                let remedy = match self.settings.tasks.is_empty() || known.is_some() {
                    true => format!("{near}give it a prompt: --set data.templates.{name}=\"..\""),
                    false => "add it to data.tasks, or correct the row".into(),
                };
                Err(Fault::new("unknown task", error.at("task").remedy(remedy)))
            }
        }
    }

    fn text_record(&self, fields: &Map<String, Value>, text: Box<str>) -> Checked<Record> {
        let other = ["history", "query", "target", "answer", "negatives"];
        if let Some(field) = other.iter().find(|f| fields.get(**f).is_some_and(|v| !v.is_null())) {
            let error = Error::data("a row with `text` is a plain text and has no request").at(field);
            return Err(Fault::new("text and request", error.remedy("split it into two rows")));
        }
        Ok(Record { text: Some(text), ..Record::default() })
    }

    fn request(&self, task: &str, fields: &mut Map<String, Value>) -> Checked<Record> {
        let history = self.items(fields, "history")?;
        let target = self.items(fields, "target")?;
        let negatives = self.items(fields, "negatives")?;
        let query = string(fields, "query")?;
        let user = fields.get("user").map(|v| scalar("user", v)).transpose()?.flatten();
        let answer = string(fields, "answer")?;
        if answer.is_some() && !(target.is_empty() && negatives.is_empty()) {
            let error = Error::data("a row with `answer` is answered by a text and has no items to rank");
            return Err(Fault::new("answer and target", error.at("target").remedy("split it into two rows")));
        }
        if target.is_empty() && answer.is_none() {
            return Err(absent("target", "list the items that answer the request"));
        }
        if let Some(twice) = target.iter().enumerate().find(|(i, t)| target[..*i].contains(t)) {
            let error = Error::data(format!("item `{}` is listed twice", self.items.id(*twice.1)));
            return Err(Fault::new("repeated target", error.at("target").remedy("list it once")));
        }
        if let Some(item) = negatives.iter().find(|n| target.contains(n)) {
            let error = Error::data(format!("item `{}` is also a target", self.items.id(*item)));
            return Err(Fault::new("negative is target", error.at("negatives").remedy("remove it")));
        }
        if self.prompts.knows(task)
            && let Some(field) = self.prompts.missing(task, !history.is_empty(), query.is_some())
        {
            let error = Error::data(format!("empty, but the prompt of task `{task}` needs it")).at(field);
            let remedy = format!("remove the row, or give data.templates.{task} an {{% if {field} %}}");
            return Err(Fault::new("empty history or query", error.remedy(remedy)));
        }
        let timestamp = fields.get("timestamp").map(timestamp).transpose()?.flatten();
        Ok(Record { task: 0, user, history, query, target, answer, negatives, timestamp, text: None })
    }

    /// A list of items as numbers; absent or null is empty.
    fn items(&self, fields: &Map<String, Value>, field: &'static str) -> Checked<Box<[u32]>> {
        let list = match fields.get(field) {
            None | Some(Value::Null) => return Ok(Box::default()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong(field, other, "a list of items")),
        };
        let number = |(i, value): (usize, &Value)| {
            let place = format!("{field}[{i}]");
            let id = scalar(&place, value)?.ok_or_else(|| wrong(&place, value, "an item"))?;
            self.items.number(&id).ok_or_else(|| {
                let error = Error::data(format!("item `{id}` is not among the {} items", self.items.len()));
                Fault::new(
                    "unknown item",
                    error.at(place).remedy("add it to the items file, or remove the row"),
                )
            })
        };
        list.iter().enumerate().map(number).collect()
    }
}

const ITEM_FIELDS: &[&str] = &["item", "text"];
const RECORD_FIELDS: &[&str] =
    &["task", "user", "history", "query", "target", "answer", "negatives", "timestamp", "text"];

/// A field that is nearly one of `known` is a misspelling; other fields are the user's own.
pub(crate) fn check_names(fields: &Map<String, Value>, known: &[&str]) -> Checked<()> {
    for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
        let nearest = known
            .iter()
            .filter(|k| !fields.contains_key(**k))
            .find(|k| strsim::damerau_levenshtein(k, &name.to_lowercase()) <= 1 + usize::from(k.len() > 6));
        if let Some(nearest) = nearest {
            let error = Error::data("unknown field").at(name);
            return Err(Fault::new("misspelt field", error.remedy(format!("did you mean `{nearest}`?"))));
        }
    }
    Ok(())
}

fn absent(field: &str, remedy: &str) -> Fault {
    Fault::new("missing field", Error::data("missing or empty").at(field).remedy(remedy))
}

fn add_item(items: &mut Catalogue, fields: &Map<String, Value>) -> Checked<()> {
    check_names(fields, ITEM_FIELDS)?;
    let value = fields.get("item").unwrap_or(&Value::Null);
    let id = scalar("item", value)?.ok_or_else(|| absent("item", "write {\"item\": id}"))?;
    let text = match fields.get("text") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(other) => return Err(wrong("text", other, "a string")),
    };
    items.add(&id, text).map(|_| ()).map_err(|e| Fault::new("bad item", e))
}

/// An id: a string, or an integer (also one stored as a float, as data frames do), as text.
fn scalar(field: &str, value: &Value) -> Checked<Option<Box<str>>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.as_str().into())),
        Value::Number(n) => match n.as_f64() {
            _ if n.is_i64() || n.is_u64() => Ok(Some(n.to_string().into())),
            Some(x) if x.fract() == 0.0 && x.abs() < 9e15 => Ok(Some((x as i64).to_string().into())),
            _ => Err(wrong(field, value, "a string or an integer")),
        },
        other => Err(wrong(field, other, "a string or an integer")),
    }
}

/// A string that says something; null and blanks count as absent.
fn string(fields: &mut Map<String, Value>, field: &str) -> Checked<Option<Box<str>>> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str().into())),
        Some(other) => Err(wrong(field, other, "a string")),
    }
}

fn timestamp(value: &Value) -> Checked<Option<i64>> {
    match value {
        Value::Null => Ok(None),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(seconds), _) => Ok(Some(seconds)),
            (None, Some(x)) if x.abs() < 9e18 => Ok(Some(x.floor() as i64)),
            _ => Err(wrong("timestamp", value, "a number of seconds")),
        },
        other => Err(wrong("timestamp", other, "a number of seconds")),
    }
}
