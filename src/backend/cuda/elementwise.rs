//! Copies, fills, scales and sums, element by element: `kernels/elementwise.cu`.

use super::Cuda;
use super::abi::{CombineArguments, FillArguments, SoftcapArguments};
use super::kernels;
use super::launch::{chunks, view, view_mut};
use crate::backend::work::{Work, bytes, bytes_mut};
use crate::backend::{Mat, MatMut};
use crate::error::Result;

impl Cuda {
    /// `y = alpha x + beta y`, any types; y is not read when beta is 0.
    pub(super) fn combine(&self, alpha: f32, x: Mat, beta: f32, y: &MatMut) -> Result<()> {
        assert_eq!(x.shape(), y.shape(), "combine");
        let arguments = CombineArguments { x: view(x), y: view_mut(y), alpha, beta };
        if x.rows == 0 || x.cols == 0 {
            return Ok(());
        }
        let work = Work::new(bytes(x) + bytes_mut(y) * if beta == 0.0 { 1 } else { 2 }, 0);
        self.launch(kernels::combine(x.dtype, y.dtype), chunks(&arguments.y), &arguments, work)
    }

    /// `y = cap tanh(y / cap)`.
    pub(super) fn softcap(&self, cap: f32, y: &MatMut) -> Result<()> {
        if y.rows == 0 || y.cols == 0 {
            return Ok(());
        }
        let arguments = SoftcapArguments { y: view_mut(y), softcap: cap, inverse: cap.recip() };
        let work = Work::new(2 * bytes_mut(y), 4 * (y.rows * y.cols) as u64);
        self.launch(kernels::SOFTCAP, chunks(&arguments.y), &arguments, work)
    }

    /// `y = value`.
    pub(super) fn fill(&self, y: &MatMut, value: f32) -> Result<()> {
        if y.rows == 0 || y.cols == 0 {
            return Ok(());
        }
        let arguments = FillArguments { y: view_mut(y), value, unused: 0.0 };
        let work = Work::new(bytes_mut(y), 0);
        self.launch(kernels::fill(y.dtype), chunks(&arguments.y), &arguments, work)
    }
}
