//! A space taken out of rows or columns, as products.

use super::Cuda;
use crate::backend::{Matmul, ProjectColumns, ProjectRows};
use crate::error::Result;

impl Cuda {
    pub(super) fn project_rows(&self, op: ProjectRows) -> Result<()> {
        let ProjectRows { x, k } = op;
        let mut inner = self.scratch(x.rows, k.cols)?;
        let along = Matmul { c: inner.mat_mut(), beta: 0.0, alpha: 1.0, a: x.as_mat().n(), b: k.n() };
        self.matmul(along)?;
        self.matmul(Matmul { c: x, beta: 1.0, alpha: -1.0, a: inner.mat().n(), b: k.t() })
    }

    pub(super) fn project_columns(&self, op: ProjectColumns) -> Result<()> {
        let ProjectColumns { x, k } = op;
        let mut inner = self.scratch(k.cols, x.cols)?;
        let along = Matmul { c: inner.mat_mut(), beta: 0.0, alpha: 1.0, a: k.t(), b: x.as_mat().n() };
        self.matmul(along)?;
        self.matmul(Matmul { c: x, beta: 1.0, alpha: -1.0, a: k.n(), b: inner.mat().n() })
    }
}
