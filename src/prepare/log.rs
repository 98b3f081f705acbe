//! The general table: who did what with which item, and when.

use super::cell::{Cell, absent, wrong};
use super::ids::Ids;
use super::spool::{Event, Head, PARTS, Spool, TEST, UNTIMED, WANTED, events};
use super::table::Checked;
use crate::data::rows::{Fault, UNREADABLE};
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
    unit: Option<(Unit, i64)>,
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
    pub fn new(directory: &Path) -> Self {
        Self {
            users: Ids::default(),
            items: Ids::default(),
            tasks: Vec::new(),
            searches: Vec::new(),
            spool: Spool::new(directory),
            texts: Vec::new(),
            unit: None,
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
        let (query, history) = (entry.query, &entry.history[..entry.history.len().min(u16::MAX.into())]);
        let (time, request) = (entry.time.unwrap_or(i64::MAX), entry.request);
        let lengths = (query.len() as u32, history.len() as u16);
        let head = Head { time, request, user, item, query: lengths.0, history: lengths.1, task, flags };
        self.events += 1;
        self.searches[task as usize] |= !query.is_empty();
        self.spool.push(head, query, history).map_err(|e| Fault::new(UNREADABLE, e))
    }

    /// A time as a number: of seconds, or of a smaller unit if the whole log uses it.
    pub fn time(&mut self, cell: &Cell, column: &str) -> Checked<i64> {
        let time = match cell {
            _ if cell.is_missing() => return Err(absent(column)),
            Cell::Int(time) => Some(*time),
            Cell::Float(x) if x.abs() < 9e18 => Some(x.floor() as i64),
            Cell::Text(text) => text.trim().parse().ok().or_else(|| date(text.trim())).or_else(|| {
                text.trim().parse().ok().filter(|x: &f64| x.abs() < 9e18).map(|x| x.floor() as i64)
            }),
            _ => None,
        };
        let time =
            time.ok_or_else(|| wrong(column, cell, "a number, or a date such as 2024-05-01 12:30:00"))?;
        let unit = Unit::of(time);
        match self.unit {
            None => self.unit = Some((unit, time)),
            Some((first, _)) if first == unit => {}
            Some((first, example)) => {
                let what = format!(
                    "{time} looks like {}, but {example} before it like {}",
                    unit.name(),
                    first.name()
                );
                let error = Error::data(what).at(column);
                return Err(Fault::new(
                    "mixed time units",
                    error.remedy("write all times in one unit; a missing time is no 0: leave such rows out"),
                ));
            }
        }
        Ok(time)
    }

    /// Puts every user's events into the order of time, once each. Returns how many were repeated, and how
    /// many had no event to take their time from.
    ///
    /// # Errors
    /// The file system.
    pub fn sort(&mut self, tell: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<(u64, u64)> {
        let (mut repeated, mut untimed) = (0, 0);
        let step = rayon::current_num_threads().max(1);
        for first in (0..PARTS).step_by(step) {
            tell(first as u64, PARTS as u64)?;
            let numbers: Vec<usize> = (first..PARTS.min(first + step)).collect();
            let sorted: Vec<_> =
                numbers.par_iter().map(|n| self.spool.load(*n).map(|part| sorted(&part))).collect();
            for (number, sorted) in numbers.into_iter().zip(sorted) {
                let (bytes, again, without) = sorted?;
                repeated += again;
                untimed += without;
                self.spool.replace(number, bytes)?;
            }
        }
        Ok((repeated, untimed))
    }
}

/// A part in the order of users and times; at one instant what was merely shown comes first, otherwise equal
/// times stay in the order of the log. An event that is repeated stays once; shown and taken at once is taken.
fn sorted(part: &[u8]) -> (Vec<u8>, u64, u64) {
    let mut all: Vec<Event> = events(part).collect();
    let untimed = find_times(&mut all);
    all.sort_by_key(|e| (e.head.user, e.head.time, e.is(WANTED)));
    let (mut bytes, mut kept) = (Vec::with_capacity(part.len()), Vec::<&Event>::new());
    let mut seen = HashSet::new();
    let mut repeated = 0;
    for run in all.chunk_by(|a, b| (a.head.user, a.head.time) == (b.head.user, b.head.time)) {
        seen.clear();
        kept.clear();
        for event in run.iter().rev() {
            let Head { task, item, request, .. } = event.head;
            if run.len() == 1 || seen.insert((task, item, request, event.query_bytes())) {
                kept.push(event);
            }
        }
        kept.iter().rev().for_each(|event| event.store(&mut bytes));
        repeated += (run.len() - kept.len()) as u64;
    }
    (bytes, repeated, untimed)
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

/// What a time is counted in, as its size tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Steps,
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Unit {
    /// Years 1973 to 5138 in each unit; smaller numbers count something of the log's own.
    fn of(time: i64) -> Self {
        match time.unsigned_abs() {
            0..100_000_000 => Unit::Steps,
            100_000_000..100_000_000_000 => Unit::Seconds,
            100_000_000_000..100_000_000_000_000 => Unit::Milliseconds,
            100_000_000_000_000..100_000_000_000_000_000 => Unit::Microseconds,
            _ => Unit::Nanoseconds,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Unit::Steps => "a count",
            Unit::Seconds => "seconds since 1970",
            Unit::Milliseconds => "milliseconds since 1970",
            Unit::Microseconds => "microseconds since 1970",
            Unit::Nanoseconds => "nanoseconds since 1970",
        }
    }
}

/// Seconds since 1970 of `YYYY-MM-DD[ T]HH:MM[:SS[.fraction]][Z]`, or of a date alone.
fn date(text: &str) -> Option<i64> {
    let (day, time) = match text.split_once([' ', 'T']) {
        Some((day, time)) => (day, time.trim_end_matches('Z')),
        None => (text, "00:00"),
    };
    let mut parts = day.splitn(3, '-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let time = time.split_once('.').map_or(time, |(whole, _)| whole);
    let mut clock = time.split(':').map(|p| p.parse::<i64>().ok());
    let (hour, minute) = (clock.next()??, clock.next()??);
    let second = clock.next().unwrap_or(Some(0))?;
    let sound = (1..=12).contains(&month) && (1..=31).contains(&day) && (1600..=9999).contains(&year);
    let sound = sound && (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    // Days from civil (Howard Hinnant): a year begins in March, so that leap days come last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    sound.then_some(days * 86_400 + hour * 3600 + minute * 60 + second)
}
