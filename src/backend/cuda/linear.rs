//! The adapted linear layer, as a product with a branch.

use super::Cuda;
use super::matmul::Product;
use crate::backend::{AdaptedLinear, Mat, MatMut, Op, Rounding};
use crate::error::Result;

impl Cuda {
    /// See [`crate::backend::Backend::linear`].
    pub(super) fn linear(&self, layer: &AdaptedLinear, x: Mat, h: Option<MatMut>, y: MatMut) -> Result<()> {
        let bias = layer.bias.as_ref().map(|b| b.mat());
        let (a, b, rounding) = ((x, Op::N), (layer.weight.mat(), Op::T), Rounding::Nearest);
        let base = Product { alpha: 1.0, beta: 0.0, a, b, second: None, bias, rounding };
        match (&layer.branch, h) {
            (Some(branch), Some(h)) => {
                self.product_with_branch(&y, base, (branch.a.mat(), h, branch.b.mat()))
            }
            (None, None) => self.product(&y, base),
            _ => panic!("linear: h goes with a branch"),
        }
    }

    /// See [`crate::backend::Backend::linear_input_gradient`].
    pub(super) fn linear_input_gradient(
        &self,
        layer: &AdaptedLinear,
        dy: Mat,
        z: Option<MatMut>,
        dx: MatMut,
        accumulate: bool,
    ) -> Result<()> {
        let beta = if accumulate { 1.0 } else { 0.0 };
        let (a, b, rounding) = ((dy, Op::N), (layer.weight.mat(), Op::N), Rounding::Nearest);
        let base = Product { alpha: 1.0, beta, a, b, second: None, bias: None, rounding };
        match (&layer.branch, z) {
            (Some(branch), Some(z)) => {
                self.product_with_branch(&dx, base, (branch.b.mat(), z, branch.a.mat()))
            }
            (None, None) => self.product(&dx, base),
            _ => panic!("linear_input_gradient: z goes with a branch"),
        }
    }
}
