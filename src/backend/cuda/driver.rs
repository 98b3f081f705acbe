//! What a device must offer to run the kernels; [`super::drivers`] has those who do.

use super::abi::{Launch, Matrix, TensorMap};
use crate::backend::{DType, DeviceInfo};
use crate::error::{Error, Result};
use cudarc::driver::CudaEvent;
use std::time::Instant;

/// A device that holds memory and launches kernels by name. Work is done in the order it is given.
///
/// What only some devices offer is asked of the driver underneath where there is one, so a driver that stands over
/// another overrides only what it changes.
pub trait Driver: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// The driver that this one stands over, if any.
    fn inner(&self) -> Option<&dyn Driver>;
    /// `bytes` bytes, aligned to at least 16; `None` when the device has no more.
    fn alloc(&self, bytes: usize) -> Result<Option<u64>>;
    /// Gives back what `alloc` gave.
    fn free(&self, address: u64, bytes: usize);
    /// Copies to the device; `bytes` may be changed afterwards.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Waits for all work, then copies from the device.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;
    /// Starts a kernel. `arguments` is the one structure that it takes.
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[u8]) -> Result<()>;
    /// Waits for all work.
    fn synchronize(&self) -> Result<()>;

    /// Launches, one after the other, that can be started as one; `None` where there is no such thing.
    fn graph(&self, nodes: &[Node]) -> Result<Option<Box<dyn Graph>>> {
        self.inner().map_or(Ok(None), |inner| inner.graph(nodes))
    }
    /// Starts a plain product by a library; false when there is none, or none that does it.
    ///
    /// # Errors
    /// The library fails.
    fn plain_product(&self, p: &PlainProduct, factors: (f32, f32), matrices: [u64; 3]) -> Result<bool> {
        self.inner().map_or(Ok(false), |inner| inner.plain_product(p, factors, matrices))
    }
    /// What a bulk tensor copy needs to know of a matrix of bf16: boxes of `rows` x 64, 128-byte swizzle, zeros
    /// outside. Base and rows are aligned to 16 bytes; a box has at most 256 rows.
    fn tensor_map(&self, matrix: &Matrix, rows: usize) -> Result<TensorMap> {
        let refused =
            || Error::device("bulk tensor copies need compute capability 9.0").at(&self.info().name);
        self.inner().map_or_else(|| Err(refused()), |inner| inner.tensor_map(matrix, rows))
    }
    /// When all work given so far will be done.
    fn event(&self) -> Result<Event> {
        self.inner().map_or_else(|| Ok(Event::Host(Instant::now())), |inner| inner.event())
    }
    /// Work that is given from now on comes after `event`. The host does not wait.
    fn come_after(&self, event: &Event) -> Result<()> {
        self.inner().map_or(Ok(()), |inner| inner.come_after(event))
    }
    /// How much of the device's memory is left, and who else uses it, in words.
    fn memory_report(&self) -> Option<String> {
        self.inner()?.memory_report()
    }
    /// Tells an external profiler that what it should look at begins or ends.
    fn profiler(&self, on: bool) -> Result<()> {
        self.inner().map_or(Ok(()), |inner| inner.profiler(on))
    }
}

/// One launch of a [`Graph`].
#[derive(Clone, Copy)]
pub struct Node<'a> {
    /// The kernel.
    pub kernel: &'a str,
    /// How it is spread out.
    pub launch: Launch,
    /// The one structure that it takes.
    pub arguments: &'a [u8],
}

/// Launches that are started as one.
pub trait Graph: Send {
    /// From its next start on, launch `index` is this one, of the same kernel.
    fn replace(&mut self, index: usize, node: &Node) -> Result<()>;
    /// Starts all of it.
    fn start(&self) -> Result<()>;
}

/// A point in a device's work.
pub enum Event {
    /// On the host's clock, for drivers that are done when they return.
    Host(Instant),
    /// On the device's.
    Device(CudaEvent),
}

impl Event {
    /// Seconds from `earlier` to this event; waits for it.
    pub fn since(&self, earlier: &Event) -> Option<f64> {
        match (earlier, self) {
            (Event::Host(a), Event::Host(b)) => Some(b.duration_since(*a).as_secs_f64()),
            (Event::Device(a), Event::Device(b)) => a.elapsed_ms(b).ok().map(|ms| ms as f64 / 1e3),
            _ => None,
        }
    }
}

/// `C [m x n] = alpha op(A) op(B) + beta C` on row-major bf16 operands, as a kind of call: what a library plans for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlainProduct {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The inner size.
    pub k: usize,
    /// Whether A is stored `[k x m]`.
    pub transpose_a: bool,
    /// Whether B is stored `[n x k]`.
    pub transpose_b: bool,
    /// Elements from one row of A, B and C to the next.
    pub ld: [usize; 3],
    /// The type of C.
    pub c: DType,
}
