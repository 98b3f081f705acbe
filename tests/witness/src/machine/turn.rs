//! A block's turn: each of its warps runs until it waits or its slice is over. A warp that diverges is split into parts, of
//! which the one that is furthest behind goes first, so that parts meet again; what is `.aligned` waits for all of them.

use super::block::{Block, Part, State, Warp};
use super::schedule::Worker;
use crate::fault::{Kind, Result, Stop};

/// Instructions of one warp before the next one's turn.
const SLICE: i64 = 20_000;

/// A warp of a block, on one operating-system thread.
pub(super) struct Turn<'t, 'a> {
    pub worker: &'t mut Worker<'a>,
    pub block: &'t mut Block,
    pub w: usize,
}

/// Why a part of a warp stopped.
pub(super) enum Event {
    /// It reached the place of another part, or one that another may reach.
    Meet,
    /// Some of its lanes jumped.
    Branched { to: u32, lanes: u32 },
    /// Some of its lanes ended.
    Exited(u32),
    /// It waits for the other parts.
    Aligned,
    /// It is at `bar.sync`.
    Barrier,
    /// It looked for something that others do.
    Spun,
    /// Its slice is over.
    Tired,
}

impl Turn<'_, '_> {
    pub fn warp(&mut self) -> &mut Warp {
        &mut self.block.warps[self.w]
    }

    /// Whether the block got on.
    pub fn take(&mut self) -> Result<bool> {
        let count = self.block.warps.len();
        let mut moved = false;
        for n in 0..count {
            self.w = if self.worker.random == 0 { n } else { self.worker.pick(count) };
            if self.warp().state == State::Ready {
                moved |= self.run_warp()?;
            }
        }
        moved |= self.land(moved)?;
        self.barrier().map(|released| moved || released)
    }

    /// Lets a bulk copy arrive: when nobody gets on without it, or at some time.
    fn land(&mut self, moved: bool) -> Result<bool> {
        let count = self.block.bulk.len();
        if count == 0 {
            self.block.patience = 4;
            return Ok(false);
        }
        self.block.patience = self.block.patience.saturating_sub(1);
        let now = self.worker.random != 0 && self.worker.pick(4) == 0;
        if moved && self.block.patience > 0 && !now {
            return Ok(false);
        }
        self.block.patience = 4;
        let n = self.worker.pick(count);
        let bulk = self.block.bulk.remove(n);
        self.tensor_load(&bulk)?;
        Ok(true)
    }

    /// Lets all warps go on that wait at `bar.sync`, when all are there.
    fn barrier(&mut self) -> Result<bool> {
        let count = |state| self.block.warps.iter().filter(|w| w.state == state).count();
        let (waiting, done, all) = (count(State::AtBarrier), count(State::Done), self.block.warps.len());
        if waiting == 0 || waiting + done < all {
            return Ok(false);
        }
        if done > 0 {
            self.w = self.block.warps.iter().position(|w| w.state == State::AtBarrier).unwrap_or(0);
            self.warp().pc = self.warp().parts.first().map_or(0, |p| p.pc.saturating_sub(1));
            let message = format!(
                "bar.sync of {waiting} warps, and {done} warps of the block have ended and never come"
            );
            return Err(Stop::new(Kind::Divergence, message).lane(0));
        }
        self.block.warps.iter_mut().for_each(|w| w.state = State::Ready);
        if let Some(clocks) = &mut self.block.clocks {
            clocks.block_barrier();
        }
        Ok(true)
    }

    /// Runs the warp until it waits or its slice is over; whether it got anywhere.
    fn run_warp(&mut self) -> Result<bool> {
        // Long enough for a loop that waits to look at what it waits for.
        let slice = if self.worker.random == 0 { SLICE } else { self.worker.pick(300) as i64 + 32 };
        let (mut budget, mut moved) = (slice, false);
        loop {
            let parts = &mut self.warp().parts;
            merge(parts);
            if parts.is_empty() {
                self.end_of_warp()?;
                return Ok(true);
            }
            let Some(at) = (0..parts.len()).filter(|i| !parts[*i].parked).min_by_key(|i| parts[*i].pc) else {
                return Err(self.apart());
            };
            // Where the next part is, which may wait there; one that waits further back is met after a jump back.
            let Part { pc, mask, .. } = parts[at];
            let limit = parts.iter().map(|p| p.pc).filter(|other| *other > pc).min().unwrap_or(u32::MAX);
            let several = parts.len() > 1;
            let before = budget;
            self.warp().pc = pc;
            let event = self
                .execute(mask, limit, several, &mut budget)
                .map_err(|e| e.lane(mask.trailing_zeros() as usize));
            self.worker.executed += (before - budget) as u64;
            self.worker.lanes += (before - budget) as u64 * u64::from(mask.count_ones());
            let event = event?;
            let warp = self.warp();
            warp.parts[at].pc = warp.pc;
            match event {
                Event::Meet => {}
                Event::Branched { to, lanes } => {
                    moved = true;
                    warp.parts[at].mask &= !lanes;
                    warp.parts.push(Part { pc: to, mask: lanes, parked: false });
                    self.worker.splits += 1;
                }
                Event::Exited(lanes) => {
                    moved = true;
                    warp.parts[at].mask &= !lanes;
                    warp.parts.retain(|p| p.mask != 0);
                    // Who waits for all of the warp may be all of it now.
                    warp.parts.iter_mut().for_each(|p| p.parked = false);
                }
                Event::Aligned => warp.parts[at].parked = true,
                Event::Barrier => {
                    warp.state = State::AtBarrier;
                    return Ok(true);
                }
                Event::Spun => return Ok(moved || slice - budget > 64),
                Event::Tired => return Ok(true),
            }
        }
    }

    fn end_of_warp(&mut self) -> Result<()> {
        let warp = self.warp();
        warp.state = State::Done;
        let (copies, products) = (warp.copies.pending(), warp.products.len());
        if copies + products > 0 {
            let message = format!(
                "the warp ended with {copies} cp.async and {products} products that nobody waited for"
            );
            return Err(Stop::new(Kind::Unfinished, message).lane(0));
        }
        let open = self.block.warps.iter().any(|w| w.state != State::Done);
        let odd = self.block.mbarriers.values().find(|m| m.bytes != 0);
        if let (false, Some(m)) = (open, odd) {
            let message = format!(
                "the block ended with {} bulk copies under way and {} bytes expected by an mbarrier",
                self.block.bulk.len(),
                m.bytes
            );
            return Err(Stop::new(Kind::Mbarrier, message).lane(0));
        }
        Ok(())
    }

    /// The error of parts of a warp that wait for each other.
    fn apart(&mut self) -> Stop {
        let p = self.worker.launch.program;
        let parts = self.warp().parts.clone();
        let places: Vec<String> =
            parts.iter().map(|s| format!("lanes {:#010x} at {}", s.mask, p.place(s.pc as usize))).collect();
        self.warp().pc = parts[0].pc;
        let message = format!("parts of a warp wait for each other: {}", places.join(", "));
        Stop::new(Kind::Divergence, message).lane(parts[0].mask.trailing_zeros() as usize)
    }
}

/// Parts that have met become one.
fn merge(parts: &mut Vec<Part>) {
    let mut i = 0;
    while i < parts.len() {
        match (i + 1..parts.len()).find(|j| parts[*j].pc == parts[i].pc) {
            Some(j) => {
                parts[i].mask |= parts[j].mask;
                parts[i].parked = false;
                parts.swap_remove(j);
            }
            None => i += 1,
        }
    }
}
