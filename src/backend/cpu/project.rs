//! [`crate::backend::ProjectRows`] and [`crate::backend::ProjectColumns`], as products.

use super::matmul::matmul;
use crate::backend::{HostPool, Matmul, ProjectColumns, ProjectRows, Storage, Tensor};

pub fn project_rows(threads: usize, pool: &HostPool, op: ProjectRows) {
    let ProjectRows { mut x, k } = op;
    let mut inner = Tensor::new(Storage::Host(pool.take(x.rows * k.cols)), x.rows, k.cols, x.dtype);
    let along = Matmul { c: inner.mat_mut(), beta: 0.0, alpha: 1.0, a: x.as_mat().n(), b: k.n() };
    matmul(threads, pool, along);
    matmul(threads, pool, Matmul { c: x.reborrow(), beta: 1.0, alpha: -1.0, a: inner.mat().n(), b: k.t() });
}

pub fn project_columns(threads: usize, pool: &HostPool, op: ProjectColumns) {
    let ProjectColumns { mut x, k } = op;
    let mut inner = Tensor::new(Storage::Host(pool.take(x.cols * k.cols)), k.cols, x.cols, x.dtype);
    let along = Matmul { c: inner.mat_mut(), beta: 0.0, alpha: 1.0, a: k.t(), b: x.as_mat().n() };
    matmul(threads, pool, along);
    matmul(threads, pool, Matmul { c: x.reborrow(), beta: 1.0, alpha: -1.0, a: k.n(), b: inner.mat().n() });
}
