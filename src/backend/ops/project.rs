//! The null space: a space taken out of rows or columns.

use crate::backend::work::{Work, bytes, bytes_mut};
use crate::backend::{Mat, MatMut};

/// `x -= (x K) Kᵀ`: removes the space of K from the rows of x.
pub struct ProjectRows<'a> {
    /// `[any x N]`, in place.
    pub x: MatMut<'a>,
    /// `[N x k]`, orthonormal columns.
    pub k: Mat<'a>,
}

impl ProjectRows<'_> {
    pub(in crate::backend) fn check(&self) {
        assert_eq!(self.x.cols, self.k.rows, "project_rows");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        work(&self.x, self.k)
    }
}

/// `x -= K (Kᵀ x)`: removes the space of K from the columns of x.
pub struct ProjectColumns<'a> {
    /// `[M x any]`, in place.
    pub x: MatMut<'a>,
    /// `[M x k]`, orthonormal columns.
    pub k: Mat<'a>,
}

impl ProjectColumns<'_> {
    pub(in crate::backend) fn check(&self) {
        assert_eq!(self.x.rows, self.k.rows, "project_columns");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        work(&self.x, self.k)
    }
}

fn work(x: &MatMut, k: Mat) -> Work {
    Work::each(2 * bytes_mut(x) + bytes(k), 4 * k.cols, x.shape())
}
