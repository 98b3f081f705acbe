//! [`crate::backend::Fold`], as a product.

use super::elementwise::scale;
use super::matmul::matmul;
use crate::backend::{Fold, Matmul, Scale};

pub fn fold(threads: usize, op: Fold) {
    let Fold { mut w, keep, scale: alpha, b, a, .. } = op;
    if keep != 1.0 {
        scale(Scale { x: w.reborrow(), alpha: keep });
    }
    matmul(threads, Matmul { c: w, beta: 1.0, alpha, a: b.n(), b: a.n() });
}
