//! What kernels and launches share: limits, structures as C lays them out, and how a launch is spread out.

use crate::backend::DType;
use bytemuck::Zeroable;
use std::ops::Range;

// As build.rs reads them in `kernels/`: the constants of limits.h, and the structures of arguments, where their fields
// are explained. A structure has no padding (or it would not be `Pod`) and the host machine compares its size at every
// launch, so that fields lie where the kernel's do.
#[allow(missing_docs, reason = "the kernels say what the fields are")]
mod generated {
    use bytemuck::{Pod, Zeroable};
    include!(concat!(env!("OUT_DIR"), "/abi.rs"));
}
pub use generated::*;

impl Matrix {
    /// No matrix.
    pub const NONE: Matrix = Matrix { data: 0, rows: 0, cols: 0, ld: 0 };

    /// Whether base and rows are aligned to 16 bytes, as the tensor-core kernels need it.
    pub fn aligned(&self, dtype: DType) -> bool {
        let row = self.ld as usize * dtype.bytes();
        self.data.is_multiple_of(16) && (row.is_multiple_of(16) || self.rows <= 1)
    }

    /// Bytes from one row to the next as a tensor map is told, which wants a multiple of 16: a single row, which has no
    /// next, gets one.
    pub fn row_bytes(&self, dtype: DType) -> u64 {
        let bytes = self.ld as u64 * dtype.bytes() as u64;
        if self.rows <= 1 { bytes.next_multiple_of(16) } else { bytes }
    }
}

/// Segments as kernels take them, at most [`SEGMENTS`]; the others are (0, 0).
pub fn segments(ranges: &[Range<usize>]) -> [Segment; SEGMENTS] {
    let mut list = [Segment::zeroed(); SEGMENTS];
    for (to, range) in list.iter_mut().zip(ranges) {
        *to = Segment { first: range.start as i32, end: range.end as i32 };
    }
    list
}

/// How a kernel is spread out: blocks, threads of a block, bytes of shared memory of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of shared memory of a block.
    pub shared: u32,
}

impl Launch {
    /// `blocks` blocks of `threads` threads in x.
    pub fn line(blocks: usize, threads: usize) -> Self {
        Self { grid: [blocks as u32, 1, 1], block: [threads as u32, 1, 1], shared: 0 }
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
