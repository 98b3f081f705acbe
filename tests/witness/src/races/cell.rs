//! Who accessed a place last, and whether that conflicts with who does now.

use super::clock::Clock;
use crate::ptx::program::Scope;

/// An access.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The block's number in the grid.
    pub block: u32,
    /// The agent's time; 0: there was no such access.
    pub time: u32,
    /// The instruction.
    pub pc: u32,
    /// The agent in its block.
    pub agent: u8,
    /// The lane.
    pub lane: u8,
    /// What it is strong with.
    pub scope: Scope,
    /// By the asynchronous proxy.
    pub asynchronous: bool,
    /// `ld.nc`.
    pub constant: bool,
}

/// No access.
pub const NEVER: Event = Event {
    block: 0,
    time: 0,
    pc: 0,
    agent: 0,
    lane: 0,
    scope: Scope::Weak,
    asynchronous: false,
    constant: false,
};

/// Whether two accesses are strong with each other.
pub fn morally_strong(a: &Event, b: &Event) -> bool {
    let needed = if a.block == b.block { Scope::Block } else { Scope::Device };
    a.scope >= needed && b.scope >= needed && a.asynchronous == b.asynchronous
}

/// Somebody who accesses memory now, and what they know.
pub struct Actor<'a> {
    /// The access.
    pub event: Event,
    /// What is ordered before it.
    pub base: &'a Clock,
    /// Of an access by the asynchronous proxy: what that proxy sees of the generic proxy's writes.
    pub proxy: Option<&'a Clock>,
    /// The agent's warp and that of its copies, with how many of these are done.
    pub warp: Option<(u8, u8, u32)>,
}

impl Actor<'_> {
    /// Whether an access is ordered before this one.
    pub fn follows(&self, e: &Event) -> bool {
        if e.time == 0 {
            return true;
        }
        if let Some((warp, copies, done)) = self.warp
            && e.block == self.event.block
            && e.lane == self.event.lane
        {
            if e.agent == warp {
                return true;
            }
            if e.agent == copies {
                return e.time <= done;
            }
        }
        known(self.base, self.event.block, e)
    }

    /// Whether the asynchronous proxy, if it is one, sees a write that is ordered before it.
    pub fn sees(&self, e: &Event) -> bool {
        e.time == 0 || e.asynchronous || self.proxy.is_none_or(|p| known(p, self.event.block, e))
    }
}

fn known(clock: &Clock, block: u32, e: &Event) -> bool {
    if e.block == block {
        clock.own.get(usize::from(e.agent)).is_some_and(|t| t.covers(e.time, e.lane))
    } else {
        clock.covers_other(e.block, e.agent, e.time, e.lane)
    }
}

/// What is wrong between two accesses.
#[derive(Debug)]
pub enum Conflict {
    /// Nothing orders them.
    Race(Event, Was),
    /// A proxy fence is missing between them.
    Proxy(Event),
    /// `ld.nc` of what is written while the kernel runs.
    Constant(Event, Was),
}

/// What the earlier access did.
#[derive(Clone, Copy, Debug)]
pub enum Was {
    /// It read.
    Read,
    /// It wrote.
    Written,
}

/// The last write of two bytes, and reads since then: two of them, so that of three readers that nothing orders one may be
/// forgotten.
#[derive(Clone, Copy)]
pub struct Cell {
    /// The last write.
    pub write: Event,
    reads: [Event; 2],
}

/// Untouched.
pub const CLEAR: Cell = Cell { write: NEVER, reads: [NEVER; 2] };

impl Cell {
    /// A weak read, or a strong one, which the caller notes elsewhere. `observed`: somebody before this one has read the last write
    /// by a strong read.
    pub fn read(&mut self, by: &Actor, observed: impl Fn(&Event) -> bool) -> Result<(), Conflict> {
        let write = &self.write;
        if by.event.constant && write.time != 0 {
            return Err(Conflict::Constant(*write, Was::Written));
        }
        if !by.follows(write) && !morally_strong(write, &by.event) && !observed(write) {
            return Err(Conflict::Race(*write, Was::Written));
        }
        if !by.sees(write) {
            return Err(Conflict::Proxy(*write));
        }
        if by.event.scope == Scope::Weak {
            self.note(by);
        }
        Ok(())
    }

    fn note(&mut self, by: &Actor) {
        // A place that nobody needs to remember: its reader comes before this one.
        let at = usize::from(!by.follows(&self.reads[0]));
        self.reads[at] = by.event;
        if at == 0 && by.follows(&self.reads[1]) {
            self.reads[1] = NEVER;
        }
    }

    /// A write.
    pub fn write(&mut self, by: &Actor, observed: impl Fn(&Event) -> bool) -> Result<(), Conflict> {
        let write = &self.write;
        if !by.follows(write) && !morally_strong(write, &by.event) && !observed(write) {
            return Err(Conflict::Race(*write, Was::Written));
        }
        if !by.sees(write) {
            return Err(Conflict::Proxy(*write));
        }
        for read in &self.reads {
            if read.constant && read.time != 0 {
                return Err(Conflict::Constant(*read, Was::Read));
            }
            if !by.follows(read) {
                return Err(Conflict::Race(*read, Was::Read));
            }
        }
        *self = Self { write: by.event, reads: [NEVER; 2] };
        Ok(())
    }
}
