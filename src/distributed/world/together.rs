//! What ranks do together besides sums: results and decisions that all of them have.

use super::{End, Said, World};
use crate::distributed::word::Operation;
use crate::error::{Error, Kind, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Instant;

/// Bytes of a result that are exchanged at a time.
const PIECE: usize = 16 << 20;

impl World {
    /// Every rank's bytes, in the order of ranks; they need not be equally many.
    ///
    /// # Errors
    /// Ranks that do something else, or are silent.
    pub fn share(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.share_as(Operation::Share, own)
    }

    pub(super) fn share_as(&self, operation: Operation, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(link) = &self.link else { return Ok(vec![own.to_vec()]) };
        let (_, limit) = self.state().limits;
        let words = self.announce(operation, Said { own: own.len() as u64, ..Said::within(limit) })?;
        let lengths: Vec<usize> = words.iter().map(|w| w.own as usize).collect();
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|n| Vec::with_capacity(*n)).collect();
        let most = lengths.iter().copied().max().unwrap_or(0);
        for from in (0..most).step_by(PIECE) {
            let size = (most - from).min(PIECE);
            let mut part = vec![0; size];
            let mine = own.get(from..own.len().min(from + size)).unwrap_or_default();
            part[..mine.len()].copy_from_slice(mine);
            let parts = link.gather(&part, limit).map_err(|f| self.broken(operation, f))?;
            for ((to, length), part) in all.iter_mut().zip(&lengths).zip(parts.chunks_exact(size)) {
                to.extend_from_slice(&part[..length.saturating_sub(from).min(size)]);
            }
        }
        self.state().since = Instant::now();
        Ok(all)
    }

    /// Every rank's value, in the order of ranks.
    ///
    /// # Errors
    /// As [`World::share`].
    pub fn share_values<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        if self.is_alone() {
            return Ok(vec![own]);
        }
        let failed = |e: serde_json::Error| Error::data(format!("a result that ranks share: {e}"));
        let bytes = serde_json::to_vec(&own).map_err(failed)?;
        self.share(&bytes)?.iter().map(|bytes| serde_json::from_slice(bytes).map_err(failed)).collect()
    }

    /// Lets ranks compute groups 0, 1, .. of `count` in turns; the results of all of them, in order. Errors of any rank
    /// end it for all after the round in which they occur.
    ///
    /// # Errors
    /// Of `compute`; as [`World::share`].
    pub fn in_turns<T: Serialize + DeserializeOwned>(
        &self,
        count: usize,
        mut compute: impl FnMut(usize) -> Result<T>,
    ) -> Result<Vec<T>> {
        if self.is_alone() {
            return (0..count).map(compute).collect();
        }
        let mut all = Vec::with_capacity(count);
        for first in (0..count).step_by(self.size) {
            let own = first + self.rank;
            let found = if own < count { Some(compute(own)?) } else { None };
            all.extend(self.share_values(found)?.into_iter().flatten());
        }
        Ok(all)
    }

    /// What the first rank has.
    ///
    /// # Errors
    /// As [`World::share`].
    pub fn of_first<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<T> {
        let given = self.share_values(self.is_first().then_some(own))?.into_iter().next().flatten();
        given.ok_or_else(|| Error::data("the first rank has given nothing"))
    }

    /// Has the first rank do something that only one may, such as writing files, while the others wait; nobody goes on
    /// when it fails. `None` on the other ranks.
    ///
    /// # Errors
    /// Of `work`, on all ranks; ranks that do something else, or are silent.
    pub fn by_first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let done = if self.is_first() { Some(work()?) } else { None };
        let (_, limit) = self.state().limits;
        self.announce(Operation::Agree, Said::within(limit))?;
        Ok(done)
    }

    /// Whether any rank says yes.
    ///
    /// # Errors
    /// Ranks that do something else, or are silent.
    pub fn any(&self, yes: bool) -> Result<bool> {
        let (limit, _) = self.state().limits;
        let words = self.announce(Operation::Decide, Said { yes, ..Said::within(limit) })?;
        Ok(yes || words.iter().any(|w| w.yes))
    }

    /// Refuses to go on where ranks have different values of `what`; of several lines the first that differs is told.
    ///
    /// # Errors
    /// A usage error with both values and both ranks; as [`World::share`].
    pub fn same(&self, what: &str, own: &str) -> Result<()> {
        let all = self.share_as(Operation::Compare, own.as_bytes())?;
        let Some(other) = all.iter().position(|value| *value != all[0]) else { return Ok(()) };
        self.state().end = Some(End::Told);
        let [first, second] = [0, other].map(|rank| String::from_utf8_lossy(&all[rank]).into_owned());
        let mut lines = first.lines().zip(second.lines());
        let (first, second) = lines.find(|(a, b)| a != b).unwrap_or((&first, &second));
        Err(Error::usage(format!(
            "ranks differ in {what}: {} has {first}, {} has {second}",
            self.call(0),
            self.call(other),
        ))
        .remedy("start every rank with the same program, settings, model and data"))
    }

    /// Refuses to go on where ranks hold different numbers: a hash of each part, by name.
    ///
    /// # Errors
    /// The first part that differs, and the rank that has it otherwise than most; as [`World::share`].
    pub fn same_numbers(&self, parts: &[(String, String)]) -> Result<()> {
        let all = self.share_values(parts.to_vec())?;
        let differs = |i: &usize| all.iter().any(|other| other.get(*i) != all[0].get(*i));
        let Some(part) = (0..parts.len()).find(differs) else { return Ok(()) };
        self.state().end = Some(End::Told);
        let alike = |rank: usize| all.iter().filter(|other| other.get(part) == all[rank].get(part)).count();
        // Of two ranks that differ nobody knows which is right; the later one is named.
        let odd = (0..all.len()).rev().min_by_key(|rank| alike(*rank)).unwrap_or(0);
        let step = self.state().step;
        Err(Error::new(
            Kind::Distributed,
            format!("its numbers are not those of the other ranks: {}", parts[part].0),
        )
        .at(format!("step {step}, {}", self.call(odd)))
        .remedy("the checkpoints before are good: go on with --resume, without that machine or its device"))
    }
}
