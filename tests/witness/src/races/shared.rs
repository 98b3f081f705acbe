//! Shared memory, and what works on it beside the warps: `cp.async`, bulk copies that count on mbarriers, products.

use super::block::{Asker, BULK_AGENTS, BlockClocks, GRANULE, Known, MbarrierClock, WEAK};
use super::cell::{Actor, Conflict};
use super::clock::Time;

/// What is wrong, and with which byte.
type Found = Result<(), (usize, Conflict)>;

impl BlockClocks {
    // ---- shared memory ------------------------------------------------------------------------------

    fn cells(offset: usize, bytes: usize) -> std::ops::Range<usize> {
        offset / GRANULE..(offset + bytes).div_ceil(GRANULE)
    }

    /// A lane reads shared memory.
    pub fn read(&mut self, w: usize, lane: usize, offset: usize, bytes: usize, pc: u32) -> Found {
        let mut cells = std::mem::take(&mut self.cells);
        let actor = self.actor(w, lane, pc, WEAK);
        let result = Self::cells(offset, bytes)
            .try_for_each(|g| cells[g].read(&actor, |_| false).map_err(|c| (g * GRANULE, c)));
        self.cells = cells;
        result
    }

    /// A lane writes shared memory.
    pub fn write(&mut self, w: usize, lane: usize, offset: usize, bytes: usize, pc: u32) -> Found {
        let mut cells = std::mem::take(&mut self.cells);
        let actor = self.actor(w, lane, pc, WEAK);
        let result = Self::cells(offset, bytes)
            .try_for_each(|g| cells[g].write(&actor, |_| false).map_err(|c| (g * GRANULE, c)));
        self.cells = cells;
        result
    }

    /// A lane asks for 16 bytes of `cp.async` in its group `group`: they may be written from now on.
    pub fn copy_asked(&mut self, w: usize, lane: usize, offset: usize, pc: u32, group: u32) -> Found {
        let mut cells = std::mem::take(&mut self.cells);
        let mut actor = self.actor(w, lane, pc, WEAK);
        actor.event.agent = self.copies(w) as u8;
        actor.event.time = group + 1;
        let result = Self::cells(offset, 16)
            .try_for_each(|g| cells[g].write(&actor, |_| false).map_err(|c| (g * GRANULE, c)));
        self.cells = cells;
        result
    }

    /// The groups before `done` are there.
    pub fn copies_waited(&mut self, w: usize, done: u32) {
        self.warps[w].copies_done = self.warps[w].copies_done.max(done);
    }

    /// The asynchronous proxy reads or writes shared memory for `asker`.
    fn asynchronous(
        &mut self,
        asker: &Asker,
        agent: usize,
        time: u32,
        ranges: &[(usize, usize)],
        write: bool,
    ) -> Found {
        let mut cells = std::mem::take(&mut self.cells);
        let mut event = self.event(agent, 0, time, asker.pc, WEAK);
        event.asynchronous = true;
        let actor =
            Actor { event, base: &asker.known.base, proxy: Some(&asker.known.shared_proxy), warp: None };
        let result = ranges.iter().try_for_each(|(offset, bytes)| {
            Self::cells(*offset, *bytes).try_for_each(|g| {
                let done =
                    if write { cells[g].write(&actor, |_| false) } else { cells[g].read(&actor, |_| false) };
                done.map_err(|c| (g * GRANULE, c))
            })
        });
        self.cells = cells;
        result
    }

    // ---- mbarriers, bulk copies, products -----------------------------------------------------------

    /// An mbarrier is initialised.
    pub fn mbarrier_init(&mut self, at: u32) {
        let agent = 2 * self.warps.len() + self.mbarriers.len() % BULK_AGENTS;
        let (arriving, completed) = (Known::new(self.agents), Known::new(self.agents));
        self.mbarriers.insert(at, MbarrierClock { arriving, completed, agent });
    }

    /// A lane arrives.
    pub fn arrive(&mut self, w: usize, lane: usize, at: u32) {
        let known = self.contribution(w, 1 << lane);
        if let Some(m) = self.mbarriers.get_mut(&at) {
            m.arriving.join(&known);
        }
    }

    /// A phase is complete: who waits for it knows what its arrivals knew.
    pub fn phase_completed(&mut self, at: u32) {
        if let Some(m) = self.mbarriers.get_mut(&at) {
            m.completed.join(&m.arriving);
        }
    }

    /// A lane has found a phase complete.
    pub fn waited(&mut self, w: usize, at: u32) {
        if let Some(m) = self.mbarriers.get(&at) {
            self.warps[w].known.join(&m.completed);
        }
    }

    /// What a lane knows that asks for something asynchronous.
    pub fn ask(&mut self, w: usize, lane: usize, pc: u32) -> Asker {
        Asker { known: self.contribution(w, 1 << lane), pc }
    }

    /// A bulk copy writes shared memory; its bytes are to count on the mbarrier after this.
    pub fn bulk_written(&mut self, asker: &Asker, offset: usize, bytes: usize, mbarrier: u32) -> Found {
        let Some(agent) = self.mbarriers.get(&mbarrier).map(|m| m.agent) else { return Ok(()) };
        let time = &mut self.bulk[agent - 2 * self.warps.len()];
        *time += 1;
        let time = *time;
        self.asynchronous(asker, agent, time, &[(offset, bytes)], true)?;
        if let Some(m) = self.mbarriers.get_mut(&mbarrier) {
            m.arriving.base.own[agent].join(Time { all: time, ..Time::default() });
        }
        Ok(())
    }

    /// Products read shared memory; their time, which `products_waited` makes known.
    pub fn products_read(
        &mut self,
        w: usize,
        asker: &Asker,
        ranges: &[(usize, usize)],
    ) -> Result<u32, (usize, Conflict)> {
        let agent = self.products_agent(w);
        self.products[w / 4] += 1;
        let time = self.products[w / 4];
        self.asynchronous(asker, agent, time, ranges, false).map(|()| time)
    }

    /// A warp has waited for products through that time.
    pub fn products_waited(&mut self, w: usize, time: u32) {
        let agent = self.products_agent(w);
        self.warps[w].known.base.own[agent].join(Time { all: time, ..Time::default() });
    }

    /// A bulk copy reads global memory, before it writes shared memory: as an actor there.
    pub fn bulk_reader<'a>(&self, asker: &'a Asker, mbarrier: u32) -> Actor<'a> {
        let agent = self.mbarriers.get(&mbarrier).map_or(2 * self.warps.len(), |m| m.agent);
        let mut event = self.event(agent, 0, self.bulk[agent - 2 * self.warps.len()] + 1, asker.pc, WEAK);
        event.asynchronous = true;
        Actor { event, base: &asker.known.base, proxy: Some(&asker.known.global_proxy), warp: None }
    }
}
