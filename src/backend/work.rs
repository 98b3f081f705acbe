//! The least that an operation must do.

use super::{DType, Mat, MatMut};

/// The floor of an operation on any device: what it must move and compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes: every input read once, every output written once.
    pub bytes: u64,
    /// Floating-point operations (a multiply-add is two).
    pub flops: u64,
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, flops: self.flops + other.flops }
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| a + b)
    }
}

/// What a device can do at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Bytes a second to and from its memory.
    pub bytes_per_second: f64,
    /// Multiplications and additions a second, in the type that layers compute in.
    pub flops_per_second: f64,
}

impl Work {
    /// Moves `bytes` and computes `flops`.
    pub fn new(bytes: u64, flops: u64) -> Self {
        Self { bytes, flops }
    }
    /// Moves `bytes` and computes `flops_each` for every element of a matrix of this shape.
    pub fn each(bytes: u64, flops_each: usize, (rows, cols): (usize, usize)) -> Self {
        Self::new(bytes, (flops_each * rows * cols) as u64)
    }
    /// `C [m x n] (+)= A B` over an inner size `k`.
    pub fn product((m, n, k): (usize, usize, usize), a: DType, b: DType, c: DType, adds: bool) -> Self {
        let reads = m * k * a.bytes() + k * n * b.bytes();
        let writes = m * n * c.bytes() * if adds { 2 } else { 1 };
        Self::new((reads + writes) as u64, 2 * (m * n * k) as u64)
    }
    /// The least time on a device with these peaks, in seconds.
    pub fn floor(&self, peaks: &Peaks) -> f64 {
        (self.bytes as f64 / peaks.bytes_per_second).max(self.flops as f64 / peaks.flops_per_second)
    }
}

/// Bytes of a matrix.
pub fn bytes(m: Mat) -> u64 {
    (m.rows * m.cols * m.dtype.bytes()) as u64
}

/// Bytes of a matrix that is written.
pub fn bytes_mut(m: &MatMut) -> u64 {
    bytes(m.as_mat())
}

/// Bytes of a matrix that may be missing.
pub fn bytes_or_none(m: Option<Mat>) -> u64 {
    m.map_or(0, bytes)
}
