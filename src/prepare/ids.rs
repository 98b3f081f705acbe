//! Names as numbers, in the order in which they are first met.

use crate::data::fault::{Fault, UNREADABLE};
use crate::error::Error;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// Longest id, in bytes.
const MAX_BYTES: usize = 256;

/// A set of names, numbered from 0. They lie end to end: a name costs its bytes and some twenty more.
#[derive(Default)]
pub(super) struct Ids {
    text: Vec<u8>,
    ends: Vec<u64>,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Ids {
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// The name of `number`.
    pub fn name(&self, number: u32) -> &str {
        std::str::from_utf8(bytes(&self.text, &self.ends, number)).unwrap_or_default()
    }
    /// The number of a name, if it has one.
    pub fn find(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(name.as_bytes());
        self.table.find(hash, |n| bytes(&self.text, &self.ends, *n) == name.as_bytes()).copied()
    }
    /// The number of a name; a new one gets the next.
    ///
    /// # Errors
    /// Not an id; more names than numbers.
    pub fn number(&mut self, name: &str, column: &str) -> Result<u32, Fault> {
        let Self { text, ends, table, hasher } = self;
        let hash = hasher.hash_one(name.as_bytes());
        if let Some(number) = table.find(hash, |n| bytes(text, ends, *n) == name.as_bytes()) {
            return Ok(*number);
        }
        if name.is_empty() || name.len() > MAX_BYTES || name.chars().any(char::is_control) {
            let shown: String = name.chars().take(40).collect();
            let error = Error::data(format!("`{}` is not an id", shown.escape_debug())).at(column);
            let remedy = format!("1 to {MAX_BYTES} bytes without control characters");
            return Err(Fault::new("bad id", error.remedy(remedy)));
        }
        let number = u32::try_from(ends.len()).ok().filter(|n| *n < u32::MAX).ok_or_else(|| {
            Fault::new(UNREADABLE, Error::data("more than 4 billion different ids").at(column))
        })?;
        text.extend_from_slice(name.as_bytes());
        ends.push(text.len() as u64);
        table.insert_unique(hash, number, |n| hasher.hash_one(bytes(text, ends, *n)));
        Ok(number)
    }
}

fn bytes<'a>(text: &'a [u8], ends: &[u64], number: u32) -> &'a [u8] {
    let number = number as usize;
    let start = if number == 0 { 0 } else { ends[number - 1] };
    &text[start as usize..ends[number] as usize]
}
