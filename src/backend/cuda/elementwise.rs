//! Copies, fills, scales and sums, element by element: `kernels/elementwise.cu`.

use super::Cuda;
use super::abi::{AddRoundedArguments, CombineArguments, FillArguments, SoftcapArguments, SplitArguments};
use super::kernels;
use super::launch::{chunks, view, view_mut};
use crate::backend::work::{Work, bytes, bytes_mut};
use crate::backend::{AddRounded, DType, Mat, MatMut, Tensor};
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
    pub(super) fn add_rounded(&self, op: AddRounded) -> Result<()> {
        let arguments = AddRoundedArguments { x: view(op.x), y: view_mut(&op.y), seed: op.seed };
        if op.x.rows == 0 || op.x.cols == 0 {
            return Ok(());
        }
        self.launch(kernels::ADD_ROUNDED, chunks(&arguments.y), &arguments, op.work())
    }

    /// An f32 matrix as the sum of two bf16 matrices, which keep 16 bits of it; their rows are aligned to 16 bytes, with as
    /// many columns more as that takes.
    pub(super) fn split(&self, x: Mat) -> Result<[Tensor; 2]> {
        let half = || self.new_tensor(x.rows, x.cols.next_multiple_of(8), DType::BF16);
        let (mut high, mut low) = (half()?, half()?);
        if x.rows > 0 && x.cols > 0 {
            let [to_high, to_low] =
                [&mut high, &mut low].map(|half| view_mut(&half.mat_mut().col_range(0..x.cols)));
            let arguments = SplitArguments { x: view(x), high: to_high, low: to_low };
            let work = Work::new(2 * bytes(x), 2 * (x.rows * x.cols) as u64);
            self.launch(kernels::SPLIT, chunks(&arguments.x), &arguments, work)?;
        }
        Ok([high, low])
    }
}
