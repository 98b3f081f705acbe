//! Orthonormal rows.

use super::is_f32;
use crate::backend::MatMut;
use crate::backend::work::{Work, bytes_mut};

/// Orthonormalises the rows of each matrix in order, as Gram-Schmidt would: row i afterwards spans what it added to the
/// rows before it. Rows that add nothing (to rounding) become zero.
pub struct OrthonormalizeRows<'a> {
    /// *f32* `[R x N]` each, R <= N, in place.
    pub matrices: Vec<MatMut<'a>>,
}

impl OrthonormalizeRows<'_> {
    pub(in crate::backend) fn check(&self) {
        assert!(self.matrices.iter().all(|a| is_f32(a.as_mat())), "orthonormalize_rows");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        self.matrices.iter().map(|a| Work::each(2 * bytes_mut(a), 4 * a.rows, a.shape())).sum()
    }
}
