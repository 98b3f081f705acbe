//! What is known to have happened: vector clocks whose entries tell lanes of a warp apart.

use std::collections::BTreeMap;
use std::sync::Arc;

/// How much of an agent's past is known: all lanes through one time, some lanes through a later one.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Time {
    /// Every lane's events through this time are known.
    pub all: u32,
    /// Those of `lanes` through this one.
    pub some: u32,
    /// A bit a lane.
    pub lanes: u32,
}

impl Time {
    /// Whether an event is known.
    pub fn covers(self, time: u32, lane: u8) -> bool {
        time <= self.all || time <= self.some && self.lanes >> (lane & 31) & 1 != 0
    }

    /// What either knows. Where that cannot be said in these terms it is too much: an order is imagined, never a race.
    pub fn join(&mut self, other: Self) {
        self.all = self.all.max(other.all);
        if other.some > self.all && other.lanes != 0 {
            if self.some <= self.all
                || self.lanes == 0
                || self.lanes & !other.lanes == 0 && other.some >= self.some
            {
                (self.some, self.lanes) = (other.some, other.lanes);
            } else if other.lanes & !self.lanes != 0 || other.some > self.some {
                self.lanes |= other.lanes;
                self.some = self.some.max(other.some);
            }
        }
    }
}

/// Times of a block's agents.
pub type Times = Vec<Time>;

fn join_times(to: &mut Arc<Times>, from: &Arc<Times>) {
    if Arc::ptr_eq(to, from) {
        return;
    }
    for (t, f) in Arc::make_mut(to).iter_mut().zip(from.iter()) {
        t.join(*f);
    }
}

/// What is known of any blocks.
#[derive(Clone, Default, Debug)]
pub struct World(BTreeMap<u32, Arc<Times>>);

impl World {
    /// Adds what another knows.
    pub fn join(&mut self, other: &Self) {
        for (block, times) in &other.0 {
            self.join_block(*block, times);
        }
    }

    fn join_block(&mut self, block: u32, times: &Arc<Times>) {
        match self.0.get_mut(&block) {
            Some(known) => join_times(known, times),
            None => drop(self.0.insert(block, Arc::clone(times))),
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is known to somebody in a block: of its own agents, and of other blocks.
#[derive(Clone, Default, Debug)]
pub struct Clock {
    /// Of the block's own agents.
    pub own: Times,
    others: World,
}

impl Clock {
    /// Nothing is known of `agents` agents.
    pub fn new(agents: usize) -> Self {
        Self { own: vec![Time::default(); agents], others: World::default() }
    }

    /// Adds what another in the same block knows.
    pub fn join(&mut self, other: &Self) {
        for (t, f) in self.own.iter_mut().zip(&other.own) {
            t.join(*f);
        }
        self.others.join(&other.others);
    }

    /// Adds what is known of any blocks, of which `block` is the own.
    pub fn join_world(&mut self, block: u32, world: &World) {
        for (b, times) in &world.0 {
            if *b == block {
                for (t, f) in self.own.iter_mut().zip(times.iter()) {
                    t.join(*f);
                }
            } else {
                self.others.join_block(*b, times);
            }
        }
    }

    /// The same for those in other blocks.
    pub fn to_world(&self, block: u32) -> World {
        let mut world = self.others.clone();
        world.join_block(block, &Arc::new(self.own.clone()));
        world
    }

    /// Whether an event of another block is known.
    pub fn covers_other(&self, block: u32, agent: u8, time: u32, lane: u8) -> bool {
        self.others
            .0
            .get(&block)
            .is_some_and(|t| t.get(usize::from(agent)).is_some_and(|t| t.covers(time, lane)))
    }
}

#[cfg(test)]
mod tests {
    use super::Time;

    #[test]
    fn lanes_are_told_apart_until_they_cannot_be() {
        let mut t = Time { all: 3, some: 7, lanes: 0b1 };
        assert!(t.covers(3, 9) && t.covers(7, 0) && !t.covers(4, 1) && !t.covers(8, 0));
        t.join(Time { all: 5, some: 0, lanes: 0 });
        assert!(t.covers(5, 9) && t.covers(7, 0) && !t.covers(6, 1));
        t.join(Time { all: 0, some: 9, lanes: 0b10 });
        assert!(t.covers(9, 1) && t.covers(7, 0), "nothing known is forgotten");
        t.join(Time { all: 12, some: 0, lanes: 0 });
        assert!(t.covers(12, 31));
    }
}
