//! Sums over rows: the gradient of a bias.

use super::{PerSegment, is_f32};
use crate::backend::Mat;
use crate::backend::work::{Work, bytes, bytes_mut};

/// Adds the column sums of every segment of rows of dy to row s of out `[S x M]`.
pub struct ColumnSums<'a> {
    /// `[T x M]`.
    pub dy: Mat<'a>,
    /// Segments of rows, and *f32* `[S x M]`, added to.
    pub sums: PerSegment<'a>,
}

impl ColumnSums<'_> {
    pub(in crate::backend) fn check(&self) {
        let (out, segments) = (&self.sums.out, self.sums.segments);
        assert!(out.cols == self.dy.cols && out.rows >= segments.len(), "column_sums");
        assert!(is_f32(out.as_mat()), "column_sums");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let rows: usize = self.sums.segments.iter().map(|s| s.len()).sum();
        let read = bytes(self.dy) / self.dy.rows.max(1) as u64 * rows as u64;
        Work::each(read + 2 * bytes_mut(&self.sums.out), 1, (rows, self.dy.cols))
    }
}
