//! Adam on many matrices at once.

use super::is_f32;
use crate::backend::work::{Work, bytes_mut};
use crate::backend::{Mat, MatMut};
use std::ops::Range;

/// Adam (Kingma and Ba 2015; decay as in Loshchilov and Hutter 2019), for every matrix block of columns by block of columns.
pub struct Adam<'a> {
    /// The matrices.
    pub updates: Vec<AdamUpdate<'a>>,
    /// *f32* `[1 x n]`: what is known of the step by then ([`super::factors`]). A clipping factor of NaN leaves
    /// everything as it is.
    pub factors: Option<Mat<'a>>,
    /// *f32* `[1 x updates]`, written: squared norms of the changes.
    pub squares: Option<MatMut<'a>>,
}

/// One matrix of [`Adam`]; all but g are *f32* of one shape.
pub struct AdamUpdate<'a> {
    /// Parameters, `[M x R]`.
    pub x: MatMut<'a>,
    /// Gradients, *f32* `[M x any]`: which columns, every block says.
    pub g: Mat<'a>,
    /// A gradient beside g, *f32* of the shape of x ([`AdamBlock::held`]).
    pub held: Option<Mat<'a>>,
    /// First moments.
    pub m: MatMut<'a>,
    /// Second moments.
    pub v: MatMut<'a>,
    /// In order; columns in no block are left alone.
    pub blocks: Vec<AdamBlock>,
    /// Receives this factor times x in compute type (or f32).
    pub copy: Option<(MatMut<'a>, f32)>,
    /// Receives the change of x.
    pub change: Option<MatMut<'a>>,
}

/// Adam's constants for one block of columns of one matrix, bias corrections already worked out.
/// The update is `x <- (keep_before x - step * m / (sqrt(v) / sqrt_correction2 + eps)) * keep_after`, after
/// `m <- beta1 m + (1 - beta1) g`, `v <- beta2 v + (1 - beta2) g²`.
/// (`torch.optim.AdamW` applies its decay before the step: the caller passes `keep_before`.)
#[derive(Debug, Clone, PartialEq)]
pub struct AdamBlock {
    /// The columns this holds for.
    pub columns: Range<usize>,
    /// The gradient of the block's column c is the sum over k < `terms` of column `from + k * stride + c` of g; with
    /// several terms each is weighted by its task's factor ([`super::factors::weight`]).
    pub from: usize,
    /// How many columns of g are summed.
    pub terms: usize,
    /// From one of them to the next.
    pub stride: usize,
    /// Factor on the held gradient, which is added to that sum.
    pub held: f32,
    /// The factor on the step, if any ([`super::factors::gate`]).
    pub gate: Option<usize>,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Learning rate over `1 - beta1^t`, times gate and scale.
    pub step: f32,
    /// `sqrt(1 - beta2^t)`; 1 puts eps before the correction, as the published optimizer does
    /// (whose correction is then part of `step`).
    pub sqrt_correction2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Factor on the parameter before the update (AdamW: `1 - lr * decay`).
    pub keep_before: f32,
    /// Factor on the parameter after the update (published: `1 - lr * decay`).
    pub keep_after: f32,
    /// Factor on the gradient, the held one included, first (clipping).
    pub grad_scale: f32,
}

impl Adam<'_> {
    pub(in crate::backend) fn check(&self) {
        for u in &self.updates {
            let shape = u.x.shape();
            assert!(shape == u.m.shape() && shape == u.v.shape() && u.g.rows == u.x.rows, "adam");
            assert!(is_f32(u.x.as_mat()) && is_f32(u.g), "adam");
            assert!(u.held.is_none_or(|h| is_f32(h) && h.shape() == shape), "adam: held");
            let sorted = u.blocks.windows(2).all(|w| w[0].columns.end <= w[1].columns.start);
            assert!(
                sorted && u.blocks.last().is_none_or(|b| b.columns.end <= u.x.cols),
                "adam: blocks in order"
            );
        }
        if let Some(squares) = &self.squares {
            assert!(squares.rows == 1 && squares.cols == self.updates.len(), "adam: squares");
        }
    }
    pub(in crate::backend) fn work(&self) -> Work {
        self.updates.iter().map(|u| u.work(&u.blocks, true)).sum()
    }
}

impl AdamUpdate<'_> {
    /// The floor of some of its blocks; `others`: of the other columns' copies too.
    pub(in crate::backend) fn work(&self, blocks: &[AdamBlock], others: bool) -> Work {
        // x, m, v read and written, g (and what is held) read.
        let others_read = 6 + usize::from(self.held.is_some());
        let moved: usize = blocks.iter().map(|b| b.columns.len() * (others_read + b.terms)).sum();
        let changed: usize = blocks.iter().map(|b| b.columns.len()).sum();
        let copies =
            self.copy.as_ref().map_or(0, |c| bytes_mut(&c.0)) + self.change.as_ref().map_or(0, bytes_mut);
        let bytes = (4 * self.x.rows * moved) as u64 + if others { copies } else { 0 };
        Work::each(bytes, 12, (self.x.rows, changed))
    }
}
