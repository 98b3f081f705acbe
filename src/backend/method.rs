//! What the method's operations are given: segmented products, Adam's constants, a step's decisions.

use super::{Indices, Mat, MatMut};
use std::ops::Range;

/// One block of a segmented product in [`super::Backend::outer`]:
/// `out[:, to .. to + columns.len()] += scale * Y[rows]ᵀ X[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct OuterPart {
    /// Rows (tokens) of Y and X.
    pub rows: Range<usize>,
    /// Columns of X.
    pub columns: Range<usize>,
    /// First column of the output block.
    pub to: usize,
    /// Factor.
    pub scale: f32,
}

/// A pair of equally wide blocks of columns of one matrix, whose inner product is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnPair {
    /// First column of the one.
    pub a: usize,
    /// First column of the other.
    pub b: usize,
    /// Columns of each.
    pub width: usize,
}

/// Where in a step's factors ([`super::Backend::decide`]) something lies: the clipping factor first, then every task's weight,
/// then every task's gate. A clipping factor that is not a number says that the step is to be skipped.
pub mod factors {
    /// How many there are.
    pub fn count(tasks: usize) -> usize {
        1 + 2 * tasks
    }
    /// Place of a task's weight in the combined gradient.
    pub fn weight(task: usize) -> usize {
        1 + task
    }
    /// Place of the gate of a task's own subspace.
    pub fn gate(tasks: usize, task: usize) -> usize {
        1 + tasks + task
    }
}

/// Adam's constants for one block of columns of one matrix, bias corrections already worked out.
/// The update is `x <- (x - step * m / (sqrt(v) / sqrt_correction2 + eps)) * keep`, after
/// `m <- beta1 m + (1 - beta1) g`, `v <- beta2 v + (1 - beta2) g²`.
/// (`torch.optim.AdamW` applies its decay before the step: the caller passes `keep_before`.)
#[derive(Debug, Clone, PartialEq)]
pub struct AdamBlock {
    /// The columns this holds for.
    pub columns: Range<usize>,
    /// The gradient of the block's column c is the sum over k < `terms` of column `from + k * stride + c` of g; with
    /// several terms each is weighted by its task's factor ([`factors::weight`]).
    pub from: usize,
    /// How many columns of g are summed.
    pub terms: usize,
    /// From one of them to the next.
    pub stride: usize,
    /// The factor on the step, if any ([`factors::gate`]).
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
    /// Factor on the gradient first (clipping).
    pub grad_scale: f32,
}

/// One matrix of [`super::Backend::adam`]; all but g are *f32* of one shape.
pub struct AdamUpdate<'a> {
    /// Parameters, `[M x R]`.
    pub x: MatMut<'a>,
    /// Gradients, *f32* `[M x any]`: which columns, every block says.
    pub g: Mat<'a>,
    /// First moments.
    pub m: MatMut<'a>,
    /// Second moments.
    pub v: MatMut<'a>,
    /// Columns in no block are left alone.
    pub blocks: Vec<AdamBlock>,
    /// Receives this factor times x in compute dtype (or f32).
    pub copy: Option<(MatMut<'a>, f32)>,
    /// Receives the change of x.
    pub change: Option<MatMut<'a>>,
}

/// The rule of the gates of the tasks' own subspaces ([`super::Backend::decide`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GateRule {
    /// All gates are this.
    Fixed(f32),
    /// A weighted sum of the tasks' shares of loss, gradient norm and samples, normalised (published).
    Shares([f32; 3]),
    /// In inverse proportion to the gradients' norms.
    InverseNorm,
}

/// What an inner product of a step is of; `i <= j` are tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Two tasks' gradients of an adapted layer.
    Layer(usize, usize),
    /// The same where the whole gradient is not their sum.
    LayerApart(usize, usize),
    /// Two tasks' gradients of a dense parameter.
    Dense(usize, usize),
    /// A task's gradient as the gates see it, with itself.
    Own(usize),
    /// A whole gradient with itself.
    Whole,
    /// The whole gradient along a task's last update.
    Effect(usize),
}

impl Quantity {
    /// Its number among those of `tasks` tasks.
    pub fn number(self, tasks: usize) -> usize {
        let square = tasks * tasks;
        match self {
            Quantity::Layer(i, j) => i * tasks + j,
            Quantity::LayerApart(i, j) => square + i * tasks + j,
            Quantity::Dense(i, j) => 2 * square + i * tasks + j,
            Quantity::Own(t) => 3 * square + t,
            Quantity::Whole => 3 * square + tasks,
            Quantity::Effect(t) => 3 * square + tasks + 1 + t,
        }
    }
}

/// How a step's factors follow from its losses and the inner products of its gradients ([`super::Backend::decide`]).
pub struct Decision<'a> {
    /// [`Quantity::number`] of every product.
    pub quantities: &'a Indices,
    /// Gates.
    pub gates: GateRule,
    /// Whether weights are PCGrad's (Yu et al. 2020); else all are 1.
    pub pcgrad: bool,
    /// Most that the combined gradient's norm may be (0: anything).
    pub clip_norm: f32,
    /// Labels of every task.
    pub labels: &'a [f32],
    /// Samples of every task.
    pub counts: &'a [f32],
}

/// The segment of a row: shorthand used by callers that build [`OuterPart`]s for whole matrices.
impl OuterPart {
    /// All of `rows` of an X with `columns` columns, into column 0, unscaled.
    pub fn whole(rows: usize, columns: usize) -> Self {
        Self { rows: 0..rows, columns: 0..columns, to: 0, scale: 1.0 }
    }
}
