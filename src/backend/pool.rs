//! Host memory that is used again: steady steps allocate nothing, and the peak is known.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much memory a backend holds and has held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of live tensors now.
    pub live: usize,
    /// Most bytes of live tensors at any one time.
    pub peak: usize,
    /// Most bytes that were taken from the device at any one time: those of live tensors and of memory kept for the next.
    pub taken: usize,
}

#[derive(Default)]
struct State {
    /// Idle buffers by size.
    free: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Bytes of live and idle buffers together.
    held: usize,
    usage: MemoryUse,
}

/// A pool of host buffers by size class.
#[derive(Clone, Default)]
pub struct HostPool(Arc<Mutex<State>>);

/// Sizes are rounded up to an eighth of their power of two: at most 12.5 % is wasted, and batches
/// of similar token counts share buffers.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(64);
    len.div_ceil(step) * step
}

impl State {
    /// An idle buffer of at least `class` elements that is not much larger.
    fn recycle(&mut self, class: usize) -> Option<Vec<f32>> {
        let (&size, _) = self.free.range(class..=class + class / 4).next()?;
        let list = self.free.get_mut(&size)?;
        let buffer = list.pop();
        if list.is_empty() {
            self.free.remove(&size);
        }
        buffer
    }
    /// Gives idle buffers back to the system, the largest first, until there is room for `bytes` more without
    /// holding more than was ever live at once.
    fn shrink(&mut self, bytes: usize) -> Vec<Vec<f32>> {
        let mut dropped = Vec::new();
        while self.held + bytes > self.usage.peak
            && let Some(mut largest) = self.free.last_entry()
        {
            if let Some(buffer) = largest.get_mut().pop() {
                self.held -= buffer.len() * 4;
                dropped.push(buffer);
            }
            if largest.get().is_empty() {
                largest.remove();
            }
        }
        dropped
    }
}

impl HostPool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A buffer of `len` elements whose contents are whatever was there.
    pub fn take(&self, len: usize) -> HostBuffer {
        let class = size_class(len);
        let mut state = self.state();
        state.usage.live += class * 4;
        state.usage.peak = state.usage.peak.max(state.usage.live);
        let data = match state.recycle(class) {
            Some(data) => data,
            None => {
                let dropped = state.shrink(class * 4);
                state.held += class * 4;
                drop(state);
                drop(dropped);
                vec![0.0; class]
            }
        };
        HostBuffer { data, len, class, pool: self.clone() }
    }
    /// Whether the system would give `len` elements at all.
    pub fn has_room(&self, len: usize) -> bool {
        Vec::<f32>::new().try_reserve_exact(len).is_ok()
    }
    /// Bytes of live buffers, now and at most.
    pub fn usage(&self) -> MemoryUse {
        let usage = self.state().usage;
        // No more than was live at once is ever held.
        MemoryUse { taken: usage.peak, ..usage }
    }
    /// Forgets the peak so far.
    pub fn reset_peak(&self) {
        let mut state = self.state();
        state.usage.peak = state.usage.live;
    }
}

/// Host memory of a tensor; goes back to its pool when dropped.
pub struct HostBuffer {
    data: Vec<f32>,
    len: usize,
    /// What it counts for: the size asked for, in its class.
    class: usize,
    pool: HostPool,
}

impl HostBuffer {
    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        &self.data[..self.len]
    }
    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut state = self.pool.state();
        state.usage.live -= self.class * 4;
        state.free.entry(data.len()).or_default().push(data);
    }
}
