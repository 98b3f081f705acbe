//! The adapted linear layer, as a product with a branch.

use super::Cuda;
use super::matmul::Product;
use crate::backend::{Dequantize, Linear, LinearInputGrad, Rounding, Tensor, Weight};
use crate::error::Result;

impl Cuda {
    /// The values of a weight in codes, for the time of one product. All layers share the memory.
    fn values(&self, weight: &Weight) -> Result<Option<Tensor>> {
        let Weight::Quantised(from) = weight else { return Ok(None) };
        let mut values = self.new_tensor(weight.rows(), weight.cols(), self.info.compute_dtype)?;
        self.dequantize(Dequantize { from, first_row: 0, to: values.mat_mut() })?;
        Ok(Some(values))
    }

    pub(super) fn linear(&self, op: Linear) -> Result<()> {
        let Linear { layer, x, h, y } = op;
        let bias = layer.bias.as_ref().map(|b| b.mat());
        let values = self.values(&layer.weight)?;
        let weight = values.as_ref().map_or_else(|| layer.weight.mat(), Tensor::mat);
        let base = Product { bias, ..Product::new(0.0, 1.0, x.n(), weight.t(), Rounding::Nearest) };
        match (&layer.branch, h) {
            (Some(branch), Some(h)) => {
                self.product_with_branch(&y, base, (branch.a.mat(), h, branch.b.mat()))
            }
            _ => self.product(&y, base),
        }
    }

    pub(super) fn linear_input_grad(&self, op: LinearInputGrad) -> Result<()> {
        let LinearInputGrad { layer, dy, z, dx, accumulate } = op;
        let beta = if accumulate { 1.0 } else { 0.0 };
        let values = self.values(&layer.weight)?;
        let weight = values.as_ref().map_or_else(|| layer.weight.mat(), Tensor::mat);
        let base = Product::new(beta, 1.0, dy.n(), weight.n(), Rounding::Nearest);
        match (&layer.branch, z) {
            (Some(branch), Some(z)) => {
                self.product_with_branch(&dx, base, (branch.b.mat(), z, branch.a.mat()))
            }
            _ => self.product(&dx, base),
        }
    }
}
