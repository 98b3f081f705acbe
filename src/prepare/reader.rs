//! What every source can do once its files were found and looked at.

use super::ids::Ids;
use super::intake::Intake;
use super::kcore::Alive;
use super::log::Log;
use super::settings::Settings;
use crate::data::fault::{Checked, Fault};
use crate::error::{Error, Result};

/// A source whose files were found and have the columns that are read.
pub(super) trait Reader {
    /// Reads all events.
    ///
    /// # Errors
    /// A file that cannot be read; more bad rows than are allowed; an interruption.
    fn read(&mut self, log: &mut Log, intake: &mut Intake, settings: &Settings) -> Result<()>;
    /// Reads the texts of the items that are left.
    ///
    /// # Errors
    /// As [`Reader::read`].
    fn texts(&mut self, texts: &mut ItemTexts, intake: &mut Intake) -> Result<()>;
}

/// Takes up the texts of the items that are left.
pub(super) struct ItemTexts<'a> {
    ids: &'a Ids,
    alive: &'a Alive,
    chars: usize,
    pub texts: Vec<Option<Box<str>>>,
    known: Vec<bool>,
}

impl<'a> ItemTexts<'a> {
    pub fn new(ids: &'a Ids, alive: &'a Alive, chars: usize) -> Self {
        Self { ids, alive, chars, texts: vec![None; ids.len()], known: vec![false; ids.len()] }
    }
    /// The text of an item, if it is one that is left.
    pub fn set(&mut self, id: &str, text: Option<&str>) -> Checked<()> {
        let Some(number) = self.ids.find(id).filter(|n| self.alive.item(*n)) else { return Ok(()) };
        if std::mem::replace(&mut self.known[number as usize], true) {
            let error = Error::data(format!("item `{id}` is listed twice")).at("item");
            return Err(Fault::new("repeated item", error.remedy("keep one row of every item")));
        }
        let words = text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let cut: String = words.chars().take(self.chars).collect();
        self.texts[number as usize] = (!cut.trim().is_empty()).then(|| cut.trim().into());
        Ok(())
    }
    /// Items that are left, and those of them that were listed.
    pub fn listed(&self) -> (usize, usize) {
        let alive = |n: &usize| self.alive.item(*n as u32);
        let left = (0..self.known.len()).filter(alive);
        (left.clone().count(), left.filter(|n| self.known[*n]).count())
    }
}
