//! [`crate::backend::Linear`] and its gradient, as products.

use super::matmul::{layer_matmul, matmul_with_codes};
use super::rows::each_row;
use super::{Products, host, simd};
use crate::backend::{HostPool, Linear, LinearInputGrad, Matmul, Weight};

pub fn linear(threads: usize, products: Products, pool: &HostPool, op: Linear) {
    let Linear { layer, x, h, mut y } = op;
    match &layer.weight {
        Weight::Quantised(w) => matmul_with_codes(threads, pool, (y.reborrow(), 0.0), x, (w, true)),
        Weight::Whole(w) => {
            layer_matmul(
                threads,
                products,
                pool,
                Matmul { c: y.reborrow(), beta: 0.0, alpha: 1.0, a: x.n(), b: w.mat().t() },
            );
        }
    }
    if let Some(bias) = &layer.bias {
        let values = host(bias.mat());
        each_row!(&mut y, |_, out| simd::axpy(1.0, values, out));
    }
    if let (Some(branch), Some(mut h)) = (&layer.branch, h) {
        let (a, b) = (branch.a.mat().t(), branch.b.mat().t());
        let product = |op: Matmul| layer_matmul(threads, products, pool, op);
        product(Matmul { c: h.reborrow(), beta: 0.0, alpha: 1.0, a: x.n(), b: a });
        product(Matmul { c: y, beta: 1.0, alpha: 1.0, a: h.as_mat().n(), b });
    }
}

pub fn linear_input_grad(threads: usize, products: Products, pool: &HostPool, op: LinearInputGrad) {
    let LinearInputGrad { layer, dy, z, mut dx, accumulate } = op;
    let beta = if accumulate { 1.0 } else { 0.0 };
    match &layer.weight {
        Weight::Quantised(w) => matmul_with_codes(threads, pool, (dx.reborrow(), beta), dy, (w, false)),
        Weight::Whole(w) => {
            layer_matmul(
                threads,
                products,
                pool,
                Matmul { c: dx.reborrow(), beta, alpha: 1.0, a: dy.n(), b: w.mat().n() },
            );
        }
    }
    if let (Some(branch), Some(mut z)) = (&layer.branch, z) {
        let (a, b) = (branch.a.mat().n(), branch.b.mat().n());
        let product = |op: Matmul| layer_matmul(threads, products, pool, op);
        product(Matmul { c: z.reborrow(), beta: 0.0, alpha: 1.0, a: dy.n(), b });
        product(Matmul { c: dx, beta: 1.0, alpha: 1.0, a: z.as_mat().n(), b: a });
    }
}
