//! Races in global memory, between threads of any blocks of a launch.

use super::block::{BlockClocks, GRANULE, Manner, Release};
use super::cell::{Actor, CLEAR, Cell, Conflict, Event, morally_strong};
use crate::ptx::program::{Order, Scope};
use std::collections::HashMap;

const PAGE: u64 = 4096;

/// A place that strong operations use: a flag, a counter.
struct Location {
    release: Release,
    /// Who wrote it last, and how often it was written.
    writer: Option<Event>,
    writes: u64,
    /// Strong reads, and after which write they came.
    reads: Vec<(Event, u64)>,
}

/// Global memory of one launch.
#[derive(Default)]
pub struct GlobalRaces {
    pages: HashMap<u64, Box<[Cell]>>,
    locations: HashMap<u64, Location>,
}

/// What an access does to memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic operation that returns a value.
    Update,
    /// One that does not (`red`): it never acquires.
    Reduce,
}

/// A lane's access.
#[derive(Clone, Copy)]
pub struct Access {
    /// What it does.
    pub does: Does,
    /// What it orders.
    pub order: Order,
    /// `ld.nc`.
    pub constant: bool,
}

type Found = Result<(), (u64, Conflict)>;

impl GlobalRaces {
    /// A lane accesses `bytes` bytes at `at`.
    pub fn access(
        &mut self,
        clocks: &mut BlockClocks,
        (w, lane, pc): (usize, usize, u32),
        at: u64,
        bytes: u64,
        Access { does, order, constant }: Access,
    ) -> Found {
        let manner = Manner { scope: order.scope, constant };
        self.check(&clocks.actor(w, lane, pc, manner), at, bytes, does)?;
        if order.scope != Scope::Weak {
            self.synchronize(clocks, (w, lane, pc), at, does, order);
        } else if does != Does::Read && !self.locations.is_empty() {
            // A weak write hands nothing on.
            for place in (at & !3..at + bytes).step_by(4) {
                self.locations.remove(&place);
            }
        }
        Ok(())
    }

    /// The asynchronous proxy reads for somebody.
    pub fn read_by(&mut self, by: &Actor, at: u64, bytes: u64) -> Found {
        self.check(by, at, bytes, Does::Read)
    }

    fn check(&mut self, by: &Actor, at: u64, bytes: u64, does: Does) -> Found {
        let granule = GRANULE as u64;
        let (mut from, end) = (at / granule, (at + bytes).div_ceil(granule));
        while from < end {
            let page = from * granule / PAGE;
            let first = page * (PAGE / granule);
            let to = end.min(first + PAGE / granule);
            let cells =
                self.pages.entry(page).or_insert_with(|| vec![CLEAR; (PAGE / granule) as usize].into());
            for g in from..to {
                let location =
                    if self.locations.is_empty() { None } else { self.locations.get(&((g * granule) & !3)) };
                let observed = |_: &Event| {
                    location.is_some_and(|l| l.reads.iter().any(|(r, n)| *n == l.writes && by.follows(r)))
                };
                let cell = &mut cells[(g - first) as usize];
                let done = match does {
                    Does::Read => cell.read(by, observed),
                    _ => strong_reads(location, by).and_then(|()| cell.write(by, observed)),
                };
                done.map_err(|c| (g * granule, c))?;
            }
            from = to;
        }
        Ok(())
    }

    fn synchronize(
        &mut self,
        clocks: &mut BlockClocks,
        (w, lane, pc): (usize, usize, u32),
        at: u64,
        does: Does,
        order: Order,
    ) {
        let event = clocks.actor(w, lane, pc, Manner { scope: order.scope, constant: false }).event;
        let nothing =
            || Release { device: Default::default(), block: Default::default(), fenced: Default::default() };
        let location = self.locations.entry(at).or_insert_with(|| Location {
            release: nothing(),
            writer: None,
            writes: 0,
            reads: Vec::new(),
        });
        let from = location.writer.filter(|writer| morally_strong(writer, &event));
        if let (Does::Read | Does::Update, Some(writer)) = (does, from) {
            clocks.acquire(w, writer.block == event.block, &location.release, order.scope, order.acquire);
        }
        if does == Does::Read {
            let same = |r: &&mut (Event, u64)| {
                r.0.block == event.block && r.0.agent == event.agent && r.0.lane == event.lane
            };
            match location.reads.iter_mut().find(same) {
                Some(read) => *read = (event, location.writes),
                None => location.reads.push((event, location.writes)),
            }
            return;
        }
        let release = clocks.release(w, lane, order.scope, order.release);
        let chain = does != Does::Write && from.is_some();
        if chain {
            location.release.device.join(&release.device);
            location.release.block.join(&release.block);
            location.release.fenced.join(&release.fenced);
        } else {
            location.release = release;
        }
        location.writer = Some(event);
        location.writes += 1;
    }
}

/// A weak write must come after every strong read.
fn strong_reads(location: Option<&Location>, by: &Actor) -> Result<(), Conflict> {
    let reads = location.into_iter().flat_map(|l| &l.reads);
    match reads.map(|r| r.0).find(|r| !by.follows(r) && !morally_strong(r, &by.event)) {
        Some(read) => Err(Conflict::Race(read, super::cell::Was::Read)),
        None => Ok(()),
    }
}
