//! A block and its warps.

use super::Launch;
use super::bulk::{Bulk, Mbarrier};
use super::copies::Copies;
use super::memory::Bits;
use super::registers::Registers;
use super::warpgroup::Product;
use crate::ptx::program::Program;
use crate::races::block::BlockClocks;
use std::collections::BTreeMap;

/// Where a block's shared memory begins: aligned as the programs ask for and no better.
pub const SHARED_BASE: u32 = 0x480;

/// Lanes of a warp that are at the same place.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub pc: u32,
    pub mask: u32,
    /// It waits for the warp's other parts.
    pub parked: bool,
}

#[derive(PartialEq, Eq, Clone, Copy, Debug)]
pub(super) enum State {
    Ready,
    AtBarrier,
    Done,
}

pub(super) struct Warp {
    pub parts: Vec<Part>,
    pub state: State,
    pub registers: Registers,
    /// The instruction that is being executed.
    pub pc: u32,
    pub copies: Copies,
    pub products: Vec<Product>,
    /// Their accumulators: a bit a slot.
    pub in_flight: Vec<u64>,
    pub product_groups: u32,
    /// Groups that are done, and when they were, until the warp waits for them.
    pub product_times: Vec<(u32, u32)>,
    /// It makes a strong load, or waits for an mbarrier, in vain or not.
    pub spins: bool,
}

/// A block that runs.
pub(super) struct Block {
    pub index: [u32; 3],
    pub warps: Vec<Warp>,
    pub shared: Vec<u8>,
    pub shared_written: Bits,
    pub locals: Vec<u8>,
    pub locals_written: Bits,
    /// A copy of the arguments, aligned as tensor maps want it.
    pub parameters: Parameters,
    pub mbarriers: BTreeMap<u32, Mbarrier>,
    pub bulk: Vec<Bulk>,
    /// Rounds that a bulk copy may still be put off while others go on.
    pub patience: u32,
    pub clocks: Option<Box<BlockClocks>>,
}

/// The arguments, at an address that is a multiple of 128.
pub(super) struct Parameters(Vec<Aligned>);

#[derive(Clone, Copy)]
#[repr(align(128))]
struct Aligned([u8; 128]);

impl Parameters {
    fn new(bytes: &[u8]) -> Self {
        let chunk = |c: &[u8]| {
            let mut a = Aligned([0; 128]);
            a.0[..c.len()].copy_from_slice(c);
            a
        };
        Self(bytes.chunks(128).map(chunk).collect())
    }

    pub fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

/// What a special register holds, given block index, thread (linear), block and grid sizes.
pub type Special = fn([u32; 3], u32, [u32; 3], [u32; 3]) -> u32;

/// A special register by its name; none: it is not modelled.
pub fn special(name: &str) -> Option<Special> {
    Some(match name {
        "%tid.x" => |_, t, b, _| t % b[0],
        "%tid.y" => |_, t, b, _| t / b[0] % b[1],
        "%tid.z" => |_, t, b, _| t / b[0] / b[1],
        "%ntid.x" => |_, _, b, _| b[0],
        "%ntid.y" => |_, _, b, _| b[1],
        "%ntid.z" => |_, _, b, _| b[2],
        "%ctaid.x" => |i, _, _, _| i[0],
        "%ctaid.y" => |i, _, _, _| i[1],
        "%ctaid.z" => |i, _, _, _| i[2],
        "%nctaid.x" => |_, _, _, g| g[0],
        "%nctaid.y" => |_, _, _, g| g[1],
        "%nctaid.z" => |_, _, _, g| g[2],
        "%laneid" => |_, t, _, _| t % 32,
        "shared" => |_, _, _, _| SHARED_BASE,
        _ => return None,
    })
}

impl Block {
    pub fn new(launch: &Launch, number: u64, races: bool) -> Self {
        let p = launch.program;
        let [gx, gy, _] = launch.grid.map(u64::from);
        let index = [(number % gx) as u32, (number / gx % gy) as u32, (number / gx / gy) as u32];
        let threads = launch.block.iter().product::<u32>();
        let warps = threads.div_ceil(32);
        let locals = warps as usize * 32 * p.local_bytes;
        let clocks = || Box::new(BlockClocks::new(number as u32, warps as usize, launch.shared as usize));
        Self {
            index,
            warps: (0..warps).map(|w| Warp::new(launch, index, w, threads)).collect(),
            shared: vec![0xff; launch.shared as usize],
            shared_written: Bits::new(launch.shared as usize),
            locals: vec![0xff; locals],
            locals_written: Bits::new(locals),
            parameters: Parameters::new(launch.parameters),
            mbarriers: BTreeMap::new(),
            bulk: Vec::new(),
            patience: 4,
            clocks: races.then(clocks),
        }
    }

    pub fn is_done(&self) -> bool {
        self.bulk.is_empty() && self.warps.iter().all(|w| w.state == State::Done)
    }

    /// Where a waiting block's warps are, and what its mbarriers wait for.
    pub fn whereabouts(&self, p: &Program) -> String {
        let mut text = format!("block {:?}:", self.index);
        let mut places: BTreeMap<(u32, bool), Vec<usize>> = BTreeMap::new();
        for (w, warp) in self.warps.iter().enumerate() {
            for part in &warp.parts {
                places.entry((part.pc, warp.state == State::AtBarrier)).or_default().push(w);
            }
        }
        for ((pc, at_barrier), warps) in places {
            let what = if at_barrier { "past a barrier at" } else { "at" };
            text += &format!(" warps {warps:?} {what} {};", p.place(pc as usize));
        }
        let waiting = |m: &&Mbarrier| m.pending != m.count || m.bytes != 0;
        for m in self.mbarriers.values().filter(waiting) {
            text += &format!(
                " an mbarrier waits for {} of {} arrivals and {} bytes;",
                m.pending, m.count, m.bytes
            );
        }
        text
    }

    pub fn first_place(&self, p: &Program) -> Option<String> {
        let warp = self.warps.iter().find(|w| w.state != State::Done)?;
        warp.parts.first().map(|part| p.place(part.pc as usize))
    }
}

impl Warp {
    fn new(launch: &Launch, index: [u32; 3], w: u32, threads: u32) -> Self {
        let p = launch.program;
        let mut registers = Registers::new(p);
        for (name, slot) in &p.specials {
            let (plain, long) = name.strip_suffix(":long").map_or((name.as_str(), false), |n| (n, true));
            let Some(value) = special(plain) else { continue };
            let values = std::array::from_fn(|l| value(index, w * 32 + l as u32, launch.block, launch.grid));
            if long {
                registers.put_long(*slot, &values.map(u64::from), u32::MAX);
            } else {
                registers.put(*slot, &values, u32::MAX);
            }
        }
        let here = threads - w * 32;
        let mask = if here >= 32 { u32::MAX } else { (1 << here) - 1 };
        Self {
            parts: vec![Part { pc: 0, mask, parked: false }],
            state: State::Ready,
            registers,
            pc: 0,
            copies: Copies::default(),
            products: Vec::new(),
            in_flight: Vec::new(),
            product_groups: 0,
            product_times: Vec::new(),
            spins: false,
        }
    }

    /// Lanes that have not ended.
    pub fn live(&self) -> u32 {
        self.parts.iter().fold(0, |m, p| m | p.mask)
    }
}
