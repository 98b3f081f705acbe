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
        let [high, low] = self.split(b)?;
        let second = Some((low.mat().col_range(0..b.cols), a));
        self.product(&w, Product { second, ..base(high.mat().col_range(0..b.cols).n()) })
    }
}
