//! Training rows that teach what the items are called: title to item, and item to title.
//!
//! Users of semantic ids train them beside the requests: codes say nothing by themselves.

use super::kcore::Alive;
use super::log::Log;
use super::settings::{Align, Settings};
use super::sheet::{Names, Row, Sheet};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// The rows of the tasks that are asked for, and their numbers.
///
/// # Errors
/// No item has a text, or the log has such a task already.
pub(super) fn rows(
    log: &Log,
    alive: &Alive,
    names: &Names,
    settings: &Settings,
) -> Result<(Sheet, Vec<(Align, u64)>)> {
    let (mut sheet, mut counts) = (Sheet::new(settings.format), Vec::new());
    let titled = |item: &u32| Some((*item, log.texts.get(*item as usize)?.as_deref()?));
    let items: Vec<(u32, &str)> = alive.items().iter().filter_map(titled).collect();
    for align in &settings.align {
        let refuse = |what: &str, remedy: &str| Err(Error::usage(what).at("--align").remedy(remedy));
        if items.is_empty() {
            return refuse("no item has a text", "give the items' texts, or leave it out");
        }
        if log.tasks.iter().any(|task| task == align.task()) {
            return refuse("the log has a task of this name", "name its tasks otherwise");
        }
        let row = Row { task: align.task(), ..Row::default() };
        let count = match align {
            Align::TitleToItem => {
                // Items of one title answer it together.
                let groups = by_title(&items);
                groups
                    .iter()
                    .for_each(|(title, of)| sheet.push(&Row { query: title, targets: of, ..row }, names));
                groups.len()
            }
            Align::ItemToTitle => {
                items.iter().for_each(|(item, title)| {
                    sheet.push(&Row { history: &[*item], answer: title, ..row }, names);
                });
                items.len()
            }
        };
        counts.push((*align, count as u64));
    }
    Ok((sheet, counts))
}

/// Titles in the order in which they are first met, with the items that have them.
fn by_title<'t>(items: &[(u32, &'t str)]) -> Vec<(&'t str, Vec<u32>)> {
    let mut groups: Vec<(&str, Vec<u32>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (item, title) in items {
        let place = *places.entry(title).or_insert(groups.len());
        if place == groups.len() {
            groups.push((title, Vec::new()));
        }
        groups[place].1.push(*item);
    }
    groups
}
