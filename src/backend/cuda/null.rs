//! A driver that computes nothing: what a step costs the host, and how many launches it is, without a device.
//!
//! Memory is addresses only, uploads go nowhere and downloads are zeros; so it shows the launches of an
//! ordinary step, and nothing about numbers.

use super::driver::{Driver, Shape};
use super::launch::{TensorMap, View};
use crate::error::Result;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
pub struct Null {
    next: AtomicU64,
}

impl Null {
    /// A device of any size.
    pub fn open() -> Self {
        Self { next: AtomicU64::new(1 << 20) }
    }
}

impl Driver for Null {
    fn name(&self) -> String {
        "null (launches are counted, nothing is computed)".into()
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        Ok(Some(self.next.fetch_add(bytes.next_multiple_of(512) as u64, Ordering::Relaxed)))
    }
    fn free(&self, _address: u64, _bytes: usize) {}
    fn upload(&self, _to: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn download(&self, _from: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }
    fn launch(&self, _kernel: &str, _shape: Shape, _arguments: &[u8]) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    // As a GPU of 132 multiprocessors, so that launch geometry is that of one.
    fn wide(&self) -> usize {
        264
    }
    fn max_shared(&self) -> usize {
        227 * 1024
    }
    fn recycles(&self) -> bool {
        true
    }
    fn hopper(&self) -> bool {
        true
    }
    fn tensor_map(&self, _matrix: &View) -> Result<TensorMap> {
        Ok(TensorMap([0; 16]))
    }
    fn computes(&self) -> bool {
        false
    }
}
