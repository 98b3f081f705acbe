//! A low-rank branch folded into its weight: a product of `kernels/matmul.cu`.

use super::Cuda;
use super::launch::view;
use super::matmul::Product;
use crate::backend::{DType, Fold};
use crate::error::Result;

impl Cuda {
    pub(super) fn fold(&self, op: Fold) -> Result<()> {
        let Fold { w, keep, scale, b, a, rounding } = op;
        let base = |b| Product { second: None, ..Product::new(keep, scale, b, a.n(), rounding) };
        if b.dtype != DType::F32 || a.dtype != DType::BF16 || !view(a).aligned(DType::BF16) || b.cols == 0 {
            return self.product(&w, base(b.n()));
        }
        // f32 coordinates on the tensor cores: as the sum of two bf16 matrices they keep 16 bits.
        let columns = b.cols.next_multiple_of(8);
        let half = || self.new_tensor(b.rows, columns, DType::BF16);
        let (mut high, mut low) = (half()?, half()?);
        let high_to = high.mat_mut().col_range(0..b.cols);
        self.combine(1.0, b, 0.0, &high_to)?;
        let low_to = low.mat_mut().col_range(0..b.cols);
        self.combine(1.0, high.mat().col_range(0..b.cols), 0.0, &low_to)?;
        self.combine(1.0, b, -1.0, &low_to)?;
        let second = Some((low.mat().col_range(0..b.cols), a));
        self.product(&w, Product { second, ..base(high.mat().col_range(0..b.cols).n()) })
    }
}
