//! What to know about the input: what it was taken for, and what was passed over.

use super::columns::LABEL;
use super::intake::Intake;
use super::log::Log;
use super::reader::ItemTexts;
use super::table::{Column, Table};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Most names that are listed.
const MOST: usize = 12;

/// Files that lie in the directories and are not read.
pub(super) fn not_read(files: &[PathBuf]) -> Option<String> {
    let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    (!names.is_empty())
        .then(|| format!("files that are not read: {}", listed(names.iter().map(String::as_str))))
}

fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(MOST);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// What the tables of events were taken for, and columns of theirs that are not read.
pub(super) fn of_tables(tables: &[Table], columns: &[Column], row_order: bool, intake: &mut Intake) {
    let mut unread = BTreeSet::new();
    look_at(tables, columns, &mut unread, intake);
    let graded = |name: &&&str| {
        matches!(name.to_lowercase().as_str(), "rating" | "ratings" | "score" | "stars" | "overall" | "grade")
    };
    let labelled =
        (0..columns.len()).any(|at| columns[at].name == "label" && tables.iter().any(|t| t.has(at)));
    let usual = columns.iter().any(|c| c.name == "label");
    if let Some(grade) = unread.iter().find(graded).filter(|_| usual && !labelled) {
        intake.notes.push(format!(
            "every row counts as wanted: column `{grade}` is not read (--columns label={grade} --min-label X)"
        ));
    }
    if !unread.is_empty() {
        intake.notes.push(format!("columns that are not read: {}", listed(unread.into_iter())));
    }
    if row_order {
        let files: Vec<&str> = tables.iter().filter_map(|t| t.path().file_name()?.to_str()).collect();
        let order =
            if files.len() > 1 { format!(", of files {}", listed(files.into_iter())) } else { String::new() };
        intake.notes.push(format!(
            "there are no times: the order of the rows{order} was taken for the order of time"
        ));
    }
    of_columns(tables, columns, intake);
}

/// Columns that only some files have, and those that the files' paths have.
fn of_columns(tables: &[Table], columns: &[Column], intake: &mut Intake) {
    let name = |table: &&Table| table.path().display().to_string();
    for (at, column) in columns.iter().enumerate() {
        let (with, without): (Vec<&Table>, Vec<&Table>) =
            tables.iter().filter(|t| t.has_rows).partition(|t| t.has(at));
        if with.is_empty() {
            continue;
        }
        if with.iter().any(|t| t.has_in_path(at)) {
            intake.notes.push(format!("{} is read from the directories' names", column.name));
        }
        let files: Vec<String> = without.iter().map(name).collect();
        if !files.is_empty() {
            let so = if at == LABEL && !without.iter().any(|t| t.is_open()) {
                ": their rows count as wanted"
            } else {
                ""
            };
            let files = listed(files.iter().map(String::as_str));
            intake.notes.push(format!("files without a column `{}`{so}: {files}", column.name));
        }
    }
}

fn look_at<'t>(
    tables: &'t [Table],
    columns: &'t [Column],
    unread: &mut BTreeSet<&'t str>,
    intake: &mut Intake,
) {
    let (mut renamed, mut empty, mut quoted) = (BTreeSet::new(), Vec::new(), Vec::new());
    for table in tables {
        if !table.has_rows {
            empty.push(table.path().display().to_string());
            continue;
        }
        *intake.counts.files.entry(table.describe()).or_default() += 1;
        renamed.extend(table.renamed(columns));
        quoted.extend(table.keeps_quotes().then(|| table.path().display().to_string()));
        unread.extend(table.unread(columns));
    }
    for (role, name) in renamed {
        intake.notes.push(format!("{role} is read from the column `{name}`"));
    }
    if !quoted.is_empty() {
        intake.notes.push(format!(
            "fields stand in double quotes and keep them; --quotes on takes them away: {}",
            listed(quoted.iter().map(String::as_str))
        ));
    }
    if !empty.is_empty() {
        intake.notes.push(format!("files without rows: {}", listed(empty.iter().map(String::as_str))));
    }
}

/// Names that are probably none.
pub(super) fn of_names(log: &Log, intake: &mut Intake) {
    for (what, ids) in [("a user", &log.users), ("an item", &log.items)] {
        let words = ["null", "NULL", "None", "nan", "NaN", "NA", "undefined"];
        for word in words.iter().filter(|w| ids.find(w).is_some()) {
            intake.notes.push(format!(
                "{what} is called `{word}`: if that stands for nothing, say so with --missing {word}"
            ));
        }
    }
}

/// What the tables of items were taken for, and whether they list the items at all.
pub(super) fn of_items(tables: &[Table], texts: &ItemTexts, columns: &[Column], intake: &mut Intake) {
    if tables.is_empty() {
        return;
    }
    look_at(tables, columns, &mut BTreeSet::new(), intake);
    let (left, listed) = texts.listed();
    if listed == 0 && left > 0 {
        intake
            .notes
            .push("the tables of items list none of the log's items: are the ids written alike?".into());
    }
}
