//! Matrices on a device: [`Tensor`] owns memory, [`Mat`] and [`MatMut`] are views of it.
//!
//! Everything is a row-major matrix. A vector of n values is `1 x n`. Views carry a leading
//! dimension, so a block of columns (one subspace of B, say) is a view too.

use super::pool::HostBuffer;
use std::ops::Range;
use std::sync::Arc;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// bfloat16.
    BF16,
}

impl DType {
    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::BF16 => 2,
        }
    }
}

/// Memory of a device that is not the host's; freed (given back to its pool) when dropped.
pub struct DeviceBuffer {
    /// Address on the device.
    pub address: u64,
    /// Size in bytes.
    pub bytes: usize,
    /// Gives the memory back.
    pub release: Arc<dyn Fn(u64, usize) + Send + Sync>,
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        (self.release)(self.address, self.bytes);
    }
}

/// Where a tensor's elements live.
pub enum Storage {
    /// Host memory of the CPU backend (f32).
    Host(HostBuffer),
    /// Memory of a kernel backend (a GPU, or the SIMT machine).
    Device(DeviceBuffer),
}

/// An owning, contiguous, row-major matrix. It cannot be cloned: memory is copied by
/// [`struct@super::Copy`] or not at all.
pub struct Tensor {
    storage: Storage,
    rows: usize,
    cols: usize,
    dtype: DType,
}

impl Tensor {
    /// A tensor over `storage`, which must hold at least `rows * cols` elements of `dtype`.
    pub fn new(storage: Storage, rows: usize, cols: usize, dtype: DType) -> Self {
        let bytes = match &storage {
            Storage::Host(buffer) => buffer.as_slice().len() * 4,
            Storage::Device(buffer) => buffer.bytes,
        };
        assert!(rows * cols * dtype.bytes() <= bytes, "{rows} x {cols} does not fit {bytes} bytes");
        Self { storage, rows, cols, dtype }
    }
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Its f32 elements, where they are in host memory.
    pub fn host(&self) -> Option<&[f32]> {
        match &self.storage {
            Storage::Host(buffer) if self.dtype == DType::F32 => Some(&buffer.as_slice()[..self.len()]),
            _ => None,
        }
    }
    /// The same, to write.
    pub fn host_mut(&mut self) -> Option<&mut [f32]> {
        let len = self.len();
        match &mut self.storage {
            Storage::Host(buffer) if self.dtype == DType::F32 => Some(&mut buffer.as_mut_slice()[..len]),
            _ => None,
        }
    }
    /// The address of its first element, where that is on a device.
    pub fn address(&self) -> Option<u64> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Device(buffer) => Some(buffer.address),
        }
    }
    /// The whole matrix, to read.
    pub fn mat(&self) -> Mat<'_> {
        Mat {
            storage: &self.storage,
            offset: 0,
            rows: self.rows,
            cols: self.cols,
            ld: self.cols,
            dtype: self.dtype,
        }
    }
    /// The whole matrix, to write.
    pub fn mat_mut(&mut self) -> MatMut<'_> {
        let (rows, cols, dtype) = (self.rows, self.cols, self.dtype);
        MatMut { storage: &mut self.storage, offset: 0, rows, cols, ld: cols, dtype }
    }
}

/// A read-only view: `rows x cols` elements, row i starting at `offset + i * ld`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// The memory viewed.
    pub storage: &'a Storage,
    /// First element.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub ld: usize,
    /// Element type.
    pub dtype: DType,
}

/// A writable view, like [`Mat`].
pub struct MatMut<'a> {
    /// The memory viewed.
    pub storage: &'a mut Storage,
    /// First element.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub ld: usize,
    /// Element type.
    pub dtype: DType,
}

fn check(range: &Range<usize>, limit: usize, what: &str) {
    assert!(range.start <= range.end && range.end <= limit, "{what} {range:?} of {limit}");
}

impl<'a> Mat<'a> {
    /// The rows in `range`.
    pub fn row_range(self, range: Range<usize>) -> Mat<'a> {
        check(&range, self.rows, "rows");
        Mat { offset: self.offset + range.start * self.ld, rows: range.len(), ..self }
    }
    /// The columns in `range`.
    pub fn col_range(self, range: Range<usize>) -> Mat<'a> {
        check(&range, self.cols, "columns");
        Mat { offset: self.offset + range.start, cols: range.len(), ..self }
    }
    /// The same elements as `rows x cols`; the view must be contiguous.
    pub fn reshape(self, rows: usize, cols: usize) -> Mat<'a> {
        assert!(
            self.is_contiguous() && rows * cols == self.rows * self.cols,
            "reshape of {}x{} to {rows}x{cols}",
            self.rows,
            self.cols
        );
        Mat { rows, cols, ld: cols, ..self }
    }
    /// Whether the rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.ld == self.cols || self.rows <= 1
    }
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
    /// Elements from the first to one past the last, gaps included.
    pub fn extent(&self) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.rows - 1) * self.ld + self.cols }
    }
}

impl<'a> MatMut<'a> {
    /// The rows in `range`.
    pub fn row_range(self, range: Range<usize>) -> MatMut<'a> {
        check(&range, self.rows, "rows");
        MatMut { offset: self.offset + range.start * self.ld, rows: range.len(), ..self }
    }
    /// The columns in `range`.
    pub fn col_range(self, range: Range<usize>) -> MatMut<'a> {
        check(&range, self.cols, "columns");
        MatMut { offset: self.offset + range.start, cols: range.len(), ..self }
    }
    /// The same elements as `rows x cols`; the view must be contiguous.
    pub fn reshape(self, rows: usize, cols: usize) -> MatMut<'a> {
        assert!(
            (self.ld == self.cols || self.rows <= 1) && rows * cols == self.rows * self.cols,
            "reshape of {}x{} to {rows}x{cols}",
            self.rows,
            self.cols
        );
        MatMut { rows, cols, ld: cols, ..self }
    }
    /// The same view, to read.
    pub fn as_mat(&self) -> Mat<'_> {
        Mat {
            storage: self.storage,
            offset: self.offset,
            rows: self.rows,
            cols: self.cols,
            ld: self.ld,
            dtype: self.dtype,
        }
    }
    /// A shorter-lived writable view of the same elements.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut {
            storage: self.storage,
            offset: self.offset,
            rows: self.rows,
            cols: self.cols,
            ld: self.ld,
            dtype: self.dtype,
        }
    }
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
    /// Elements from the first to one past the last, gaps included.
    pub fn extent(&self) -> usize {
        self.as_mat().extent()
    }
}

/// Bytes on a device that no type of element describes: the codes of a quantised weight.
pub struct Bytes {
    storage: Storage,
    len: usize,
}

impl Bytes {
    /// The first `len` bytes of `storage`.
    pub fn new(storage: Storage, len: usize) -> Self {
        let bytes = match &storage {
            Storage::Host(buffer) => buffer.as_slice().len() * 4,
            Storage::Device(buffer) => buffer.bytes,
        };
        assert!(len <= bytes, "{len} bytes do not fit {bytes}");
        Self { storage, len }
    }
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Where they are.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }
    /// The same, to write.
    pub fn storage_mut(&mut self) -> &mut Storage {
        &mut self.storage
    }
}

/// A list of row numbers, positions or token ids on a device, with its host copy.
pub struct Indices {
    /// The values, on the host.
    pub host: Vec<u32>,
    /// The values on a device that is not the host (`None` on the CPU backend).
    pub device: Option<DeviceBuffer>,
}

impl Indices {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.host.len()
    }
    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }
}
