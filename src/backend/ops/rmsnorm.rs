//! The root-mean-square norm.

use super::PerSegment;
use crate::backend::work::{Work, bytes};
use crate::backend::{Mat, MatMut};

/// `s = x + residual;  y = w * s / sqrt(mean(s²) + eps)`, row by row. Rows may be heads (query-key norms): any contiguous
/// view (Zhang and Sennrich 2019).
pub struct Rmsnorm<'a> {
    /// `[T x D]`.
    pub x: Mat<'a>,
    /// `[T x D]`, added to x, and s, written.
    pub residual: Option<(Mat<'a>, MatMut<'a>)>,
    /// `[1 x D]`.
    pub w: Mat<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// `[T x D]`, written.
    pub y: MatMut<'a>,
    /// *f32* `[T x 1]`, written: `1 / sqrt(mean(s²) + eps)`.
    pub inv_rms: MatMut<'a>,
}

impl Rmsnorm<'_> {
    pub(in crate::backend) fn check(&self) {
        assert!(self.x.shape() == self.y.shape() && self.w.cols == self.x.cols, "rmsnorm");
        assert!(self.inv_rms.rows == self.x.rows, "rmsnorm");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let streams = if self.residual.is_some() { 4 } else { 2 };
        Work::each(streams * bytes(self.x) + 4 * self.x.rows as u64, 4, self.x.shape())
    }
}

/// The gradient of [`Rmsnorm`] at its normalised input s.
pub struct RmsnormBackward<'a> {
    /// `[T x D]`: what was normalised, residual included.
    pub s: Mat<'a>,
    /// `[1 x D]`.
    pub w: Mat<'a>,
    /// *f32* `[T x 1]`, from the forward pass.
    pub inv_rms: Mat<'a>,
    /// `[T x D]`.
    pub dy: Mat<'a>,
    /// `[T x D]`, written or added to.
    pub dx: MatMut<'a>,
    /// Whether dx is added to.
    pub accumulate: bool,
    /// The weight's gradient: *f32* `[S x D]`, added to.
    pub dw: Option<PerSegment<'a>>,
}

impl RmsnormBackward<'_> {
    pub(in crate::backend) fn check(&self) {
        let shape = self.s.shape();
        assert!(shape == self.dy.shape() && shape == self.dx.shape(), "rmsnorm_backward");
        assert!(self.w.cols == self.s.cols && self.inv_rms.rows == self.s.rows, "rmsnorm_backward");
        if let Some(dw) = &self.dw {
            assert!(dw.out.cols == self.s.cols && dw.out.rows >= dw.segments.len(), "rmsnorm_backward: dw");
        }
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let streams = if self.accumulate { 4 } else { 3 };
        Work::each(streams * bytes(self.s) + 4 * self.s.rows as u64, 8, self.s.shape())
    }
}
