//! What the pull keeps of a change, along eigenvectors.

use super::is_f32;
use crate::backend::work::{Work, bytes_mut};
use crate::backend::{Mat, MatMut};

/// Eigenvalues of one side of a change.
#[derive(Clone, Copy)]
pub struct Eigenvalues<'a> {
    /// *f32* `[1 x any]`, none negative: those of the known directions, where the matrix lies along these.
    pub known: Option<Mat<'a>>,
    /// That of all other directions; `None`: there are no others.
    pub rest: Option<f32>,
}

/// `x[a, b] *= e(a, b)` with the factors `g(f, c) = 1 / (1 + tau f c)` of the pull, 0 on a side without such directions:
///
/// along known directions of both sides `e(a, b) = g(f_a, c_b) - g(f_rest, c_b) - g(f_a, c_rest) + g(f_rest, c_rest)`, along those of
/// one side its difference alone, `g(f_a, c_rest) - g(f_rest, c_rest)`, and along none `g(f_rest, c_rest)`.
pub struct Shrink<'a> {
    /// *f32*, in place.
    pub x: MatMut<'a>,
    /// f: of the rows.
    pub rows: Eigenvalues<'a>,
    /// c: of the columns.
    pub cols: Eigenvalues<'a>,
    /// Not negative.
    pub tau: f32,
}

impl Shrink<'_> {
    pub(in crate::backend) fn check(&self) {
        let fits = |known: Option<Mat>, n| known.is_none_or(|k| k.shape() == (1, n) && is_f32(k));
        assert!(fits(self.rows.known, self.x.rows) && fits(self.cols.known, self.x.cols), "shrink: shapes");
        assert!(is_f32(self.x.as_mat()) && self.tau >= 0.0, "shrink");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(2 * bytes_mut(&self.x), 8, self.x.shape())
    }
}
