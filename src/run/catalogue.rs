//! `catalogue.jsonl`: a run's items in the order of their tokens, with their texts and codes.

use crate::data::{Catalogue, SemanticIds};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub(super) const FILE: &str = "catalogue.jsonl";

#[derive(Serialize, Deserialize)]
struct Row {
    item: String,
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    codes: Option<Vec<u32>>,
}

/// Writes the catalogue and returns the hash of the file.
pub(super) fn write(run: &Path, items: &Catalogue, codes: Option<&SemanticIds>) -> Result<String> {
    let path = run.join(FILE);
    let mut text = String::new();
    for number in 0..items.len() as u32 {
        let row = Row {
            item: items.id(number).into(),
            text: items.text(number).map(Into::into),
            codes: codes.map(|c| c.codes(number as usize).to_vec()),
        };
        text += &serde_json::to_string(&row).map_err(|e| Error::data(e.to_string()).at(path.display()))?;
        text.push('\n');
    }
    write_atomically(&path, text.as_bytes())?;
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// Reads the catalogue, whose file must have this hash.
pub(super) fn read(run: &Path, hash: &str) -> Result<(Catalogue, Option<SemanticIds>)> {
    let path = run.join(FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    if blake3::hash(text.as_bytes()).to_hex().as_str() != hash {
        return Err(Error::data("this file was changed: the items' tokens would be others than the model's")
            .at(path.display())
            .remedy("put it back as it was; the data directory's items.jsonl may be changed freely"));
    }
    let mut items = Catalogue::default();
    let (mut codes, mut levels) = (Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{} line {}", path.display(), number + 1);
        let row: Row =
            serde_json::from_str(line).map_err(|e| Error::data(format!("not an item: {e}")).at(place()))?;
        items.add(&row.item, row.text.as_deref()).map_err(|e| e.at(place()))?;
        if let Some(of_item) = row.codes {
            levels = Some(of_item.len());
            codes.extend(of_item);
        }
    }
    let codes = levels.map(|levels| SemanticIds::new(levels, codes)).transpose();
    Ok((items, codes.map_err(|e| e.at(path.display()))?))
}

/// How the items that a data directory lists now differ from a run's own.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ItemChanges {
    /// Those in both are in another order.
    pub reordered: bool,
    /// Ids that are not listed any more.
    pub removed: Vec<String>,
    /// Ids of other texts.
    pub retitled: Vec<String>,
    /// Ids that the run does not have.
    pub added: Vec<String>,
}

impl ItemChanges {
    pub fn between(own: &Catalogue, listed: &Catalogue) -> Self {
        let mut changes = Self::default();
        for number in 0..own.len() as u32 {
            let id = own.id(number);
            match listed.number(id) {
                None => changes.removed.push(id.into()),
                Some(now) if listed.text(now) != own.text(number) => changes.retitled.push(id.into()),
                Some(_) => {}
            }
        }
        let mut last = None;
        for number in 0..listed.len() as u32 {
            match own.number(listed.id(number)) {
                None => changes.added.push(listed.id(number).into()),
                Some(then) => {
                    changes.reordered |= last.is_some_and(|last| then < last);
                    last = Some(then);
                }
            }
        }
        changes
    }

    /// What is to be said; `fate`: what becomes of items that were added.
    pub fn notes(&self, fate: &str) -> Vec<String> {
        let mut notes = Vec::new();
        if self.reordered {
            notes.push("items are in another order: the run's own order counts".into());
        }
        let mut tell = |ids: &[String], one: &str, many: &str, then: &str| {
            if let [first, ..] = ids {
                let shown = ids.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = if ids.len() > 5 { ", .." } else { "" };
                notes.push(match ids.len() {
                    1 => format!("1 item {one} ({first}): {then}"),
                    n => format!("{n} items {many} ({shown}{more}): {then}"),
                });
            }
        };
        tell(&self.removed, "was removed", "were removed", "the run still has and ranks what it was made of");
        tell(&self.retitled, "has another text", "have other texts", "the run keeps its own");
        tell(&self.added, "was added", "were added", fate);
        notes
    }
}

/// The items of `own`, and after them those of `listed` that it does not have: first those with a text, so that
/// `own.len()..n` are they. Returns n too.
pub(super) fn joined(own: &Catalogue, listed: &Catalogue) -> (Catalogue, u32) {
    let mut all = own.clone();
    let new = || (0..listed.len() as u32).filter(|n| own.number(listed.id(*n)).is_none());
    let mut add = |number: u32| {
        // Ids of a catalogue are valid, and these are new.
        let _ = all.add(listed.id(number), listed.text(number));
    };
    new().filter(|n| listed.text(*n).is_some()).for_each(&mut add);
    let with_text = own.len() + new().filter(|n| listed.text(*n).is_some()).count();
    new().filter(|n| listed.text(*n).is_none()).for_each(&mut add);
    (all, with_text as u32)
}

/// The first `count` items.
pub(super) fn first(items: &Catalogue, count: u32) -> Catalogue {
    let mut some = Catalogue::default();
    (0..count).for_each(|n| drop(some.add(items.id(n), items.text(n))));
    some
}
