//! Device memory that is used again: a steady step allocates nothing, and the peak is known.
//!
//! Work is done in the order it is given, so memory that a dropped tensor gives back may go to the next
//! tensor at once, although kernels that use it are still under way.

use super::driver::Driver;
use crate::backend::{DeviceBuffer, MemoryUse};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Default)]
struct State {
    free: HashMap<usize, Vec<u64>>,
    idle: usize,
    usage: MemoryUse,
}

/// The memory of one device.
#[derive(Clone)]
pub struct Arena {
    driver: Arc<dyn Driver>,
    state: Arc<Mutex<State>>,
}

/// Sizes are rounded up to an eighth of their power of two: at most 12.5 % is wasted, and batches of similar
/// token counts share memory.
fn size_class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).max(512);
    bytes.max(1).div_ceil(step) * step
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

impl Arena {
    /// An empty arena of `driver`'s device.
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self { driver, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `bytes` bytes of unspecified content.
    ///
    /// # Errors
    /// When the device is full even after everything idle was given back to it.
    pub fn take(&self, bytes: usize) -> Result<DeviceBuffer> {
        let recycles = self.driver.recycles();
        let class = if recycles { size_class(bytes) } else { bytes };
        let recycled = {
            let mut state = self.state();
            let found = state.free.get_mut(&class).and_then(Vec::pop);
            if found.is_some() {
                state.idle -= class;
            }
            found
        };
        let address = match recycled {
            Some(address) => address,
            None => match self.driver.alloc(class)? {
                Some(address) => address,
                None => {
                    self.trim();
                    self.driver.alloc(class)?.ok_or_else(|| self.full(class))?
                }
            },
        };
        let mut state = self.state();
        state.usage.live += class;
        state.usage.peak = state.usage.peak.max(state.usage.live);
        drop(state);
        let arena = self.clone();
        let release = Arc::new(move |address: u64, _: usize| arena.give(address, class));
        Ok(DeviceBuffer { address, bytes: class, release })
    }

    fn give(&self, address: u64, class: usize) {
        let mut state = self.state();
        state.usage.live -= class;
        if self.driver.recycles() {
            state.idle += class;
            state.free.entry(class).or_default().push(address);
            return;
        }
        drop(state);
        self.driver.free(address, class);
    }

    /// Gives everything idle back to the device.
    fn trim(&self) {
        let mut state = self.state();
        state.idle = 0;
        let free = std::mem::take(&mut state.free);
        drop(state);
        for (class, addresses) in free {
            addresses.into_iter().for_each(|a| self.driver.free(a, class));
        }
    }

    fn full(&self, bytes: usize) -> Error {
        let live = self.state().usage.live;
        Error::device(format!(
            "out of device memory: {:.0} MiB more are needed, {:.0} MiB are in use",
            mib(bytes),
            mib(live)
        ))
        .at(self.driver.name())
        .remedy("make the batch smaller (fewer tokens a step), lower gems.rank, or free the GPU of other processes")
    }

    /// Bytes of live tensors, now and at most.
    pub fn usage(&self) -> MemoryUse {
        self.state().usage
    }

    /// Forgets the peak so far.
    pub fn reset_peak(&self) {
        let mut state = self.state();
        state.usage.peak = state.usage.live;
    }
}
