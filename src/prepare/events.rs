//! The general source: one table of events, in one file or many shards.

use super::cell::{Cell, absent};
use super::intake::Intake;
use super::log::{Entry, Log};
use super::settings::Settings;
use super::source::{self, ItemTexts};
use super::table::{self, Checked, Column};
use crate::error::{Error, Result};
use serde::Serialize;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

/// Tables of events, and of items' texts.
#[derive(Debug, Clone, Serialize)]
pub struct Events {
    /// Files, or directories of shards.
    pub files: Vec<PathBuf>,
    /// Tables of items' texts.
    pub items: Vec<PathBuf>,
    /// What the columns are called.
    pub columns: EventColumns,
}

/// Names of the columns of events and items.
#[derive(Debug, Clone, Serialize)]
pub struct EventColumns {
    /// Who.
    pub user: String,
    /// With what.
    pub item: String,
    /// When.
    pub timestamp: String,
    /// The task; without it a row with a query is `search`, any other `rec`.
    pub task: String,
    /// What was typed.
    pub query: String,
    /// How much it was wanted; without it every row is.
    pub label: String,
    /// Rows of a user with the same request answer it together.
    pub request: String,
    /// The item, in the tables of items.
    pub text_item: String,
    /// Its text.
    pub text: String,
}

impl Default for EventColumns {
    fn default() -> Self {
        let own = String::from;
        Self {
            user: own("user"),
            item: own("item"),
            timestamp: own("timestamp"),
            task: own("task"),
            query: own("query"),
            label: own("label"),
            request: own("request"),
            text_item: own("item"),
            text: own("text"),
        }
    }
}

impl EventColumns {
    /// Takes `ROLE=NAME` for the tables of events.
    ///
    /// # Errors
    /// A role that there is not.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let (role, name) = split(assignment, "--columns")?;
        *match role {
            "user" => &mut self.user,
            "item" => &mut self.item,
            "timestamp" => &mut self.timestamp,
            "task" => &mut self.task,
            "query" => &mut self.query,
            "label" => &mut self.label,
            "request" => &mut self.request,
            _ => {
                return Err(Error::usage(format!("no role `{role}`"))
                    .at("--columns")
                    .remedy("user, item, timestamp, task, query, label or request"));
            }
        } = name.into();
        Ok(())
    }
    /// Takes `ROLE=NAME` for the tables of items.
    ///
    /// # Errors
    /// A role that there is not.
    pub fn set_item(&mut self, assignment: &str) -> Result<()> {
        let (role, name) = split(assignment, "--item-columns")?;
        *match role {
            "item" => &mut self.text_item,
            "text" => &mut self.text,
            _ => {
                let error = Error::usage(format!("no role `{role}`")).at("--item-columns");
                return Err(error.remedy("item or text"));
            }
        } = name.into();
        Ok(())
    }
}

fn split<'a>(assignment: &'a str, flag: &str) -> Result<(&'a str, &'a str)> {
    assignment.split_once('=').ok_or_else(|| {
        Error::usage(format!("`{assignment}` is not ROLE=NAME")).at(flag).remedy("such as user=customer_id")
    })
}

/// Any number but 0 that two requests hardly share.
pub(super) fn request_number(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish() | 1
}

impl Events {
    pub(super) fn read(&self, log: &mut Log, intake: &mut Intake, settings: &Settings) -> Result<()> {
        let names = &self.columns;
        let columns = [
            Column::required(&names.user),
            Column::required(&names.item),
            Column::required(&names.timestamp),
            Column::optional(&names.task),
            Column::optional(&names.query),
            Column::optional(&names.label),
            Column::optional(&names.request),
        ];
        let mut files = Vec::new();
        for path in &self.files {
            files.extend(source::tables(path)?);
        }
        files.iter().for_each(|f| intake.expect(f));
        for file in &files {
            table::read(intake, file, &columns, &mut |row| push(log, names, settings, row))?;
        }
        Ok(())
    }

    pub(super) fn texts(&self, texts: &mut ItemTexts, intake: &mut Intake) -> Result<()> {
        let columns = [Column::required(&self.columns.text_item), Column::optional(&self.columns.text)];
        for path in &self.items {
            for file in source::tables(path)? {
                table::read(intake, &file, &columns, &mut |row| {
                    let [item, text] = row else { return Ok(()) };
                    let id = item.id(&columns[0].name)?.ok_or_else(|| absent(&columns[0].name))?;
                    texts.set(&id, text.text(&columns[1].name)?.as_deref())
                })?;
            }
        }
        Ok(())
    }
}

fn push(log: &mut Log, names: &EventColumns, settings: &Settings, row: &[Cell]) -> Checked<()> {
    let [user, item, time, task, query, label, request] = row else { return Ok(()) };
    let user = user.id(&names.user)?.ok_or_else(|| absent(&names.user))?;
    let item = item.id(&names.item)?.ok_or_else(|| absent(&names.item))?;
    let time = log.time(time, &names.timestamp)?;
    let query = query.text(&names.query)?;
    let label = label.number(&names.label)?;
    let request = request.id(&names.request)?;
    let task = task.text(&names.task)?;
    let usual = if query.is_some() { "search" } else { "rec" };
    let task = log.task(task.as_deref().unwrap_or(usual))?;
    let query = query.as_deref().unwrap_or_default();
    let request = match request {
        Some(id) => request_number(id),
        None if query.is_empty() => 0,
        None => request_number((query, time)),
    };
    let wanted = label.is_none_or(|l| settings.min_label.map_or(l > 0.0, |least| l >= least));
    let (user, item) = (log.users.number(&user, &names.user)?, log.items.number(&item, &names.item)?);
    log.push(Entry { user, item, task, time: Some(time), wanted, request, query, ..Entry::default() })
}
