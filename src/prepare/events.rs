//! The general source: one table of events, in one file or many shards.

use super::cell::{Cell, absent, wrong};
use super::columns::{EventColumns, HISTORY, LABEL, QUERY_ID, TIMESTAMP};
use super::inputs::{self, Input};
use super::intake::Intake;
use super::log::{Entry, Log};
use super::reader::{ItemTexts, Reader};
use super::settings::{HistoryRule, NegativeKind, Settings, SplitRule};
use super::table::{self, Column, Reading, Table};
use super::time::Clock;
use super::unit::Unit;
use crate::data::fault::{Checked, Fault, UNREADABLE};
use crate::error::{self, Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

/// Tables of events, and of items' texts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Events {
    /// Files, patterns, or directories of shards.
    pub files: Vec<PathBuf>,
    /// Tables of items' texts.
    pub items: Vec<PathBuf>,
    /// Tables of queries' texts, for events that name theirs by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<PathBuf>,
    /// What the columns are called.
    pub columns: EventColumns,
    /// How text is read.
    pub reading: Reading,
    /// How the items' texts are read, if otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_reading: Option<Reading>,
    /// How the queries' texts are read, if otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_reading: Option<Reading>,
    /// Take the order of the rows for the order of time.
    pub row_order: bool,
    /// Labels that say that an item was wanted, where labels are words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wanted: Vec<String>,
}

/// Any number but 0 that two requests hardly share.
pub(super) fn request_number(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish() | 1
}

/// The tables once they were looked at.
pub(super) struct Opened<'e> {
    events: &'e Events,
    columns: Vec<Column>,
    tables: Vec<Table>,
    item_columns: Vec<Column>,
    item_tables: Vec<Table>,
    query_columns: Vec<Column>,
    query_tables: Vec<Table>,
    notes: Vec<String>,
}

impl Events {
    pub(super) fn open(&self, settings: &Settings) -> Result<Opened<'_>> {
        self.validate(settings)?;
        let found = inputs::find(&self.files)?;
        if found.tables.is_empty() {
            return Err(Error::usage("there are items and no events").remedy("name the table of events"));
        }
        let columns = self.columns.of_events(self.row_order, !self.queries.is_empty());
        let [reading, of_items, of_queries] = self.readings();
        let (mut unread, mut items) = (found.unread, inputs::find(&self.items)?);
        items.tables.append(&mut items.items);
        let beside = found.items.into_iter().map(|input| input.path);
        match self.items.is_empty() {
            true => items.tables.extend(beside.map(|path| Input::new(&path))),
            false => unread.extend(beside.filter(|path| !items.tables.iter().any(|i| i.path == *path))),
        }
        unread.extend(items.unread);
        let (item_columns, query_columns) = (self.columns.of_items(), self.columns.of_queries());
        let opened = Opened {
            tables: table::open_all(&found.tables, &columns, reading)?,
            item_tables: open_some(&items.tables, &item_columns, of_items)?,
            query_tables: open_some(&inputs::find(&self.queries)?.tables, &query_columns, of_queries)?,
            notes: super::notes::not_read(&unread).into_iter().collect(),
            events: self,
            columns,
            item_columns,
            query_columns,
        };
        opened.check(settings)?;
        Ok(opened)
    }

    /// How the tables of events, of items and of queries are read.
    fn readings(&self) -> [&Reading; 3] {
        let all = &self.reading;
        [all, self.item_reading.as_ref().unwrap_or(all), self.query_reading.as_ref().unwrap_or(all)]
    }

    fn validate(&self, settings: &Settings) -> Result<()> {
        self.readings().into_iter().try_for_each(Reading::validate)?;
        self.columns.validate()?;
        let refuse = |what: &str, flags: &str, remedy: &str| Err(Error::usage(what).at(flags).remedy(remedy));
        if self.row_order && self.columns.names("timestamp") {
            let what = "either the rows' order or a column says when";
            return refuse(what, "--row-order, --columns timestamp", "leave one of them out");
        }
        if self.row_order && settings.time_unit.is_some() {
            return refuse("there are no times", "--row-order, --time-unit", "leave one of them out");
        }
        if settings.min_label.is_some() && !self.wanted.is_empty() {
            return refuse("labels are numbers or words", "--min-label, --wanted", "leave one of them out");
        }
        if self.queries.is_empty() && self.columns.names("query_id") {
            return refuse(
                "there is no table of queries",
                "--columns query_id",
                "give it with --queries FILE",
            );
        }
        if !self.queries.is_empty() && self.columns.names("query") {
            let what = "a query is a text of the log or of a table of queries";
            return refuse(what, "--columns query, --queries", "leave one of them out");
        }
        Ok(())
    }
}

fn open_some(inputs: &[Input], columns: &[Column], reading: &Reading) -> Result<Vec<Table>> {
    if inputs.is_empty() { Ok(Vec::new()) } else { table::open_all(inputs, columns, reading) }
}

impl Opened<'_> {
    /// What is asked for and is not in any of the files.
    fn check(&self, settings: &Settings) -> Result<()> {
        self.check_reading()?;
        let has = |column: usize| self.tables.iter().any(|t| t.has(column));
        if settings.negatives.wants(NegativeKind::Bm25) && self.item_tables.is_empty() {
            return Err(Error::usage("BM25 negatives need texts of the items, and there are none")
                .at("--negatives")
                .remedy("give the items' texts (`prepare events --items FILE`), or use uniform negatives"));
        }
        if !settings.align.is_empty() && self.item_tables.is_empty() {
            return Err(Error::usage("there are no texts of the items to learn")
                .at("--align")
                .remedy("give them with --items FILE"));
        }
        let flag = if settings.min_label.is_some() { "--min-label" } else { "--wanted" };
        let labels = has(LABEL) || self.events.columns.names("label");
        if (settings.min_label.is_some() || !self.events.wanted.is_empty()) && !labels {
            return Err(Error::usage("there is no column of labels")
                .at(flag)
                .remedy("say which it is: --columns label=NAME"));
        }
        if settings.history == HistoryRule::Log && !has(HISTORY) {
            return Err(Error::usage("this log gives no histories")
                .at("--history log")
                .remedy("all or own; or say which column has them: --columns history=NAME"));
        }
        if !self.query_tables.is_empty() && !has(QUERY_ID) {
            return Err(Error::usage("the events name no queries")
                .at("--queries")
                .remedy("say which column does: --columns query_id=NAME"));
        }
        Ok(())
    }

    /// What is said of text where there is none.
    fn check_reading(&self) -> Result<()> {
        let none = |flag: Option<&str>, what: &str| match flag {
            Some(flag) => {
                Err(Error::usage(format!("none of the files is {what}")).at(flag).remedy("leave it out"))
            }
            None => Ok(()),
        };
        let events = self.events;
        let own = [(&events.item_reading, &self.item_tables), (&events.query_reading, &self.query_tables)];
        // Tables that are not read in a way of their own are read as the events are.
        let common = own.iter().filter(|(reading, _)| reading.is_none()).flat_map(|(_, tables)| *tables);
        let common: Vec<&Table> = self.tables.iter().chain(common).collect();
        let own =
            own.iter().filter_map(|(reading, tables)| Some((reading.as_ref()?, tables.iter().collect())));
        for (reading, tables) in std::iter::once((&events.reading, common)).chain(own) {
            if !tables.iter().any(|t| t.is_delimited()) {
                none(reading.flag(true), "delimited text")?;
            }
            if tables.iter().all(|t| t.is_parquet()) {
                none(reading.flag(false), "text")?;
            }
        }
        Ok(())
    }

    fn read_queries(&mut self, intake: &mut Intake) -> Result<HashMap<Box<str>, Box<str>>> {
        let (mut texts, columns) = (HashMap::new(), &self.query_columns);
        for table in &mut self.query_tables {
            table.read(intake, columns, &mut |row| {
                let [id, query] = row else { return Ok(()) };
                let id = id.id(&columns[0].name)?.ok_or_else(|| absent(&columns[0].name))?;
                let query = query.text(&columns[1].name)?.unwrap_or_default();
                match texts.insert(Box::from(id.as_ref()), Box::from(query.as_ref())) {
                    Some(before) if *before != *query => {
                        let error = Error::data(format!("query `{id}` has two texts")).at(&columns[0].name);
                        Err(Fault::new("repeated query", error.remedy("keep one row of every query")))
                    }
                    _ => Ok(()),
                }
            })?;
        }
        Ok(texts)
    }
}

impl Reader for Opened<'_> {
    fn read(&mut self, log: &mut Log, intake: &mut Intake, settings: &Settings) -> Result<()> {
        let queries = self.read_queries(intake)?;
        self.tables.iter().for_each(|t| intake.expect(t.path()));
        if self.events.row_order {
            log.clock = Clock::new(Some(Unit::Count));
        }
        let mut sink = Sink::new(self.events, &self.columns, settings, queries, log);
        for table in &mut self.tables {
            let named = self.events.columns.names("label") && table.is_open();
            sink.labelled = table.has(LABEL) || named;
            table.read(intake, &self.columns, &mut |row| sink.push(row))?;
        }
        intake.counts.drop("without a label", sink.unlabelled);
        intake.counts.drop("not wanted and without an item", sink.itemless);
        table::check_named(&self.tables, &self.columns)?;
        sink.check()?;
        if settings.time_unit.is_some() && !log.clock.has_numbers() {
            intake.notes.push("no time is a number: --time-unit says nothing".into());
        }
        intake.notes.append(&mut self.notes);
        super::notes::of_tables(&self.tables, &self.columns, self.events.row_order, intake);
        super::notes::of_names(log, intake);
        Ok(())
    }

    fn texts(&mut self, texts: &mut ItemTexts, intake: &mut Intake) -> Result<()> {
        let columns = &self.item_columns;
        for table in &mut self.item_tables {
            table.read(intake, columns, &mut |row| {
                let [item, text] = row else { return Ok(()) };
                let id = item.id(&columns[0].name)?.ok_or_else(|| absent(&columns[0].name))?;
                texts.set(&id, text.text(&columns[1].name)?.as_deref())
            })?;
        }
        table::check_named(&self.item_tables, columns)?;
        super::notes::of_items(&self.item_tables, texts, columns, intake);
        Ok(())
    }
}

/// Takes rows up as events.
struct Sink<'s> {
    events: &'s Events,
    columns: &'s [Column],
    settings: &'s Settings,
    queries: HashMap<Box<str>, Box<str>>,
    log: &'s mut Log,
    /// Whether the file that is read has labels.
    labelled: bool,
    unlabelled: u64,
    /// Events with nothing and of no matter: a page left, a search sent.
    itemless: u64,
    /// Labels that are words.
    words: BTreeSet<String>,
    rows: i64,
    last_user: Option<u32>,
    /// Runs of rows of one user.
    runs: usize,
}

/// Most different words that labels may be.
const MAX_WORDS: usize = 64;

impl<'s> Sink<'s> {
    fn new(
        events: &'s Events,
        columns: &'s [Column],
        settings: &'s Settings,
        queries: HashMap<Box<str>, Box<str>>,
        log: &'s mut Log,
    ) -> Self {
        let (words, last_user) = (BTreeSet::new(), None);
        Self {
            events,
            columns,
            settings,
            queries,
            log,
            labelled: false,
            unlabelled: 0,
            itemless: 0,
            words,
            rows: 0,
            last_user,
            runs: 0,
        }
    }

    fn name(&self, column: usize) -> &'s str {
        &self.columns[column].name
    }

    fn push(&mut self, row: &[Cell]) -> Checked<()> {
        let [user, item, time, task, query, label, request, query_id, history] = row else { return Ok(()) };
        let Some(wanted) = self.wanted(label)? else {
            self.unlabelled += 1;
            return Ok(());
        };
        if !wanted && item.is_missing() {
            self.itemless += 1;
            return Ok(());
        }
        let user = user.id(self.name(0))?.ok_or_else(|| absent(self.name(0)))?;
        let user = self.log.users.number(&user, self.name(0))?;
        let query_id = query_id.id(self.name(QUERY_ID))?;
        let query = query.text(self.name(4))?.unwrap_or_default();
        let looked_up = query_id.as_deref().map(|id| self.query(id)).transpose()?;
        let query = looked_up.as_deref().unwrap_or(&query);
        let task = task.text(self.name(3))?;
        let usual = if query.is_empty() { "rec" } else { "search" };
        let task = self.log.task(task.as_deref().unwrap_or(usual))?;
        let request = request.id(self.name(6))?.or(query_id).map(request_number);
        let history = match history {
            Cell::Missing => Vec::new(),
            list => self.history(list)?,
        };
        let event = Entry { user, task, wanted, query, history: &history, ..Entry::default() };
        match item.list() {
            Some(items) => self.sequence(event, items, time, request),
            None => self.event(event, item, time, request),
        }
    }

    /// One event.
    fn event(&mut self, event: Entry, item: &Cell, time: &Cell, request: Option<u64>) -> Checked<()> {
        let item = item.id(self.name(1))?.ok_or_else(|| absent(self.name(1)))?;
        let time = match self.events.row_order {
            true => self.next_row(event.user)?,
            false => self.log.clock.read(time, self.name(TIMESTAMP))?,
        };
        let item = self.log.items.number(&item, self.name(1))?;
        let request = request.unwrap_or(match event.query {
            "" => 0,
            query => request_number((query, time)),
        });
        self.log.push(Entry { item, time: Some(time), request, ..event })
    }

    /// A row that holds a list of items: an event each, with as many times or in the list's order.
    fn sequence(&mut self, event: Entry, items: &[Value], times: &Cell, request: Option<u64>) -> Checked<()> {
        let wrong_times =
            || wrong(self.columns[TIMESTAMP].name.as_str(), times, "a list of as many times as items");
        let times = match times.list() {
            _ if self.events.row_order => vec![Cell::Missing; items.len()],
            Some(times) if times.len() == items.len() => times.iter().map(|t| t.clone().into()).collect(),
            _ => return Err(wrong_times()),
        };
        for (item, time) in items.iter().zip(times) {
            self.event(event, &item.clone().into(), &time, request)?;
        }
        Ok(())
    }

    /// The time of a row that has none.
    fn next_row(&mut self, user: u32) -> Checked<i64> {
        self.runs += usize::from(self.last_user.replace(user) != Some(user));
        self.rows += 1;
        self.log.clock.read(&Cell::Int(self.rows), "row")
    }

    /// Whether an item was wanted; none: the row does not say, where others do.
    fn wanted(&mut self, label: &Cell) -> Checked<Option<bool>> {
        if !self.labelled {
            return match label {
                Cell::Missing => Ok(Some(true)),
                _ => {
                    let what = "first found here: the rows before it would all count as wanted";
                    let remedy = "name it with --columns label=NAME: rows without a label are then left out";
                    Err(Fault::new(UNREADABLE, Error::data(what).at(self.name(LABEL)).remedy(remedy)))
                }
            };
        }
        if label.is_no_value() {
            return Ok(None);
        }
        if !self.events.wanted.is_empty() {
            let word = label.text(self.name(LABEL))?.unwrap_or_default();
            if self.words.len() < MAX_WORDS && !self.words.contains(word.as_ref()) {
                self.words.insert(word.to_string());
            }
            return Ok(Some(self.events.wanted.iter().any(|w| *w == word)));
        }
        let number = label.number(self.name(LABEL)).map_err(|f| {
            let remedy =
                "labels are numbers (with --min-label X), or words of which --wanted WORD,.. names some";
            Fault::new(f.reason, f.error.remedy(remedy))
        })?;
        Ok(number.map(|l| self.settings.min_label.map_or(l > 0.0, |least| l >= least)))
    }

    fn query(&self, id: &str) -> Checked<String> {
        let text = self.queries.get(id).map(|text| text.to_string());
        text.ok_or_else(|| {
            let error =
                Error::data(format!("query `{id}` is in no table of queries")).at(self.name(QUERY_ID));
            Fault::new("unknown query", error.remedy("add it, or leave such rows out with --skip-bad-rows N"))
        })
    }

    fn history(&mut self, list: &Cell) -> Checked<Vec<u32>> {
        let column = self.name(HISTORY);
        let items = match list.nested(column)? {
            Value::Null => Vec::new(),
            Value::Array(items) => items,
            _ => return Err(wrong(column, list, "a list of items")),
        };
        let number = |item: Value| {
            let cell = Cell::from(item);
            let id = cell.id(column)?.ok_or_else(|| absent(column))?;
            self.log.items.number(&id, column)
        };
        items.into_iter().map(number).collect()
    }

    /// What was named and never met.
    fn check(&self) -> Result<()> {
        let never = self.events.wanted.iter().find(|w| !self.words.contains(*w));
        if let Some(never) = never.filter(|_| self.words.len() < MAX_WORDS) {
            let near = error::nearest(never, self.words.iter().map(String::as_str));
            let near = near.map_or(String::new(), |n| format!("did you mean `{n}`? "));
            let there = self.words.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::usage(format!("no label is `{never}`"))
                .at("--wanted")
                .remedy(format!("{near}there are: {there}")));
        }
        let by_time = matches!(self.settings.split, SplitRule::Time { .. });
        if self.events.row_order && by_time && self.runs > 1 && self.runs == self.log.users.len() {
            return Err(Error::usage(
                "the rows are grouped by user: their order is no time that users share",
            )
            .at("--row-order, --split time")
            .remedy("use --split leave-one-out or users"));
        }
        Ok(())
    }
}
