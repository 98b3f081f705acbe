//! Device memory. Addresses are given once and never again, so that a stale one is always seen; what was freed in
//! stream order counts as taken until somebody waits.

use crate::machine;
use std::collections::BTreeMap;

/// Addresses that are set aside: 1 TiB.
const SPACE: usize = 1 << 40;
/// What separates allocations at least; also the unit in which memory goes back to the system.
const PAGE: usize = 4096;
/// As `cuMemAlloc` aligns.
const ALIGNMENT: usize = 512;

/// One allocation.
#[derive(Clone)]
pub struct Allocation {
    pub bytes: usize,
    pub context: usize,
    /// The call that took it.
    pub call: u64,
    /// The call that freed it in stream order, although that may not be done yet.
    pub freed: Option<u64>,
    /// Whether its program has to free it; what a module brings goes with the module.
    pub owned: bool,
    /// As launches see it.
    pub range: machine::Allocation,
}

/// Where an address lies.
pub enum Place {
    Inside(u64, Allocation),
    /// Freed by this call.
    Freed(u64, Allocation),
    /// Behind the end of an allocation, or nowhere near one.
    Outside(Option<(u64, Allocation)>),
}

pub struct Heap {
    base: usize,
    next: usize,
    limit: usize,
    taken: usize,
    most: usize,
    /// Bytes of frees that are done in their stream, but not settled.
    unsettled: usize,
    live: BTreeMap<u64, Allocation>,
    dead: BTreeMap<u64, Allocation>,
}

impl Heap {
    pub fn new(limit: usize) -> Self {
        Self {
            base: 0,
            next: 0,
            limit,
            taken: 0,
            most: 0,
            unsettled: 0,
            live: BTreeMap::new(),
            dead: BTreeMap::new(),
        }
    }

    fn reserve(&mut self) -> bool {
        if self.base == 0 {
            // SAFETY: new addresses that nothing may touch yet.
            let at = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                libc::mmap(std::ptr::null_mut(), SPACE, libc::PROT_NONE, flags, -1, 0)
            };
            if at == libc::MAP_FAILED {
                return false;
            }
            self.base = at as usize;
        }
        true
    }

    fn protect(at: u64, bytes: usize, protection: i32) -> bool {
        // SAFETY: whole pages of the space that `reserve` set aside, which belong to one allocation.
        unsafe { libc::mprotect(at as *mut _, bytes.next_multiple_of(PAGE), protection) == 0 }
    }

    /// Memory of bytes 0xff, NaN in every type, taken by `call`; `None` when there is no more.
    pub fn take(&mut self, bytes: usize, context: usize, call: u64, owned: bool) -> Option<u64> {
        let rounded = bytes.next_multiple_of(ALIGNMENT);
        if self.taken + self.unsettled + rounded > self.limit || !self.reserve() {
            return None;
        }
        // Ends at the end of a page where its size allows, and an untouchable page follows.
        let pages = rounded.next_multiple_of(PAGE);
        if self.next + pages + PAGE > SPACE {
            return None;
        }
        let at = (self.base + self.next) as u64;
        if !Self::protect(at, pages, libc::PROT_READ | libc::PROT_WRITE) {
            return None;
        }
        // SAFETY: just made accessible.
        unsafe { (at as *mut u8).write_bytes(0xff, bytes) };
        self.next += pages + PAGE;
        self.taken += rounded;
        self.most = self.most.max(self.taken + self.unsettled);
        let range = machine::Allocation::new(at, bytes as u64);
        self.live.insert(at, Allocation { bytes, context, call, freed: None, owned, range });
        Some(at)
    }

    /// Says that an allocation is freed in stream order, by `call`; later uses of it are wrong.
    pub fn mark_freed(&mut self, at: u64, call: u64) {
        if let Some(allocation) = self.live.get_mut(&at) {
            allocation.freed = Some(call);
        }
    }

    /// Gives back an allocation; with `settled`, for new ones at once.
    pub fn give(&mut self, at: u64, call: u64, settled: bool) {
        let Some(mut allocation) = self.live.remove(&at) else { return };
        let rounded = allocation.bytes.next_multiple_of(ALIGNMENT);
        self.taken -= rounded;
        self.unsettled += if settled { 0 } else { rounded };
        // SAFETY: whole pages of this allocation, which nobody uses any more; they read as zero if touched again.
        unsafe { libc::madvise(at as *mut _, allocation.bytes.next_multiple_of(PAGE), libc::MADV_DONTNEED) };
        Self::protect(at, allocation.bytes, libc::PROT_NONE);
        allocation.freed.get_or_insert(call);
        self.dead.insert(at, allocation);
    }

    /// Somebody waited: what was freed before may be given out again.
    pub fn settle(&mut self) {
        self.unsettled = 0;
    }

    pub fn find(&self, at: u64) -> Place {
        let before =
            |map: &BTreeMap<u64, Allocation>| map.range(..=at).next_back().map(|(a, x)| (*a, x.clone()));
        let holds = |found: &(u64, Allocation)| at < found.0 + found.1.bytes as u64;
        match (before(&self.live), before(&self.dead)) {
            (Some((start, a)), _) if holds(&(start, a.clone())) => match a.freed {
                None => Place::Inside(start, a),
                Some(_) => Place::Freed(start, a),
            },
            (_, Some((start, a))) if holds(&(start, a.clone())) => Place::Freed(start, a),
            (near, _) => {
                Place::Outside(near.filter(|(start, a)| at - start < 2 * a.bytes as u64 + PAGE as u64))
            }
        }
    }

    /// What launches may touch.
    pub fn memory(&self) -> machine::Memory {
        machine::Memory::new(self.live.values().map(|a| a.range.clone()).collect())
    }

    /// What is alive at an address, freed in stream order or not.
    pub fn range(&self, at: u64) -> Option<&machine::Allocation> {
        self.live.range(..=at).next_back().map(|(_, a)| &a.range)
    }

    /// What the program took in a context and did not free: address, bytes, call.
    pub fn left(&self, context: usize) -> Vec<(u64, usize, u64)> {
        let here = self.live.iter().filter(|(_, a)| a.context == context && a.owned && a.freed.is_none());
        here.map(|(at, a)| (*at, a.bytes, a.call)).collect()
    }

    /// Gives back everything of a context.
    pub fn close(&mut self, context: usize) {
        let here: Vec<u64> =
            self.live.iter().filter(|(_, a)| a.context == context).map(|(at, _)| *at).collect();
        here.into_iter().for_each(|at| self.give(at, 0, true));
        self.settle();
    }

    pub fn free_bytes(&self) -> usize {
        self.limit - self.taken - self.unsettled
    }

    /// The most that was taken at a time.
    pub fn most(&self) -> usize {
        self.most
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        if self.base != 0 {
            // SAFETY: the space that `reserve` set aside, once.
            unsafe { libc::munmap(self.base as *mut _, SPACE) };
        }
    }
}
