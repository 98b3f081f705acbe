//! What the columns of events, items and queries are called.

use super::table::{Column, Need};
use crate::error::{self, Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;

/// Names of the columns of events, items and queries, where they are not the usual ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EventColumns {
    events: BTreeMap<&'static str, String>,
    items: BTreeMap<&'static str, String>,
    queries: BTreeMap<&'static str, String>,
}

/// What a column is for.
pub(super) struct Role {
    name: &'static str,
    /// Other usual names, without case, `_` and `-`.
    also: &'static [&'static str],
    need: Need,
    id: bool,
}

const fn role(name: &'static str, also: &'static [&'static str], need: Need, id: bool) -> Role {
    Role { name, also, need, id }
}

/// The columns of a table of events, in the order of a row's cells.
const EVENTS: [Role; 9] = [
    role("user", &["user", "userid"], Need::Always, true),
    role("item", &["item", "itemid"], Need::Always, true),
    role("timestamp", &[], Need::Always, false),
    role("task", &[], Need::Never, false),
    role("query", &[], Need::Never, false),
    role("label", &[], Need::Never, false),
    role("request", &[], Need::Never, true),
    role("query_id", &[], Need::Never, true),
    role("history", &[], Need::Never, false),
];
pub(super) const TIMESTAMP: usize = 2;
const TASK: usize = 3;
const QUERY: usize = 4;
pub(super) const LABEL: usize = 5;
pub(super) const QUERY_ID: usize = 7;
pub(super) const HISTORY: usize = 8;

const ITEMS: [Role; 2] = [
    role("item", &["item", "itemid"], Need::Always, true),
    role("text", &["text", "title"], Need::Somewhere, false),
];
const QUERIES: [Role; 2] = [
    role("query_id", &["queryid"], Need::Always, true),
    role("query", &["query", "querytext"], Need::Always, false),
];

impl EventColumns {
    /// Takes `ROLE=NAME` for the tables of events.
    ///
    /// # Errors
    /// A role that there is not, or that is named twice.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        set(&mut self.events, &EVENTS, assignment, "--columns")
    }
    /// Takes `ROLE=NAME` for the tables of items.
    ///
    /// # Errors
    /// A role that there is not, or that is named twice.
    pub fn set_item(&mut self, assignment: &str) -> Result<()> {
        set(&mut self.items, &ITEMS, assignment, "--item-columns")
    }
    /// Takes `ROLE=NAME` for the tables of queries.
    ///
    /// # Errors
    /// A role that there is not, or that is named twice.
    pub fn set_query(&mut self, assignment: &str) -> Result<()> {
        set(&mut self.queries, &QUERIES, assignment, "--query-columns")
    }
    /// Whether a column of events was named for this role.
    pub fn names(&self, role: &str) -> bool {
        self.events.contains_key(role)
    }

    /// Refuses one column for two things that cannot be the same.
    ///
    /// # Errors
    /// Names the roles.
    pub(super) fn validate(&self) -> Result<()> {
        const APART: [&str; 5] = ["user", "item", "timestamp", "label", "query"];
        let called = |role: &str| self.events.get(role).cloned();
        for (at, one) in APART.iter().enumerate() {
            for other in &APART[at + 1..] {
                // Who and with what are always read: by their usual names where they have no others.
                let usual = |role: &&str| {
                    called(role).or((*role == "user" || *role == "item").then(|| role.to_string()))
                };
                let (a, b) = (usual(one), usual(other));
                if a.is_some() && a == b {
                    let name = a.unwrap_or_default();
                    return Err(Error::usage(format!("column `{name}` cannot be both {one} and {other}"))
                        .at("--columns")
                        .remedy("name a column of its own for each"));
                }
            }
        }
        Ok(())
    }

    /// The columns of events, in the order of a row's cells.
    pub(super) fn of_events(&self, row_order: bool, queries: bool) -> Vec<Column> {
        let mut columns = columns(&self.events, &EVENTS, "--columns");
        columns[TIMESTAMP].hint = "; where there are no times, --row-order takes the order of the rows";
        // No file has a column of this name: it is not looked for.
        let nowhere = || Column::optional("\0");
        if row_order {
            columns[TIMESTAMP] = nowhere();
        }
        if !queries {
            columns[QUERY_ID] = nowhere();
        }
        // A column that was named for one thing is not taken for another by its usual name.
        for role in [TASK, QUERY, LABEL, HISTORY] {
            let name = EVENTS[role].name;
            if !self.names(name) && self.events.values().any(|named| named == name) {
                columns[role] = nowhere();
            }
        }
        columns
    }
    pub(super) fn of_items(&self) -> Vec<Column> {
        columns(&self.items, &ITEMS, "--item-columns")
    }
    pub(super) fn of_queries(&self) -> Vec<Column> {
        columns(&self.queries, &QUERIES, "--query-columns")
    }
}

fn set(
    names: &mut BTreeMap<&'static str, String>,
    roles: &[Role],
    assignment: &str,
    flag: &str,
) -> Result<()> {
    let (wanted, name) = assignment.split_once('=').ok_or_else(|| {
        Error::usage(format!("`{assignment}` is not ROLE=NAME")).at(flag).remedy("such as user=customer_id")
    })?;
    let (wanted, name) = (wanted.trim(), name.trim());
    let all = || roles.iter().map(|r| r.name);
    let Some(role) = roles.iter().find(|r| r.name == wanted) else {
        let near = error::nearest(wanted, all()).map_or(String::new(), |n| format!("did you mean `{n}`? "));
        let remedy = format!("{near}there are {}", all().collect::<Vec<_>>().join(", "));
        return Err(Error::usage(format!("no role `{wanted}`")).at(flag).remedy(remedy));
    };
    if name.is_empty() {
        return Err(Error::usage(format!("`{wanted}` has no name"))
            .at(flag)
            .remedy("such as user=customer_id"));
    }
    match names.insert(role.name, name.into()) {
        Some(before) if before != name => {
            Err(Error::usage(format!("{wanted} is named twice: `{before}` and `{name}`")).at(flag))
        }
        _ => Ok(()),
    }
}

fn columns(names: &BTreeMap<&'static str, String>, roles: &[Role], flag: &'static str) -> Vec<Column> {
    let column = |role: &Role| match names.get(role.name) {
        Some(name) => {
            let need = if role.need == Need::Never { Need::Somewhere } else { role.need };
            Column { name: name.clone(), need, id: role.id, flag, ..Column::default() }
        }
        None => {
            let (name, hint) = (role.name.into(), "");
            Column { name, also: role.also, need: role.need, id: role.id, flag, hint }
        }
    };
    roles.iter().map(column).collect()
}
