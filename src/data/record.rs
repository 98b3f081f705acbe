//! What a data directory holds, in memory: the catalogue and the records.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// The items, numbered from 0 in the order of the file.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    ids: Vec<Box<str>>,
    texts: Vec<Option<Box<str>>>,
    numbers: HashMap<Box<str>, u32>,
}

/// Longest item id, in bytes.
const MAX_ID_BYTES: usize = 256;

impl Catalogue {
    /// Adds an item and returns its number.
    ///
    /// # Errors
    /// An empty, overlong or repeated id, or one with control characters.
    pub fn add(&mut self, id: &str, text: Option<&str>) -> Result<u32> {
        if id.is_empty() || id.len() > MAX_ID_BYTES || id.chars().any(char::is_control) {
            let shown: String = id.chars().take(40).collect();
            return Err(Error::data(format!("`{}` is not an item id", shown.escape_debug()))
                .at("item")
                .remedy(format!("1 to {MAX_ID_BYTES} bytes without control characters")));
        }
        if self.numbers.contains_key(id) {
            return Err(Error::data(format!("item `{id}` is listed twice"))
                .at("item")
                .remedy("keep one row of every item"));
        }
        let number = self.ids.len() as u32;
        self.numbers.insert(id.into(), number);
        self.ids.push(id.into());
        self.texts.push(text.filter(|t| !t.trim().is_empty()).map(Into::into));
        Ok(number)
    }
    /// Number of items.
    pub fn len(&self) -> usize {
        self.ids.len()
    }
    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
    /// The id of item `number`.
    pub fn id(&self, number: u32) -> &str {
        &self.ids[number as usize]
    }
    /// The text of item `number`, if it has one.
    pub fn text(&self, number: u32) -> Option<&str> {
        self.texts[number as usize].as_deref()
    }
    /// The number of item `id`.
    pub fn number(&self, id: &str) -> Option<u32> {
        self.numbers.get(id).copied()
    }
}

/// One row of a split: a request and the items or the text that answer it, or a plain text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Number of the task, in the order of [`Dataset::tasks`](super::Dataset::tasks).
    pub task: u32,
    /// Who asked.
    pub user: Option<Box<str>>,
    /// Item numbers, oldest first.
    pub history: Box<[u32]>,
    /// What was typed.
    pub query: Option<Box<str>>,
    /// Items that answer the request; empty for a plain text, and where a text answers.
    pub target: Box<[u32]>,
    /// A text that answers the request, instead of items; nothing is ranked.
    pub answer: Option<Box<str>>,
    /// Items to rank the target among, in sampled evaluation.
    pub negatives: Box<[u32]>,
    /// When, in seconds (or whatever unit the file uses).
    pub timestamp: Option<i64>,
    /// A plain text, learned whole (next-token loss on all its tokens).
    pub text: Option<Box<str>>,
}

/// The records of one file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Split {
    /// `train`, `valid`, `test`, or NAME of `test-NAME`.
    pub name: String,
    /// Its rows, in the order of the file.
    pub records: Vec<Record>,
}
