//! Which work comes before which: by stream order, events and waits. Two streams that use the same memory, one of them
//! writing, without such an order are a fault, whatever order they were done in.

use std::collections::BTreeMap;

/// The last piece of work of each stream that comes before.
pub type Clock = BTreeMap<usize, u64>;

/// Adds what comes before `other`.
pub fn join(clock: &mut Clock, other: &Clock) {
    for (stream, number) in other {
        let known = clock.entry(*stream).or_default();
        *known = (*known).max(*number);
    }
}

/// A point in a stream.
#[derive(Clone, Debug)]
pub struct Mark {
    pub stream: usize,
    pub number: u64,
    /// What comes before it, itself included.
    pub clock: Clock,
}

/// A use of memory by a piece of work.
struct Use {
    mark: (usize, u64),
    range: (u64, u64),
    writes: bool,
    what: String,
}

/// What the host has waited for, and who used which memory.
#[derive(Default)]
pub struct Order {
    pub host: Clock,
    uses: Vec<Use>,
}

/// Uses that are remembered.
const REMEMBERED: usize = 4096;

impl Order {
    /// Notes a use, and says with which earlier one it has no order.
    pub fn note(&mut self, mark: &Mark, range: (u64, u64), writes: bool, what: &str) -> Option<String> {
        let known = |u: &&Use| mark.clock.get(&u.mark.0).is_some_and(|n| *n >= u.mark.1);
        let conflicts = |u: &&Use| {
            u.mark.0 != mark.stream && (writes || u.writes) && u.range.0 < range.1 && range.0 < u.range.1
        };
        let other = self.uses.iter().find(|u| conflicts(u) && !known(u));
        let verb = |writes: bool| if writes { "writes" } else { "reads" };
        let found = other.map(|u| {
            let from = u.range.0.max(range.0);
            let both = u.range.1.min(range.1) - from;
            format!(
                "{what} of stream {:#x} {} {both} bytes at {from:#x} that {} of stream {:#x} {}, and neither waits for the other",
                mark.stream,
                verb(writes),
                u.what,
                u.mark.0,
                verb(u.writes)
            )
        });
        if self.uses.len() >= REMEMBERED {
            self.uses.drain(..REMEMBERED / 2);
        }
        self.uses.push(Use { mark: (mark.stream, mark.number), range, writes, what: what.to_string() });
        found
    }

    /// The host waited for everything: all that was used comes before all that will be.
    pub fn forget(&mut self) {
        self.uses.clear();
    }
}
