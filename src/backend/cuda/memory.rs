//! Device memory that is used again: a steady step allocates nothing, and the peak is known.
//!
//! Work is done in the order it is given, so memory that a dropped tensor gives back may go to the next
//! tensor at once, although kernels that use it are still under way.

use super::driver::Driver;
use crate::backend::{DeviceBuffer, MemoryUse};
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Default)]
struct State {
    /// Idle memory by size, the lowest address first: a step like the last one gets the addresses of the last one.
    free: BTreeMap<usize, BTreeSet<u64>>,
    usage: MemoryUse,
    /// Bytes taken from the device now.
    taken: usize,
}

impl State {
    /// Idle memory of `bytes` bytes, or of at most twice as many where half as much again as was ever in use would be
    /// taken otherwise (by batches of many lengths): its address and size. Equal steps get equal addresses by the first rule.
    fn recycle(&mut self, bytes: usize) -> Option<(u64, usize)> {
        let scattered = self.taken + bytes > self.usage.peak + self.usage.peak / 2;
        let most = if scattered { 2 * bytes } else { bytes };
        let (&size, addresses) = self.free.range_mut(bytes..=most).next()?;
        let address = addresses.pop_first()?;
        if addresses.is_empty() {
            self.free.remove(&size);
        }
        Some((address, size))
    }

    fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        self.usage.taken = self.usage.taken.max(self.taken);
    }
}

struct Owner {
    driver: Arc<dyn Driver>,
    state: Mutex<State>,
}

/// The memory of one device. Live tensors keep it; its last user gives everything back to the device.
#[derive(Clone)]
pub struct Arena(Arc<Owner>);

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
        Self(Arc::new(Owner { driver, state: Mutex::default() }))
    }

    /// `bytes` bytes of unspecified content.
    ///
    /// # Errors
    /// When the device is full even after everything idle was given back to it.
    pub fn take(&self, bytes: usize) -> Result<DeviceBuffer> {
        let owner = &self.0;
        let class = if owner.driver.info().caches { size_class(bytes) } else { bytes };
        let recycled = owner.state().recycle(class);
        let (address, bytes) = match recycled {
            Some(found) => found,
            None => (owner.fresh(class)?, class),
        };
        let mut state = owner.state();
        state.usage.live += bytes;
        state.usage.peak = state.usage.peak.max(state.usage.live);
        let keeper = self.0.clone();
        Ok(DeviceBuffer {
            address,
            bytes,
            release: Arc::new(move |address, bytes| keeper.give(address, bytes)),
        })
    }

    /// Gives everything idle back to the device.
    pub fn trim(&self) {
        self.0.trim();
    }

    /// Bytes of live tensors now and at most, and bytes taken from the device.
    pub fn usage(&self) -> MemoryUse {
        self.0.state().usage
    }

    /// Forgets the peaks so far.
    pub fn reset_peak(&self) {
        let mut state = self.0.state();
        (state.usage.peak, state.usage.taken) = (state.usage.live, state.taken);
    }
}

impl Owner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Memory that is new; when there is none, idle memory is given back first.
    fn fresh(&self, bytes: usize) -> Result<u64> {
        let mut address = self.driver.alloc(bytes)?;
        if address.is_none() {
            self.trim();
            // What is given back is free when the work before it is done, not sooner.
            self.driver.synchronize()?;
            address = self.driver.alloc(bytes)?;
        }
        if address.is_some() {
            self.state().took(bytes);
        }
        address.ok_or_else(|| {
            let live = self.state().usage.live;
            let report = self.driver.memory_report().map_or(String::new(), |report| format!("; {report}"));
            Error::new(
                Kind::Memory,
                format!(
                    "out of memory: {:.1} MiB more are needed, {:.1} MiB in use{report}",
                    mib(bytes),
                    mib(live)
                ),
            )
            .at(&self.driver.info().name)
            .remedy("make the batch smaller (fewer tokens a step), lower gems.rank, or use another device")
        })
    }

    fn give(&self, address: u64, bytes: usize) {
        let mut state = self.state();
        state.usage.live -= bytes;
        if self.driver.info().caches {
            state.free.entry(bytes).or_default().insert(address);
            return;
        }
        state.taken -= bytes;
        drop(state);
        self.driver.free(address, bytes);
    }

    fn trim(&self) {
        let mut state = self.state();
        let free = std::mem::take(&mut state.free);
        state.taken -= free.iter().map(|(bytes, addresses)| bytes * addresses.len()).sum::<usize>();
        drop(state);
        for (bytes, addresses) in free {
            addresses.into_iter().for_each(|address| self.driver.free(address, bytes));
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.trim();
    }
}
