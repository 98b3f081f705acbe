//! Global memory: live allocations, and which of their bytes were ever written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A range of global memory that kernels may touch, at its own address in this process. A clone is the same range.
#[derive(Clone, Debug)]
pub struct Allocation {
    start: u64,
    bytes: u64,
    written: Arc<Written>,
}

#[derive(Debug)]
struct Written {
    /// A bit a byte.
    bits: Box<[AtomicU64]>,
    /// Bytes that nobody has written yet.
    left: AtomicU64,
}

/// Word and bits of a range within it, for each word that a range of bits touches.
fn words(from: u64, bits: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = from + bits;
    (from / 64..end.div_ceil(64)).map(move |word| {
        let low = from.max(word * 64) - word * 64;
        let high = end.min(word * 64 + 64) - word * 64;
        (word as usize, (u64::MAX >> (64 - (high - low))) << low)
    })
}

impl Allocation {
    /// Memory as the driver gives it: what it holds is not to be read.
    pub fn new(start: u64, bytes: u64) -> Self {
        let bits = (0..bytes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { start, bytes, written: Arc::new(Written { bits, left: AtomicU64::new(bytes) }) }
    }

    /// Its first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The byte after its last.
    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Notes that bytes were written; those outside of the allocation are left out.
    pub fn mark_written(&self, at: u64, bytes: u64) {
        if self.written.left.load(Relaxed) == 0 {
            return;
        }
        let from = at.clamp(self.start, self.end());
        let end = at.saturating_add(bytes).clamp(from, self.end());
        for (word, bits) in words(from - self.start, end - from) {
            let before = self.written.bits[word].fetch_or(bits, Relaxed);
            self.written.left.fetch_sub(u64::from((bits & !before).count_ones()), Relaxed);
        }
    }

    /// Notes a copy of `bytes` bytes from another allocation: what was not written there is not written here.
    pub fn copy_written(&self, from: &Self, from_at: u64, to_at: u64, bytes: u64) {
        let mut at = 0;
        while at < bytes {
            let next = from.first_unwritten(from_at + at, bytes - at).map_or(bytes, |hole| hole - from_at);
            self.mark_written(to_at + at, next - at);
            at = next;
            while at < bytes && from.first_unwritten(from_at + at, 1).is_some() {
                at += 1;
            }
        }
    }

    /// The first of some bytes of the allocation that nobody has written.
    pub fn first_unwritten(&self, at: u64, bytes: u64) -> Option<u64> {
        if self.written.left.load(Relaxed) == 0 {
            return None;
        }
        let missing = |(word, bits): (usize, u64)| {
            let hole = bits & !self.written.bits.get(word)?.load(Relaxed);
            (hole != 0).then(|| self.start + word as u64 * 64 + u64::from(hole.trailing_zeros()))
        };
        words(at.checked_sub(self.start)?, bytes).find_map(missing)
    }
}

/// The allocations that are alive when a launch begins.
#[derive(Clone, Default, Debug)]
pub struct Memory {
    allocations: Vec<Allocation>,
}

impl Memory {
    /// In any order.
    pub fn new(mut allocations: Vec<Allocation>) -> Self {
        allocations.sort_unstable_by_key(Allocation::start);
        Self { allocations }
    }

    /// The allocation that an address lies in.
    pub fn find(&self, at: u64) -> Option<&Allocation> {
        let i = self.allocations.partition_point(|a| a.start <= at);
        self.allocations.get(i.checked_sub(1)?).filter(|a| at < a.end())
    }

    /// The allocation before an address, to name where a stray one lies.
    pub(super) fn before(&self, at: u64) -> Option<&Allocation> {
        self.allocations.get(self.allocations.partition_point(|a| a.start <= at).checked_sub(1)?)
    }
}

/// The bits of a block's own memory: shared or local.
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub fn new(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(64)])
    }

    pub fn mark(&mut self, at: usize, bytes: usize) {
        words(at as u64, bytes as u64).for_each(|(word, bits)| self.0[word] |= bits);
    }

    /// The first of some bytes that nobody has written.
    pub fn missing(&self, at: usize, bytes: usize) -> Option<usize> {
        words(at as u64, bytes as u64).find_map(|(word, bits)| {
            let hole = bits & !self.0[word];
            (hole != 0).then(|| word * 64 + hole.trailing_zeros() as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bytes_are_known_one_by_one() {
        let a = Allocation::new(1 << 20, 200);
        assert_eq!(a.first_unwritten((1 << 20) + 5, 3), Some((1 << 20) + 5));
        a.mark_written(1 << 20, 130);
        assert_eq!(a.first_unwritten(1 << 20, 130), None);
        assert_eq!(a.first_unwritten((1 << 20) + 100, 64), Some((1 << 20) + 130));
        a.mark_written((1 << 20) + 131, 1000);
        assert_eq!(a.first_unwritten(1 << 20, 200), Some((1 << 20) + 130));
        let b = Allocation::new(1 << 30, 200);
        b.copy_written(&a, 1 << 20, 1 << 30, 200);
        assert_eq!(b.first_unwritten(1 << 30, 200), Some((1 << 30) + 130));
        assert_eq!(b.first_unwritten((1 << 30) + 131, 69), None);
        a.mark_written((1 << 20) + 130, 1);
        assert_eq!(a.first_unwritten(1 << 20, 200), None);
    }
}
