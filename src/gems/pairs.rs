//! The inner products of one layer's gradients: what they are of.

use crate::backend::{GramEntry, Mat, Tensor};

/// The inner products of one layer's gradients.
pub(super) struct LayerGram<'a> {
    /// What they are of, in order.
    pub entries: Vec<GramEntry>,
    /// The matrices they are of.
    pub pairs: Vec<(Mat<'a>, Mat<'a>)>,
    /// The first so many were fused into the gradient kernels: they are there already, unless the gradients changed since.
    pub fused: usize,
}

/// Pairs of tasks i <= j, in the order in which their products stand.
pub(super) fn task_pairs(tasks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tasks).flat_map(move |i| (i..tasks).map(move |j| (i, j)))
}

/// A matrix's blocks of columns, one a task, multiplied with each other.
pub(super) fn pairs_of_columns(m: &Tensor, tasks: usize, width: usize) -> Vec<(Mat<'_>, Mat<'_>)> {
    let block = |t: usize| m.mat().col_range(t * width..(t + 1) * width);
    task_pairs(tasks).map(|(i, j)| (block(i), block(j))).collect()
}
