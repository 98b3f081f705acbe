//! The general table: who did what with which item, and when.

use super::ids::Ids;
use super::spool::{Event, Head, PARTS, Spool, TEST, UNTIMED, WANTED, all_events};
use super::time::Clock;
use super::unit::Unit;
use crate::data::fault::{Checked, Fault, UNREADABLE};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::HashSet;
use std::path::Path;

/// Most tasks of a log.
const MAX_TASKS: usize = 64;

/// All events, with their names as numbers.
pub(super) struct Log {
    pub users: Ids,
    pub items: Ids,
    pub tasks: Vec<String>,
    /// Tasks that have queries.
    pub searches: Vec<bool>,
    pub spool: Spool,
    /// Items' texts, by number; filled in after the k-core, for the items that are left.
    pub texts: Vec<Option<Box<str>>>,
    /// Reads times.
    pub clock: Clock,
    pub events: u64,
}

/// An event as a source hands it over.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry<'a> {
    pub user: u32,
    pub item: u32,
    pub task: u8,
    /// `None`: the time of the same user's other event with this item.
    pub time: Option<i64>,
    pub wanted: bool,
    pub test: bool,
    /// What belongs together, as any number; 0: it stands alone.
    pub request: u64,
    pub query: &'a str,
    pub history: &'a [u32],
}

impl Log {
    pub fn new(directory: &Path, unit: Option<Unit>) -> Self {
        Self {
            users: Ids::default(),
            items: Ids::default(),
            tasks: Vec::new(),
            searches: Vec::new(),
            spool: Spool::new(directory),
            texts: Vec::new(),
            clock: Clock::new(unit),
            events: 0,
        }
    }
    /// The number of a task.
    pub fn task(&mut self, name: &str) -> Checked<u8> {
        if let Some(number) = self.tasks.iter().position(|t| t == name) {
            return Ok(number as u8);
        }
        if self.tasks.len() == MAX_TASKS {
            let error = Error::data(format!("`{name}` would be task number {}", MAX_TASKS + 1));
            return Err(Fault::new(UNREADABLE, error.remedy("is this really the column of tasks?")));
        }
        self.tasks.push(name.into());
        self.searches.push(false);
        Ok(self.tasks.len() as u8 - 1)
    }
    /// Adds an event.
    pub fn push(&mut self, entry: Entry) -> Checked<()> {
        let Entry { user, item, task, .. } = entry;
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(entry.wanted, WANTED) | flag(entry.test, TEST) | flag(entry.time.is_none(), UNTIMED);
        let newest = entry.history.len().saturating_sub(u16::MAX.into());
        let (query, history) = (entry.query, &entry.history[newest..]);
        let (time, request) = (entry.time.unwrap_or(i64::MAX), entry.request);
        let lengths = (query.len() as u32, history.len() as u16);
        let head = Head { time, request, user, item, query: lengths.0, history: lengths.1, task, flags };
        self.events += 1;
        self.searches[task as usize] |= !query.is_empty();
        self.spool.push(head, query, history).map_err(|e| Fault::new(UNREADABLE, e))
    }

    /// Puts every user's events into the order of time, once each, in the unit in which times are written.
    ///
    /// # Errors
    /// The file system; an interruption, which `tell` reports.
    pub fn sort(&mut self, tell: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Sorting> {
        let (mut all, unit) = (Sorting::default(), self.clock.written());
        let step = rayon::current_num_threads().max(1);
        for first in (0..PARTS).step_by(step) {
            tell(first as u64, PARTS as u64)?;
            let numbers: Vec<usize> = (first..PARTS.min(first + step)).collect();
            let sorted: Vec<_> =
                numbers.par_iter().map(|n| self.spool.load(*n).map(|part| sorted(&part, unit))).collect();
            for (number, sorted) in numbers.into_iter().zip(sorted) {
                let (bytes, of_part) = sorted?;
                all.add(of_part);
                self.spool.replace(number, bytes)?;
            }
        }
        Ok(all)
    }
}

/// What sorting found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sorting {
    /// Events that stand there more than once.
    pub repeated: u64,
    /// Events that had no other to take their time from.
    pub untimed: u64,
    /// Users with several events.
    pub several: u64,
    /// Those of them whose events all have the same time.
    pub at_one_time: u64,
}

impl Sorting {
    fn add(&mut self, other: Self) {
        self.repeated += other.repeated;
        self.untimed += other.untimed;
        self.several += other.several;
        self.at_one_time += other.at_one_time;
    }
}

/// A part in the order of users and times; at one instant what was merely shown comes first, otherwise equal
/// times stay in the order of the log. An event that is repeated stays once; shown and taken at once is taken.
fn sorted(part: &[u8], unit: i64) -> (Vec<u8>, Sorting) {
    let mut all = all_events(part);
    let mut found = Sorting { untimed: find_times(&mut all), ..Sorting::default() };
    all.iter_mut().for_each(|e| e.head.time = e.head.time.div_euclid(unit));
    all.sort_by_key(|e| (e.head.user, e.head.time, e.is(WANTED)));
    for of_user in all.chunk_by(|a, b| a.head.user == b.head.user).filter(|all| all.len() > 1) {
        found.several += 1;
        found.at_one_time += u64::from(of_user[0].head.time == of_user[of_user.len() - 1].head.time);
    }
    let (mut bytes, mut kept) = (Vec::with_capacity(part.len()), Vec::<&Event>::new());
    let mut seen = HashSet::new();
    for run in all.chunk_by(|a, b| (a.head.user, a.head.time) == (b.head.user, b.head.time)) {
        if let [event] = run {
            event.store(&mut bytes);
            continue;
        }
        seen.clear();
        kept.clear();
        for event in run.iter().rev() {
            let Head { task, item, request, .. } = event.head;
            if seen.insert((task, item, request, event.query_bytes())) {
                kept.push(event);
            }
        }
        kept.iter().rev().for_each(|event| event.store(&mut bytes));
        found.repeated += (run.len() - kept.len()) as u64;
    }
    (bytes, found)
}

/// Gives events without a time that of the same user's timed event with the same item; drops those that have
/// none, and says how many.
fn find_times(all: &mut Vec<Event>) -> u64 {
    if !all.iter().any(|e| e.is(UNTIMED)) {
        return 0;
    }
    let mut times: Vec<(u32, u32, i64)> =
        all.iter().filter(|e| !e.is(UNTIMED)).map(|e| (e.head.user, e.head.item, e.head.time)).collect();
    times.sort_unstable();
    for event in all.iter_mut().filter(|e| e.is(UNTIMED)) {
        let key = (event.head.user, event.head.item);
        let at = times.partition_point(|t| (t.0, t.1) < key);
        if let Some(found) = times.get(at).filter(|t| (t.0, t.1) == key) {
            event.head.time = found.2;
            event.head.flags &= !UNTIMED;
        }
    }
    let before = all.len();
    all.retain(|e| !e.is(UNTIMED));
    (before - all.len()) as u64
}
