//! The gradient of weights, task by task.

use super::is_f32;
use crate::backend::work::Work;
use crate::backend::{DType, Mat, MatMut};
use std::ops::Range;

/// For every block `out[:, to..] (+)= scale * dY[rows]ᵀ X[rows, columns]`, and, in the same launch, inner products of
/// blocks of out's columns as they are afterwards. The gradient of B in a branch (X is then `h = x Aᵀ`), of a weight, or
/// a sketch of one.
pub struct WeightGrad<'a> {
    /// Output gradients, `[T x M]`.
    pub dy: Mat<'a>,
    /// `[T x any]`.
    pub x: Mat<'a>,
    /// They write disjoint columns or follow each other in order.
    pub blocks: &'a [GradBlock],
    /// *f32* `[M x any]`.
    pub out: MatMut<'a>,
    /// What becomes of out's old values.
    pub write: Write,
    /// Inner products that are wanted.
    pub gram: Option<Gram<'a>>,
}

/// One block of a [`WeightGrad`].
#[derive(Debug, Clone, PartialEq)]
pub struct GradBlock {
    /// Rows (tokens) of dY and X.
    pub rows: Range<usize>,
    /// Columns of X.
    pub columns: Range<usize>,
    /// First column of the output block.
    pub to: usize,
    /// Factor.
    pub scale: f32,
}

impl GradBlock {
    /// `rows` of an X with `columns` columns, into column 0, unscaled.
    pub fn whole(rows: Range<usize>, columns: usize) -> Self {
        Self { rows, columns: 0..columns, to: 0, scale: 1.0 }
    }
}

/// What becomes of the old values of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are added to.
    Add,
    /// They do not matter: the output is zero where nothing is written.
    Replace,
}

/// Inner products of pairs of blocks of columns of one matrix.
pub struct Gram<'a> {
    /// The pairs.
    pub pairs: &'a [ColumnPair],
    /// *f32* `[1 x pairs]`, written (f64 accumulation).
    pub products: MatMut<'a>,
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

impl WeightGrad<'_> {
    pub(in crate::backend) fn check(&self) {
        assert!(is_f32(self.out.as_mat()) && self.out.rows == self.dy.cols, "weight_grad: out");
        for b in self.blocks {
            assert!(
                b.rows.end <= self.dy.rows.min(self.x.rows) && b.columns.end <= self.x.cols,
                "weight_grad: {b:?}"
            );
            assert!(b.to + b.columns.len() <= self.out.cols, "weight_grad: {b:?}");
        }
        if let Some(gram) = &self.gram {
            assert!(gram.products.shape() == (1, gram.pairs.len()), "weight_grad: products");
        }
    }
    pub(in crate::backend) fn work(&self) -> Work {
        self.work_of(self.blocks)
    }
    /// The floor of some of the blocks.
    pub(in crate::backend) fn work_of(&self, blocks: &[GradBlock]) -> Work {
        let one = |b: &GradBlock| {
            let shape = (self.dy.cols, b.columns.len(), b.rows.len());
            Work::product(shape, self.dy.dtype, self.x.dtype, DType::F32, self.write == Write::Add)
        };
        blocks.iter().map(one).sum()
    }
}
