//! From matrices to kernel arguments.

use super::Cuda;
use super::abi::{CHUNK, Launch, Matrix};
use super::kernels::Kernel;
use crate::backend::work::Work;
use crate::backend::{Indices, Mat, MatMut, Storage};
use crate::error::Result;
use bytemuck::Pod;

/// What a kernel sees of a matrix.
pub fn view(m: Mat) -> Matrix {
    let Storage::Device(buffer) = m.storage else { unreachable!("a host tensor reached the kernel backend") };
    Matrix {
        data: buffer.address + (m.offset * m.dtype.bytes()) as u64,
        rows: m.rows as i32,
        cols: m.cols as i32,
        ld: m.ld as i64,
    }
}

/// What a kernel sees of a matrix that it writes.
pub fn view_mut(m: &MatMut) -> Matrix {
    view(m.as_mat())
}

/// What a kernel sees of a matrix that may be missing.
pub fn view_or_none(m: Option<Mat>) -> Matrix {
    m.map_or(Matrix::NONE, view)
}

/// Address of a list's device copy (0 for an empty list, which no kernel reads).
pub fn address(list: &Indices) -> u64 {
    list.device.as_ref().map_or(0, |d| d.address)
}

/// Threads that go over all elements of a matrix, [`CHUNK`] each (`my_chunk` of `kernels/common.cuh`).
pub fn chunks(m: &Matrix) -> Launch {
    Launch::cover(m.rows as usize * (m.cols as usize).div_ceil(CHUNK))
}

impl Cuda {
    /// Starts a kernel with its one structure of arguments; `work` is its floor.
    pub(super) fn launch<A: Pod>(
        &self,
        kernel: Kernel<A>,
        launch: Launch,
        arguments: &A,
        work: Work,
    ) -> Result<()> {
        const { assert!(size_of::<A>() <= 4096, "a launch takes 4 KB of arguments") };
        let start =
            || self.driver.launch(kernel.name(), launch, bytemuck::bytes_of(arguments)).map(|()| true);
        self.recorder.run(self.driver.as_ref(), (kernel.name(), launch.blocks()), work, start).map(drop)
    }
}
