//! A driver that fails on purpose, over one that works: the ways a GPU fails, for tests anywhere.
//!
//! It counts launches one by one, so it stands above graphs, never below. Memory given back can be taken again when
//! somebody has waited, not sooner: the least that a stream-ordered pool promises.

use crate::backend::DeviceInfo;
use crate::backend::cuda::abi::Launch;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::errors::lost;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The device has this many bytes.
    pub memory: Option<usize>,
    /// The device is lost at this launch.
    pub lost_at: Option<usize>,
}

/// See the module.
pub struct Faulty {
    inner: Arc<dyn Driver>,
    faults: Faults,
    used: AtomicUsize,
    /// What of it was given back since somebody waited.
    settling: AtomicUsize,
    launches: AtomicUsize,
}

impl Faulty {
    /// `inner`, with `faults`.
    pub fn over(inner: Arc<dyn Driver>, faults: Faults) -> Self {
        let zero = || AtomicUsize::new(0);
        Self { inner, faults, used: zero(), settling: zero(), launches: zero() }
    }

    fn settle(&self) {
        self.used.fetch_sub(self.settling.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// A lost device refuses everything, as the CUDA driver does after a sticky error.
    fn alive(&self) -> Result<()> {
        match self.faults.lost_at {
            Some(at) if self.launches.load(Ordering::Relaxed) >= at => Err(lost("it was taken away")),
            _ => Ok(()),
        }
    }
}

impl Driver for Faulty {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn inner(&self) -> Option<&dyn Driver> {
        Some(self.inner.as_ref())
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.alive()?;
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.faults.memory.is_some_and(|most| used > most) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Ok(None);
        }
        self.inner.alloc(bytes)
    }
    fn free(&self, address: u64, bytes: usize) {
        self.settling.fetch_add(bytes, Ordering::Relaxed);
        self.inner.free(address, bytes);
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.alive()?;
        self.inner.upload(to, bytes)
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.alive()?;
        self.settle();
        self.inner.download(from, bytes)
    }
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[u8]) -> Result<()> {
        self.alive().map_err(|e| e.at(format!("launch of {kernel}")))?;
        self.launches.fetch_add(1, Ordering::Relaxed);
        self.inner.launch(kernel, launch, arguments)
    }
    fn synchronize(&self) -> Result<()> {
        self.alive()?;
        self.settle();
        self.inner.synchronize()
    }
}
