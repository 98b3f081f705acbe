//! KuaiSAR (arXiv 2306.07705): recommendations and searches of a video site, as CSV.
//!
//! `rec_inter.csv`, `src_inter.csv`: a row an item shown; `item_features.csv`: categories, whose English names
//! are the only readable text there is.

use super::cell::{Cell, absent};
use super::events::request_number;
use super::inputs;
use super::intake::Intake;
use super::log::{Entry, Log};
use super::notes;
use super::reader::{ItemTexts, Reader};
use super::settings::Settings;
use super::table::{self, Column, Reading, Table};
use crate::data::fault::Checked;
use crate::error::Result;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// KuaiSAR's files.
#[derive(Debug, Clone, Serialize)]
pub struct KuaiSar {
    /// The directory that holds them.
    pub dir: PathBuf,
}

const SEARCH: [&str; 7] = [
    "user_id",
    "item_id",
    "search_session_timestamp",
    "click_cnt",
    "keyword",
    "search_session_id",
    "item_type",
];
const REC: [&str; 4] = ["user_id", "item_id", "timestamp", "click"];
/// What can be ranked: searches also find users and live streams.
const KINDS: [&str; 2] = ["VIDEO", "IMAGE_ATLAS"];
const LEVELS: [&str; 4] = ["first", "second", "third", "fourth"];

/// The files once they were looked at.
pub(super) struct Opened {
    rec: Vec<Table>,
    search: Vec<Table>,
    features: Vec<Table>,
    unread: Vec<PathBuf>,
}

fn rec_columns() -> [Column; 4] {
    REC.map(Column::required)
}

fn search_columns() -> [Column; 7] {
    SEARCH.map(|name| if name == "item_type" { Column::optional(name) } else { Column::required(name) })
}

fn feature_columns() -> Vec<Column> {
    let names = LEVELS.map(|level| format!("{level}_level_category_name_en"));
    let mut columns = vec![Column::required("item_id")];
    columns.extend(names.iter().map(|n| Column::optional(n)));
    columns
}

impl KuaiSar {
    pub(super) fn open(&self) -> Result<Opened> {
        let open = |name: &str, columns: &[Column], needed: bool| -> Result<Vec<Table>> {
            let files = if self.dir.exists() { inputs::named(&self.dir, name)? } else { Vec::new() };
            match (files.is_empty(), needed) {
                (true, true) => {
                    let remedy = "unpack the data set and give its directory";
                    Err(inputs::missing(&self.dir, &format!("{name}.csv"), remedy))
                }
                (true, false) => Ok(Vec::new()),
                (false, _) => table::open_all(&files, columns, &Reading::default()),
            }
        };
        let rec = open("rec_inter", &rec_columns(), true)?;
        let search = open("src_inter", &search_columns(), true)?;
        let features = open("item_features", &feature_columns(), false)?;
        let read = rec.iter().chain(&search).chain(&features).map(Table::path);
        let unread = inputs::others(&self.dir, read)?;
        Ok(Opened { rec, search, features, unread })
    }
}

impl Reader for Opened {
    fn read(&mut self, log: &mut Log, intake: &mut Intake, _: &Settings) -> Result<()> {
        intake.notes.extend(notes::not_read(&self.unread));
        self.rec.iter().chain(&self.search).for_each(|t| intake.expect(t.path()));
        for table in &mut self.rec {
            table.read(intake, &rec_columns(), &mut |row| add_recommended(log, row))?;
        }
        let mut strangers = 0;
        for table in &mut self.search {
            table.read(intake, &search_columns(), &mut |row| {
                strangers += u64::from(!add_searched(log, row)?);
                Ok(())
            })?;
        }
        intake.counts.drop("neither video nor image", strangers);
        Ok(())
    }

    fn texts(&mut self, texts: &mut ItemTexts, intake: &mut Intake) -> Result<()> {
        let columns = feature_columns();
        for table in &mut self.features {
            table.read(intake, &columns, &mut |row| {
                let id = row[0].integer_id("item_id")?.ok_or_else(|| absent("item_id"))?;
                let mut words: Vec<String> = Vec::new();
                for (cell, column) in row[1..].iter().zip(&columns[1..]) {
                    let word = cell.text(&column.name)?.unwrap_or_default();
                    if !word.is_empty()
                        && !word.eq_ignore_ascii_case("unknown")
                        && !words.contains(&word.to_string())
                    {
                        words.push(word.into());
                    }
                }
                texts.set(&id, Some(&words.join(", ")))
            })?;
        }
        Ok(())
    }
}

fn add_recommended(log: &mut Log, row: &[Cell]) -> Checked<()> {
    let [user, item, time, click] = row else { return Ok(()) };
    let user = user.integer_id(REC[0])?.ok_or_else(|| absent(REC[0]))?;
    let item = item.integer_id(REC[1])?.ok_or_else(|| absent(REC[1]))?;
    let time = Some(log.clock.read(time, REC[2])?);
    let wanted = click.number(REC[3])?.ok_or_else(|| absent(REC[3]))? > 0.0;
    let (user, item) = (log.users.number(&user, REC[0])?, log.items.number(&item, REC[1])?);
    let task = log.task("rec")?;
    log.push(Entry { user, item, task, time, wanted, ..Entry::default() })
}

/// Adds a result of a search; `false`: it is none that can be ranked.
fn add_searched(log: &mut Log, row: &[Cell]) -> Checked<bool> {
    let [user, item, time, clicks, keyword, session, kind] = row else { return Ok(true) };
    if kind.text(SEARCH[6])?.is_some_and(|kind| !KINDS.contains(&kind.as_ref())) {
        return Ok(false);
    }
    let user = user.integer_id(SEARCH[0])?.ok_or_else(|| absent(SEARCH[0]))?;
    let item = item.integer_id(SEARCH[1])?.ok_or_else(|| absent(SEARCH[1]))?;
    let time = Some(log.clock.read(time, SEARCH[2])?);
    let wanted = clicks.number(SEARCH[3])?.ok_or_else(|| absent(SEARCH[3]))? > 0.0;
    let query = words(keyword)?;
    let session = session.integer_id(SEARCH[5])?.ok_or_else(|| absent(SEARCH[5]))?;
    let request = request_number(session);
    let (user, item) = (log.users.number(&user, SEARCH[0])?, log.items.number(&item, SEARCH[1])?);
    let task = log.task("search")?;
    log.push(Entry { user, item, task, time, wanted, request, query: &query, ..Entry::default() })?;
    Ok(true)
}

/// The numbers of a query's words, as words.
fn words(keyword: &Cell) -> Checked<String> {
    let value = keyword.nested(SEARCH[4])?;
    let words: Vec<String> = match &value {
        Value::Array(list) => list.iter().map(|w| w.as_str().map_or(w.to_string(), Into::into)).collect(),
        Value::Null => Vec::new(),
        other => vec![other.as_str().map_or(other.to_string(), Into::into)],
    };
    match words.is_empty() {
        true => Err(absent(SEARCH[4])),
        false => Ok(words.join(" ")),
    }
}
