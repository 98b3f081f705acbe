//! Executes launches: a few blocks side by side, their warps one after another in slices, a warp's lanes in lockstep under a
//! mask.
//!
//! What hardware may do late happens late here: `cp.async` and wgmma at their wait, bulk copies when nobody gets on without
//! them. Memory that nobody has written is not to be read, and every address lies in a live allocation.
#![warn(missing_docs)]

mod access;
mod arithmetic;
mod block;
mod bulk;
mod copies;
mod memory;
mod registers;
mod schedule;
mod step;
mod tensor_core;
mod turn;
mod warpgroup;

pub use block::{SHARED_BASE, special};
pub use bulk::{MAP_MAGIC, Map};
pub use memory::{Allocation, Memory};
pub use schedule::run;

use crate::ptx::program::Program;
use std::sync::atomic::AtomicU64;

/// A kernel launch.
pub struct Launch<'a> {
    /// The kernel.
    pub program: &'a Program,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The arguments, as the driver packs them.
    pub parameters: &'a [u8],
    /// What the kernel may touch.
    pub memory: &'a Memory,
}

/// How a launch is run, and what is checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Operating-system threads; with `races` one, whatever this says.
    pub threads: usize,
    /// 0: blocks and warps in order, long slices. Else blocks, warps and bulk copies in a random order with short slices.
    pub seed: u64,
    /// Blocks side by side; with 1, a block that waits for a later one waits in vain.
    pub resident: usize,
    /// Races and proxy fences.
    pub races: bool,
    /// Reads of what nobody has written.
    pub unwritten: bool,
    /// Warp instructions of a launch and thread before it is an error.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 1, seed: 0, resident: 4, races: false, unwritten: true, limit: 200_000_000 }
    }
}

impl Options {
    /// From `WITNESS_THREADS`, `WITNESS_SEED`, `WITNESS_RESIDENT`, `WITNESS_RACES`, `WITNESS_UNWRITTEN` and `WITNESS_LIMIT`.
    pub fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
        let flag = |name: &str, default: bool| {
            std::env::var(name).map_or(default, |v| !["", "0", "off"].contains(&v.as_str()))
        };
        let d = Self::default();
        Self {
            threads: number("WITNESS_THREADS").map_or(2, |n| n as usize),
            seed: number("WITNESS_SEED").unwrap_or(d.seed),
            resident: number("WITNESS_RESIDENT").map_or(d.resident, |n| n.max(1) as usize),
            races: flag("WITNESS_RACES", d.races),
            unwritten: flag("WITNESS_UNWRITTEN", d.unwritten),
            limit: number("WITNESS_LIMIT").unwrap_or(d.limit),
        }
    }
}

/// What launches took.
#[derive(Default, Debug)]
pub struct Counters {
    /// Processor time.
    pub cpu_nanoseconds: AtomicU64,
    /// Instructions that warps executed.
    pub warp_instructions: AtomicU64,
    /// The same, a lane each.
    pub lane_instructions: AtomicU64,
    /// Times that a warp diverged.
    pub splits: AtomicU64,
}
