//! What a block's warps, copies and products know of each other.
//!
//! Agents of a block: its warps; for each of them its `cp.async`; sixteen for bulk copies, by their mbarrier; one a
//! warpgroup for its asynchronous products.

use super::cell::{Actor, CLEAR, Cell, Event};
use super::clock::{Clock, Time, World};
use crate::ptx::program::{ProxySpace, Scope};
use std::collections::HashMap;

/// Agents of bulk copies.
pub(super) const BULK_AGENTS: usize = 16;
/// Bytes that are told apart in memory.
pub const GRANULE: usize = 2;

/// How something is accessed.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// What the access is strong with.
    pub scope: Scope,
    /// `ld.nc`.
    pub constant: bool,
}

/// An ordinary access.
pub const WEAK: Manner = Manner { scope: Scope::Weak, constant: false };

/// What somebody knows.
#[derive(Clone, Default)]
pub struct Known {
    /// What is ordered before them (base causality order).
    pub base: Clock,
    /// Of that, what a sequentially consistent fence of the device's scope has covered.
    pub(super) fenced: Clock,
    /// What a sequentially consistent fence would make known: it was read from others who had fenced.
    pub(super) pending: World,
    /// What the asynchronous proxy sees of shared memory, and of global memory.
    pub(super) shared_proxy: Clock,
    pub(super) global_proxy: Clock,
}

impl Known {
    pub(super) fn new(agents: usize) -> Self {
        let clock = Clock::new(agents);
        Self {
            base: clock.clone(),
            fenced: clock.clone(),
            pending: World::default(),
            shared_proxy: clock.clone(),
            global_proxy: clock,
        }
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.base.join(&other.base);
        self.fenced.join(&other.fenced);
        self.pending.join(&other.pending);
        self.shared_proxy.join(&other.shared_proxy);
        self.global_proxy.join(&other.global_proxy);
    }
}

/// A fence of some lanes: what was before it.
struct LaneFence {
    lanes: u32,
    scope: Scope,
    before: Clock,
}

pub(super) struct WarpClock {
    pub(super) now: u32,
    pub(super) copies_done: u32,
    pub(super) known: Known,
    fences: Vec<LaneFence>,
    /// What a fence would make known: read from releases, of this block and of any.
    pub(super) read_block: World,
    pub(super) read_device: World,
}

pub(super) struct MbarrierClock {
    pub(super) arriving: Known,
    pub(super) completed: Known,
    pub(super) agent: usize,
}

/// Who asked for something asynchronous, and what they knew.
#[derive(Clone)]
pub struct Asker {
    pub(super) known: Known,
    /// The instruction.
    pub pc: u32,
}

/// What a strong write hands on to who reads it.
pub struct Release {
    /// To everybody on the device.
    pub device: World,
    /// To the own block.
    pub block: World,
    /// To those who make a sequentially consistent fence.
    pub fenced: World,
}

/// The clocks of a block.
pub struct BlockClocks {
    /// The block's number in the grid.
    pub block: u32,
    pub(super) warps: Vec<WarpClock>,
    pub(super) agents: usize,
    pub(super) cells: Vec<Cell>,
    pub(super) mbarriers: HashMap<u32, MbarrierClock>,
    pub(super) bulk: [u32; BULK_AGENTS],
    pub(super) products: Vec<u32>,
}

impl BlockClocks {
    /// Of `warps` warps and as many bytes of shared memory.
    pub fn new(block: u32, warps: usize, shared_bytes: usize) -> Self {
        let agents = 2 * warps + BULK_AGENTS + warps.div_ceil(4);
        let warp = |_| WarpClock {
            now: 1,
            copies_done: 0,
            known: Known::new(agents),
            fences: Vec::new(),
            read_block: World::default(),
            read_device: World::default(),
        };
        Self {
            block,
            warps: (0..warps).map(warp).collect(),
            agents,
            cells: vec![CLEAR; shared_bytes.div_ceil(GRANULE)],
            mbarriers: HashMap::new(),
            bulk: [0; BULK_AGENTS],
            products: vec![0; warps.div_ceil(4)],
        }
    }

    pub(super) fn copies(&self, w: usize) -> usize {
        self.warps.len() + w
    }

    pub(super) fn products_agent(&self, w: usize) -> usize {
        2 * self.warps.len() + BULK_AGENTS + w / 4
    }

    pub(super) fn event(&self, agent: usize, lane: usize, time: u32, pc: u32, manner: Manner) -> Event {
        let (scope, constant) = (manner.scope, manner.constant);
        Event {
            block: self.block,
            time,
            pc,
            agent: agent as u8,
            lane: lane as u8,
            scope,
            asynchronous: false,
            constant,
        }
    }

    /// A lane that accesses memory now.
    pub fn actor(&self, w: usize, lane: usize, pc: u32, manner: Manner) -> Actor<'_> {
        let warp = &self.warps[w];
        let event = self.event(w, lane, warp.now, pc, manner);
        Actor {
            event,
            base: &warp.known.base,
            proxy: None,
            warp: Some((w as u8, self.copies(w) as u8, warp.copies_done)),
        }
    }

    /// Names an agent of this or any other block of the launch: `thread 5`, `a bulk copy`.
    pub fn name(&self, e: &Event) -> String {
        let (agent, warps) = (usize::from(e.agent), self.warps.len());
        match agent {
            a if a < warps => format!("thread {}", a * 32 + usize::from(e.lane)),
            a if a < 2 * warps => format!("a cp.async of thread {}", (a - warps) * 32 + usize::from(e.lane)),
            a if a < 2 * warps + BULK_AGENTS => "a bulk copy".into(),
            a => format!("products of warpgroup {}", a - 2 * warps - BULK_AGENTS),
        }
    }

    // ---- order within the block ---------------------------------------------------------------------

    /// What lanes of a warp know, to hand it on; what they do from now on is not part of it.
    pub(super) fn contribution(&mut self, w: usize, lanes: u32) -> Known {
        let copies = self.copies(w);
        let warp = &mut self.warps[w];
        let mut known = warp.known.clone();
        let (own, done) = (&mut known.base.own, warp.copies_done);
        own[w] = Time { all: own[w].all, some: warp.now, lanes };
        own[copies] = Time { all: own[copies].all, some: done, lanes };
        restrict(&mut known.fenced, w, copies, lanes);
        warp.now += 1;
        known
    }

    /// `bar.warp.sync`: every lane knows what the others did.
    pub fn warp_barrier(&mut self, w: usize) {
        let copies = self.copies(w);
        let warp = &mut self.warps[w];
        for clock in [&mut warp.known.fenced, &mut warp.known.shared_proxy, &mut warp.known.global_proxy] {
            for agent in [w, copies] {
                let t = &mut clock.own[agent];
                *t = Time { all: if t.lanes == 0 { t.all } else { t.all.max(t.some) }, ..Time::default() };
            }
        }
        let own = &mut warp.known.base.own;
        own[w] = Time { all: warp.now, ..Time::default() };
        own[copies] = Time { all: warp.copies_done, ..Time::default() };
        warp.now += 1;
    }

    /// `bar.sync` of all warps.
    pub fn block_barrier(&mut self) {
        let mut all = Known::new(self.agents);
        for w in 0..self.warps.len() {
            self.warp_barrier(w);
            all.join(&self.warps[w].known);
        }
        self.warps.iter_mut().for_each(|w| w.known = all.clone());
    }

    // ---- order between blocks -----------------------------------------------------------------------

    /// A fence of some lanes.
    pub fn fence(&mut self, w: usize, lanes: u32, scope: Scope, consistent: bool) {
        let block = self.block;
        let warp = &mut self.warps[w];
        let read =
            std::mem::take(if scope == Scope::Device { &mut warp.read_device } else { &mut warp.read_block });
        warp.known.base.join_world(block, &read);
        if consistent && scope == Scope::Device {
            let pending = std::mem::take(&mut warp.known.pending);
            warp.known.base.join_world(block, &pending);
        }
        let before = self.contribution(w, lanes).base;
        let warp = &mut self.warps[w];
        if consistent && scope == Scope::Device {
            warp.known.fenced.join(&before);
        }
        warp.fences.retain_mut(|f| {
            f.lanes &= if f.scope <= scope { !lanes } else { u32::MAX };
            f.lanes != 0
        });
        warp.fences.push(LaneFence { lanes, scope, before });
    }

    /// What a strong write of a lane hands on.
    pub fn release(&mut self, w: usize, lane: usize, scope: Scope, release: bool) -> Release {
        let (block, copies, lanes) = (self.block, self.copies(w), 1u32 << lane);
        let mut out = Release { device: World::default(), block: World::default(), fenced: World::default() };
        let known = self.contribution(w, lanes);
        out.fenced = known.fenced.to_world(block);
        let mut hand_on = |clock: &Clock, scope: Scope| {
            let world = clock.to_world(block);
            out.block.join(&world);
            if scope == Scope::Device {
                out.device.join(&world);
            }
        };
        if release {
            hand_on(&known.base, scope);
        }
        for fence in self.warps[w].fences.iter().filter(|f| f.lanes & lanes != 0) {
            let mut before = fence.before.clone();
            restrict(&mut before, w, copies, lanes);
            hand_on(&before, scope.min(fence.scope));
        }
        out
    }

    /// A lane has read what a strong write handed on.
    pub fn acquire(&mut self, w: usize, same_block: bool, from: &Release, scope: Scope, acquire: bool) {
        let block = self.block;
        let warp = &mut self.warps[w];
        let seen = match (same_block, scope) {
            (true, _) => &from.block,
            (false, Scope::Device) => &from.device,
            _ => return,
        };
        if acquire {
            warp.known.base.join_world(block, seen);
        }
        if same_block {
            warp.read_block.join(seen);
        }
        warp.read_device.join(seen);
        warp.known.pending.join(&from.fenced);
    }

    /// `fence.proxy.async` of some lanes: the asynchronous proxy sees what they know.
    pub fn proxy_fence(&mut self, w: usize, lanes: u32, space: ProxySpace) {
        let known = self.contribution(w, lanes).base;
        let warp = &mut self.warps[w].known;
        if space != ProxySpace::Global {
            warp.shared_proxy.join(&known);
        }
        if space != ProxySpace::Shared {
            warp.global_proxy.join(&known);
        }
    }
}

/// Leaves of what is known of a warp's lanes only what some of them did.
fn restrict(clock: &mut Clock, w: usize, copies: usize, lanes: u32) {
    clock.own[w].lanes &= lanes;
    clock.own[copies].lanes &= lanes;
}
