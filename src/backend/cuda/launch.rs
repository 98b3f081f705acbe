//! From matrices to kernel arguments.

use super::Cuda;
use super::driver::Shape;
use crate::backend::trace::Work;
use crate::backend::{DType, Indices, Mat, MatMut, Storage};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

/// `struct Matrix` of `kernels/common.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct View {
    /// Address of the first element; 0 for a matrix that an operation does without.
    pub data: u64,
    /// Number of rows.
    pub rows: i32,
    /// Number of columns.
    pub cols: i32,
    /// Elements from one row to the next.
    pub ld: i64,
}

impl View {
    /// No matrix.
    pub const NONE: View = View { data: 0, rows: 0, cols: 0, ld: 0 };

    /// Whether base and rows are aligned to 16 bytes, as the tensor-core kernels need it.
    pub fn aligned(&self, dtype: DType) -> bool {
        let row = self.ld as usize * dtype.bytes();
        self.data.is_multiple_of(16) && (row.is_multiple_of(16) || self.rows <= 1)
    }
}

/// `struct TensorMap` of `kernels/hopper.cuh`: opaque, made by the driver.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u64; 16]);

/// What a kernel sees of a matrix.
pub fn view(m: Mat) -> View {
    let Storage::Device(buffer) = m.storage else { unreachable!("a host tensor reached the kernel backend") };
    View {
        data: buffer.address + (m.offset * m.dtype.bytes()) as u64,
        rows: m.rows as i32,
        cols: m.cols as i32,
        ld: m.ld as i64,
    }
}

/// What a kernel sees of a matrix that it writes.
pub fn view_mut(m: &MatMut) -> View {
    view(m.as_mat())
}

/// What a kernel sees of a matrix that may be missing.
pub fn view_or_none(m: Option<Mat>) -> View {
    m.map_or(View::NONE, view)
}

/// Address of a list's device copy (0 for an empty list, which no kernel reads).
pub fn address(list: &Indices) -> u64 {
    list.device.as_ref().map_or(0, |d| d.address)
}

/// The part of a kernel's name that says a type.
pub fn tag(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
    }
}

/// Threads that go over all elements of a matrix, 8 each (`my_chunk` of `kernels/common.cuh`).
pub fn chunks(m: &View) -> Shape {
    Shape::cover(m.rows as usize * (m.cols as usize).div_ceil(8))
}

impl Cuda {
    /// Starts a kernel with its one structure of arguments; `work` is its floor.
    pub(super) fn launch<A: Pod>(&self, kernel: &str, shape: Shape, arguments: &A, work: Work) -> Result<()> {
        let start = || self.driver.launch(kernel, shape, bytemuck::bytes_of(arguments)).map(|()| true);
        self.recorder.run(self.driver.as_ref(), (kernel, shape.blocks()), work, start).map(drop)
    }
}
