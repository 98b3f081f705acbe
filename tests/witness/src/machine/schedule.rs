//! A launch: its limits, the order of its blocks, and what happens when nobody goes on.

use super::block::Block;
use super::memory::Allocation;
use super::turn::Turn;
use super::{Counters, Launch, Options};
use crate::fault::{Fault, Kind, Stop};
use crate::races::global::GlobalRaces;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::time::Duration;

/// Rounds over all resident blocks in which nobody gets on.
const PATIENCE: u32 = 2_000;

/// What the operating-system threads of a launch share.
struct Queue {
    order: Option<Vec<u64>>,
    blocks: u64,
    next: AtomicU64,
    progress: AtomicU64,
    /// Threads that still have blocks, and those of them that see nobody get on.
    working: AtomicUsize,
    stuck: AtomicUsize,
    fault: Mutex<Option<Fault>>,
}

impl Queue {
    fn take(&self) -> Option<u64> {
        let i = self.next.fetch_add(1, Relaxed);
        if i >= self.blocks {
            return None;
        }
        self.order.as_ref().map_or(Some(i), |o| o.get(i as usize).copied())
    }

    fn failed(&self) -> bool {
        self.fault.lock().is_ok_and(|f| f.is_some())
    }

    /// Whether every thread that has blocks is stuck.
    fn nobody_works(&self) -> bool {
        self.stuck.load(SeqCst) == self.working.load(SeqCst)
    }

    fn fail(&self, fault: Fault) {
        if let Ok(mut f) = self.fault.lock() {
            f.get_or_insert(fault);
        }
    }
}

/// What one operating-system thread keeps from block to block.
pub(super) struct Worker<'a> {
    pub launch: &'a Launch<'a>,
    pub options: &'a Options,
    /// The allocation that was touched last.
    pub cached: Allocation,
    pub races: Option<GlobalRaces>,
    /// 0: in order.
    pub random: u64,
    pub executed: u64,
    pub lanes: u64,
    pub splits: u64,
}

/// Runs a launch to its end, or to the first thing that is wrong.
///
/// # Errors
/// Whatever is checked: see [`Kind`].
pub fn run(launch: &Launch, options: &Options, counters: &Counters) -> Result<(), Fault> {
    limits(launch)?;
    let blocks = launch.grid.iter().map(|n| u64::from(*n)).product::<u64>();
    let seed = seed(options.seed);
    let threads = if options.races { 1 } else { options.threads.clamp(1, blocks.max(1) as usize) };
    let queue = Queue {
        order: (seed != 0).then(|| shuffled(blocks, seed)),
        blocks,
        next: AtomicU64::new(0),
        progress: AtomicU64::new(0),
        working: AtomicUsize::new(threads),
        stuck: AtomicUsize::new(0),
        fault: Mutex::new(None),
    };
    let work = |n: u64| {
        let began = cpu_time();
        let mut worker = Worker {
            launch,
            options,
            cached: Allocation::new(1, 0),
            races: options.races.then(GlobalRaces::default),
            random: if seed == 0 { 0 } else { seed.wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1 },
            executed: 0,
            lanes: 0,
            splits: 0,
        };
        worker.work(&queue);
        queue.working.fetch_sub(1, SeqCst);
        counters.cpu_nanoseconds.fetch_add((cpu_time() - began).as_nanos() as u64, Relaxed);
        counters.warp_instructions.fetch_add(worker.executed, Relaxed);
        counters.lane_instructions.fetch_add(worker.lanes, Relaxed);
        counters.splits.fetch_add(worker.splits, Relaxed);
    };
    if threads == 1 {
        work(0);
    } else {
        std::thread::scope(|s| (0..threads).for_each(|n| drop(s.spawn(move || work(n as u64)))));
    }
    queue.fault.into_inner().ok().flatten().map_or(Ok(()), Err)
}

fn limits(launch: &Launch) -> Result<(), Fault> {
    let p = launch.program;
    let fault = |message: String| {
        Err(Fault {
            kind: Kind::Launch,
            kernel: p.name.clone(),
            block: None,
            thread: None,
            place: String::new(),
            message,
        })
    };
    let threads = launch.block.iter().map(|n| u64::from(*n)).product::<u64>();
    if threads == 0 || threads > p.max_threads.into() {
        return fault(format!("{threads} threads a block, at most {} (.maxntid)", p.max_threads));
    }
    let [x, y, z] = launch.grid;
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 || launch.block[2] > 64 {
        return fault(format!("a grid of {:?} blocks of {:?}", launch.grid, launch.block));
    }
    if launch.parameters.len() != p.parameter_bytes {
        return fault(format!(
            "{} bytes of arguments, {} wanted",
            launch.parameters.len(),
            p.parameter_bytes
        ));
    }
    Ok(())
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the structure that it is given, or fails and leaves it zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Another order for each launch of a run.
fn seed(seed: u64) -> u64 {
    static LAUNCHES: AtomicU64 = AtomicU64::new(1);
    if seed == 0 {
        0
    } else {
        (seed.wrapping_mul(1 << 32) + LAUNCHES.fetch_add(1, Relaxed)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
    }
}

fn advance(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

fn shuffled(blocks: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..blocks).collect();
    let mut random = seed;
    for i in (1..order.len()).rev() {
        order.swap(i, (advance(&mut random) % (i as u64 + 1)) as usize);
    }
    order
}

impl Worker<'_> {
    /// A number below `n`; 0 when all is in order.
    pub fn pick(&mut self, n: usize) -> usize {
        if self.random == 0 || n == 0 { 0 } else { (advance(&mut self.random) % n as u64) as usize }
    }

    fn work(&mut self, queue: &Queue) {
        let mut resident: Vec<Block> = Vec::new();
        let (mut idle, mut seen, mut stuck) = (0, 0, false);
        loop {
            while resident.len() < self.options.resident.max(1) {
                let Some(i) = queue.take() else { break };
                resident.push(Block::new(self.launch, i, self.options.races));
            }
            if resident.is_empty() || queue.failed() {
                return;
            }
            let moved = match self.round(&mut resident) {
                Ok(moved) => moved,
                Err(fault) => return queue.fail(*fault),
            };
            if moved {
                queue.progress.fetch_add(1, SeqCst);
            }
            let progress = queue.progress.load(SeqCst);
            if progress != seen {
                if std::mem::take(&mut stuck) {
                    queue.stuck.fetch_sub(1, SeqCst);
                }
                (idle, seen) = (0, progress);
                continue;
            }
            idle += 1;
            if idle > PATIENCE && !std::mem::replace(&mut stuck, true) {
                queue.stuck.fetch_add(1, SeqCst);
            }
            // Another thread may be in the middle of a turn, however long the machine lets it wait.
            if stuck && queue.nobody_works() && queue.progress.load(SeqCst) == seen {
                return queue.fail(self.deadlock(&resident, queue));
            }
            if idle > 16 {
                std::thread::yield_now();
            }
        }
    }

    /// A turn for every resident block; whether anybody got on.
    fn round(&mut self, resident: &mut Vec<Block>) -> Result<bool, Box<Fault>> {
        let mut moved = false;
        for n in 0..resident.len() {
            let n = if self.random == 0 { n } else { self.pick(resident.len()) };
            let mut turn = Turn { worker: self, block: &mut resident[n], w: 0 };
            moved |= turn.take().map_err(|stop| turn.fault(stop)).map_err(Box::new)?;
        }
        let before = resident.len();
        resident.retain(|b| !b.is_done());
        if self.executed > self.options.limit {
            let message =
                format!("no end after {} warp instructions; {}", self.executed, self.whereabouts(resident));
            return Err(Box::new(self.fault(Kind::Limit, message)));
        }
        Ok(moved || resident.len() < before)
    }

    fn fault(&self, kind: Kind, message: String) -> Fault {
        Fault {
            kind,
            kernel: self.launch.program.name.clone(),
            block: None,
            thread: None,
            place: String::new(),
            message,
        }
    }

    fn whereabouts(&self, resident: &[Block]) -> String {
        resident.iter().take(4).map(|b| b.whereabouts(self.launch.program)).collect::<Vec<_>>().join("; ")
    }

    fn deadlock(&self, resident: &[Block], queue: &Queue) -> Fault {
        let begun = queue.next.load(Relaxed).min(queue.blocks);
        let left = queue.blocks - begun;
        let message = format!(
            "nobody goes on, {left} blocks have not begun ({} at a time); {}",
            resident.len(),
            self.whereabouts(resident)
        );
        let mut fault = self.fault(Kind::Deadlock, message);
        fault.block = resident.first().map(|b| b.index);
        fault.place = resident.first().and_then(|b| b.first_place(self.launch.program)).unwrap_or_default();
        fault
    }
}

impl Turn<'_, '_> {
    fn fault(&self, stop: Stop) -> Fault {
        let warp = &self.block.warps[self.w];
        let thread = stop.lane.map(|l| self.w as u32 * 32 + l as u32);
        let p = self.worker.launch.program;
        let place = stop.lane.map_or(String::new(), |_| p.place(warp.pc as usize));
        Fault {
            kind: stop.kind,
            kernel: p.name.clone(),
            block: Some(self.block.index),
            thread,
            place,
            message: stop.message,
        }
    }
}
