//! A driver that fails on purpose, over one that works: the ways a GPU fails, for tests anywhere.

use super::driver::{Driver, Shape};
use super::launch::{TensorMap, View};
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default)]
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
    launches: AtomicUsize,
}

impl Faulty {
    /// `inner`, with `faults`.
    pub fn over(inner: Arc<dyn Driver>, faults: Faults) -> Self {
        Self { inner, faults, used: AtomicUsize::new(0), launches: AtomicUsize::new(0) }
    }

    /// A lost device refuses everything, as the CUDA driver does after a sticky error.
    fn alive(&self) -> Result<()> {
        match self.faults.lost_at {
            Some(at) if self.launches.load(Ordering::Relaxed) >= at => Err(lost("it was taken away")),
            _ => Ok(()),
        }
    }
}

/// The error of a device that is gone.
pub fn lost(why: &str) -> Error {
    Error::device(format!("the GPU is lost: {why}")).remedy(
        "see the system log (dmesg: Xid) and nvidia-smi; then go on with --resume: the last checkpoint is good",
    )
}

impl Driver for Faulty {
    fn name(&self) -> String {
        self.inner.name()
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
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.inner.free(address, bytes);
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.alive()?;
        self.inner.upload(to, bytes)
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.alive()?;
        self.inner.download(from, bytes)
    }
    fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<()> {
        self.alive().map_err(|e| e.at(format!("launch of {kernel}")))?;
        self.launches.fetch_add(1, Ordering::Relaxed);
        self.inner.launch(kernel, shape, arguments)
    }
    fn synchronize(&self) -> Result<()> {
        self.alive()?;
        self.inner.synchronize()
    }
    fn wide(&self) -> usize {
        self.inner.wide()
    }
    fn max_shared(&self) -> usize {
        self.inner.max_shared()
    }
    fn recycles(&self) -> bool {
        self.inner.recycles()
    }
    fn hopper(&self) -> bool {
        self.inner.hopper()
    }
    fn tensor_map(&self, matrix: &View) -> Result<TensorMap> {
        self.inner.tensor_map(matrix)
    }
}
