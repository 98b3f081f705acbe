//! A driver that computes nothing: what a step costs the host, and how many launches it is, without a device.
//!
//! Memory is addresses only, uploads go nowhere and downloads are zeros; so it shows the launches of an
//! ordinary step, and nothing about numbers.

use crate::backend::DeviceInfo;
use crate::backend::cuda::abi::{Launch, Matrix, TensorMap};
use crate::backend::cuda::driver::{Driver, Graph, Node, PlainProduct};
use crate::error::Result;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
pub struct DryRun {
    info: DeviceInfo,
    next: AtomicU64,
}

impl DryRun {
    /// A device that launches what `like` would, with memory of any size.
    pub fn open(like: DeviceInfo) -> Self {
        let name = "null (launches are counted, nothing is computed)".into();
        let info = DeviceInfo { name, peaks: None, computes: false, caches: true, ..like };
        Self { info, next: AtomicU64::new(1 << 20) }
    }
}

/// A graph that does nothing.
struct Nothing;

impl Graph for Nothing {
    fn replace(&mut self, _index: usize, _node: &Node) -> Result<()> {
        Ok(())
    }
    fn start(&self) -> Result<()> {
        Ok(())
    }
}

impl Driver for DryRun {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn inner(&self) -> Option<&dyn Driver> {
        None
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
    fn launch(&self, _kernel: &str, _launch: Launch, _arguments: &[u8]) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn graph(&self, _nodes: &[Node]) -> Result<Option<Box<dyn Graph>>> {
        Ok(Some(Box::new(Nothing)))
    }
    fn plain_product(&self, _p: &PlainProduct, _factors: (f32, f32), _matrices: [u64; 3]) -> Result<bool> {
        Ok(self.info.blas)
    }
    fn tensor_map(&self, _matrix: &Matrix, _rows: usize) -> Result<TensorMap> {
        Ok(TensorMap { opaque: [0; 16] })
    }
}
