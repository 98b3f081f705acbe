//! The adapted linear layer, as a product with a branch.

use super::Cuda;
use super::matmul::Product;
use crate::backend::{Linear, LinearInputGrad, Rounding};
use crate::error::Result;

impl Cuda {
    pub(super) fn linear(&self, op: Linear) -> Result<()> {
        let Linear { layer, x, h, y } = op;
        let bias = layer.bias.as_ref().map(|b| b.mat());
        let weight = layer.weight.mat().t();
        let base = Product { bias, ..Product::new(0.0, 1.0, x.n(), weight, Rounding::Nearest) };
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
        let base = Product::new(beta, 1.0, dy.n(), layer.weight.mat().n(), Rounding::Nearest);
        match (&layer.branch, z) {
            (Some(branch), Some(z)) => {
                self.product_with_branch(&dx, base, (branch.b.mat(), z, branch.a.mat()))
            }
            _ => self.product(&dx, base),
        }
    }
}
