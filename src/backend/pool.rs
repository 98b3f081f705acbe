//! Host memory that is used again: steady steps allocate nothing, and the peak is known.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How much memory a backend holds and has held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of live tensors now.
    pub live: usize,
    /// Most bytes of live tensors at any one time.
    pub peak: usize,
}

#[derive(Default)]
struct State {
    free: HashMap<usize, Vec<Vec<f32>>>,
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

impl HostPool {
    /// A buffer of `len` elements whose contents are whatever was there.
    pub fn take(&self, len: usize) -> HostBuffer {
        let class = size_class(len);
        let mut state = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.usage.live += class * 4;
        state.usage.peak = state.usage.peak.max(state.usage.live);
        let recycled = state.free.get_mut(&class).and_then(Vec::pop);
        drop(state);
        let data = recycled.unwrap_or_else(|| vec![0.0; class]);
        HostBuffer { data, len, pool: self.clone() }
    }
    /// Bytes of live buffers, now and at most.
    pub fn usage(&self) -> MemoryUse {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).usage
    }
    /// Forgets the peak so far.
    pub fn reset_peak(&self) {
        let mut state = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.usage.peak = state.usage.live;
    }
}

/// Host memory of a tensor; goes back to its pool when dropped.
pub struct HostBuffer {
    data: Vec<f32>,
    len: usize,
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
        let mut state = self.pool.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.usage.live -= data.len() * 4;
        state.free.entry(data.len()).or_default().push(data);
    }
}
