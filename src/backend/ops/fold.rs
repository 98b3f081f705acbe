//! A low-rank branch folded into its weight.

use super::is_f32;
use crate::backend::work::Work;
use crate::backend::{Mat, MatMut};

/// `W = keep * W + scale * B A` in f32, rounded once to W's type.
pub struct Fold<'a> {
    /// `[M x N]`, in place.
    pub w: MatMut<'a>,
    /// Factor on what W was.
    pub keep: f32,
    /// Factor on what is added.
    pub scale: f32,
    /// *f32* `[M x R]`.
    pub b: Mat<'a>,
    /// `[R x N]`.
    pub a: Mat<'a>,
    /// How to round.
    pub rounding: Rounding,
}

/// How [`Fold`] rounds to the weight's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Stochastically, from a counter-based stream with this seed.
    Stochastic(u64),
}

impl Fold<'_> {
    pub(in crate::backend) fn check(&self) {
        let fits = self.w.shape() == (self.b.rows, self.a.cols) && self.b.cols == self.a.rows;
        assert!(fits && is_f32(self.b), "fold");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let shape = (self.w.rows, self.w.cols, self.a.rows);
        Work::product(shape, self.b.dtype, self.a.dtype, self.w.dtype, true)
    }
}
