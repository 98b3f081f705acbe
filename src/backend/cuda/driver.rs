//! What a device must offer to run the kernels. Two drivers compute, a GPU and the host SIMT machine; two
//! are for tests and measurements: one that computes nothing, and one that fails on purpose.

use super::launch::{TensorMap, View};
use super::library::PlainProduct;
use crate::backend::trace::Peaks;
use crate::error::{Error, Result};
use cudarc::driver::CudaEvent;
use std::time::Instant;

/// A device that holds memory and launches kernels by name. Work is done in the order it is given.
pub trait Driver: Send + Sync {
    /// A name to print.
    fn name(&self) -> String;
    /// `bytes` bytes, aligned to at least 16; `None` when the device has no more.
    fn alloc(&self, bytes: usize) -> Result<Option<u64>>;
    /// Gives back what `alloc` gave.
    fn free(&self, address: u64, bytes: usize);
    /// Copies to the device; `bytes` may be changed afterwards.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Waits for all work, then copies from the device.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;
    /// Starts a kernel. `arguments` is the one structure that it takes.
    fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<()>;
    /// Waits for all work.
    fn synchronize(&self) -> Result<()>;
    /// How many blocks keep the whole device busy, roughly.
    fn wide(&self) -> usize;
    /// Most shared memory of a block, in bytes.
    fn max_shared(&self) -> usize;
    /// Whether memory is worth keeping for the next tensor (false where each allocation is watched).
    fn recycles(&self) -> bool;

    /// A chain of launches, one after the other, that can be started as one; `None` (the default) where there is no such
    /// thing.
    fn chain(&self, _nodes: &[Node]) -> Result<Option<Box<dyn Chain>>> {
        Ok(None)
    }
    /// Starts a plain product by a library; false (the default) when there is none, or none that does it.
    ///
    /// # Errors
    /// The library fails.
    fn plain_product(&self, _p: &PlainProduct, _factors: (f32, f32), _matrices: [u64; 3]) -> Result<bool> {
        Ok(false)
    }
    /// Whether [`Driver::plain_product`] is worth asking.
    fn has_library(&self) -> bool {
        false
    }
    /// Whether the kernels for sm_90a run here: bulk tensor copies, wgmma.
    fn hopper(&self) -> bool {
        false
    }
    /// What a bulk tensor copy needs to know of a matrix of bf16: boxes of 64 x 64, 128-byte swizzle, zeros
    /// outside. Base and rows are aligned to 16 bytes.
    fn tensor_map(&self, _matrix: &View) -> Result<TensorMap> {
        Err(Error::device("bulk tensor copies need compute capability 9.0").at(self.name()))
    }

    /// Whether kernels compute something, so that their times mean something.
    fn computes(&self) -> bool {
        true
    }
    /// The moment at which all work given so far will be done.
    fn mark(&self) -> Result<Moment> {
        Ok(Moment::Host(Instant::now()))
    }
    /// What the device can do at most, where it says so.
    fn peaks(&self) -> Option<Peaks> {
        None
    }
    /// How much of the device's memory is left, and who else uses it, in words.
    fn room(&self) -> Option<String> {
        None
    }
    /// Tells an external profiler that what it should look at begins or ends.
    fn profiler(&self, _on: bool) -> Result<()> {
        Ok(())
    }
}

/// One launch of a [`Chain`].
#[derive(Clone, Copy)]
pub struct Node<'a> {
    /// The kernel.
    pub kernel: &'a str,
    /// How it is spread out.
    pub shape: Shape,
    /// The one structure that it takes.
    pub arguments: &'a [u8],
}

/// Launches that are started as one.
pub trait Chain: Send {
    /// From its next start on, launch `index` is this one, of the same kernel.
    fn replace(&mut self, index: usize, node: &Node) -> Result<()>;
    /// Starts all of it.
    fn start(&self) -> Result<()>;
}

/// A moment in a device's work.
pub enum Moment {
    /// On the host's clock, for drivers that are done when they return.
    Host(Instant),
    /// On the device's.
    Device(CudaEvent),
}

impl Moment {
    /// Seconds from `earlier` to this moment; waits for it.
    pub fn since(&self, earlier: &Moment) -> Option<f64> {
        match (earlier, self) {
            (Moment::Host(a), Moment::Host(b)) => Some(b.duration_since(*a).as_secs_f64()),
            (Moment::Device(a), Moment::Device(b)) => a.elapsed_ms(b).ok().map(|ms| ms as f64 / 1e3),
            _ => None,
        }
    }
}

/// How a kernel is spread out: blocks, threads of a block, bytes of shared memory of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of shared memory of a block.
    pub shared: u32,
}

impl Shape {
    /// `blocks` blocks of `threads` threads in x.
    pub fn line(blocks: usize, threads: u32) -> Self {
        Self { grid: [blocks as u32, 1, 1], block: [threads, 1, 1], shared: 0 }
    }
    /// Enough blocks of 256 threads for `threads` threads.
    pub fn cover(threads: usize) -> Self {
        Self::line(threads.div_ceil(256), 256)
    }
    /// The same with `bytes` of shared memory.
    pub fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }
    /// The same with `y` and `z` blocks in the other directions.
    pub fn grid_yz(self, y: usize, z: usize) -> Self {
        Self { grid: [self.grid[0], y as u32, z as u32], ..self }
    }
    /// Blocks in all directions.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|n| u64::from(*n)).product()
    }
}
