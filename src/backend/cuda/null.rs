//! A driver that computes nothing: what a step costs the host, and how many launches it is, without a device.
//!
//! Memory is addresses only, uploads go nowhere and downloads are zeros; so it shows the launches of an
//! ordinary step, and nothing about numbers.

use super::driver::{Chain, Driver, Node, Shape};
use super::launch::{TensorMap, View};
use super::library::PlainProduct;
use crate::error::Result;
use std::sync::atomic::{AtomicU64, Ordering};

/// What of a device decides which kernels run on it, and how they are spread out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceKind {
    /// Whether the kernels for sm_90a run there.
    pub hopper: bool,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Most shared memory of a block, in bytes.
    pub shared: usize,
    /// Whether plain products go to a library.
    pub cublaslt: bool,
}

impl DeviceKind {
    /// A GPU that runs the image `architecture` (such as `sm_90a`) on so many multiprocessors.
    pub fn of_image(architecture: &str, multiprocessors: usize) -> Self {
        let kib = match architecture {
            "sm_80" => 163,
            "sm_86" | "sm_89" | "sm_120" => 99,
            _ => 227,
        };
        let hopper = architecture == "sm_90a";
        Self { hopper, multiprocessors, shared: kib * 1024, cublaslt: false }
    }

    /// That of a driver.
    pub fn of(driver: &dyn Driver) -> Self {
        Self {
            hopper: driver.hopper(),
            multiprocessors: driver.wide().div_ceil(2),
            shared: driver.max_shared(),
            cublaslt: driver.has_library(),
        }
    }
}

/// See the module.
pub struct Null {
    kind: DeviceKind,
    next: AtomicU64,
}

impl Null {
    /// A device of this kind with memory of any size.
    pub fn open(kind: DeviceKind) -> Self {
        Self { kind, next: AtomicU64::new(1 << 20) }
    }
}

/// A chain that does nothing.
struct Nothing;

impl Chain for Nothing {
    fn replace(&mut self, _index: usize, _node: &Node) -> Result<()> {
        Ok(())
    }
    fn start(&self) -> Result<()> {
        Ok(())
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
    fn chain(&self, _nodes: &[Node]) -> Result<Option<Box<dyn Chain>>> {
        Ok(Some(Box::new(Nothing)))
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn wide(&self) -> usize {
        2 * self.kind.multiprocessors
    }
    fn max_shared(&self) -> usize {
        self.kind.shared
    }
    fn recycles(&self) -> bool {
        true
    }
    fn hopper(&self) -> bool {
        self.kind.hopper
    }
    fn has_library(&self) -> bool {
        self.kind.cublaslt
    }
    fn plain_product(&self, _p: &PlainProduct, _factors: (f32, f32), _matrices: [u64; 3]) -> Result<bool> {
        Ok(self.kind.cublaslt)
    }
    fn tensor_map(&self, _matrix: &View) -> Result<TensorMap> {
        Ok(TensorMap([0; 16]))
    }
    fn computes(&self) -> bool {
        false
    }
}
