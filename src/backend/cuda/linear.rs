//! The adapted linear layer, as a product with a branch.

use super::Cuda;
use super::matmul::Product;
use crate::backend::{AdaptedLinear, Dequantize, Linear, LinearInputGrad, Mat, Rounding, Tensor, Weight};
use crate::error::Result;

impl Cuda {
    /// The values of a weight that is kept in less than compute type, for the time of one product. All layers share the
    /// memory. A plan for the CPU counts as much as is there at once, and computes nothing.
    fn values(&self, weight: &Weight) -> Result<Option<Tensor>> {
        let ((rows, cols), dtype) = (weight.shape(), self.info.compute_dtype);
        if matches!(weight, Weight::Whole(w) if w.dtype() == dtype) {
            return Ok(None);
        }
        if rows * cols > self.info.max_widened {
            assert!(!self.info.computes, "values of a weight in pieces");
            return self.new_tensor(1, self.info.max_widened, dtype).map(Some);
        }
        let mut values = self.new_tensor(rows, cols, dtype)?;
        match weight {
            Weight::Whole(w) => self.combine(1.0, w.mat(), 0.0, &values.mat_mut())?,
            Weight::Quantised(from) => {
                self.dequantize(Dequantize { from, first_row: 0, to: values.mat_mut() })?
            }
        }
        Ok(Some(values))
    }

    pub(super) fn linear(&self, op: Linear) -> Result<()> {
        let Linear { layer, x, h, y } = op;
        let bias = layer.bias.as_ref().map(|b| b.mat());
        let values = self.values(&layer.weight)?;
        let weight = whole(layer, values.as_ref());
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
        let weight = whole(layer, values.as_ref());
        let base = Product::new(beta, 1.0, dy.n(), weight.n(), Rounding::Nearest);
        match (&layer.branch, z) {
            (Some(branch), Some(z)) => {
                self.product_with_branch(&dx, base, (branch.b.mat(), z, branch.a.mat()))
            }
            _ => self.product(&dx, base),
        }
    }
}

/// The weight to multiply with.
fn whole<'a>(layer: &'a AdaptedLinear, values: Option<&'a Tensor>) -> Mat<'a> {
    let (rows, cols) = layer.weight.shape();
    values.map_or_else(|| layer.weight.mat(), |values| Mat { rows, cols, ld: cols, ..values.mat() })
}
