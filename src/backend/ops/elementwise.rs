//! Element by element, between any types.

use super::is_f32;
use crate::backend::work::{Work, bytes, bytes_mut};
use crate::backend::{DType, Mat, MatMut};

/// `to = from`, converting between types.
pub struct Copy<'a> {
    /// Any shape and type.
    pub from: Mat<'a>,
    /// The same shape, written.
    pub to: MatMut<'a>,
}

impl Copy<'_> {
    pub(in crate::backend) fn check(&self) {
        assert_eq!(self.from.shape(), self.to.shape(), "copy");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::new(bytes(self.from) + bytes_mut(&self.to), 0)
    }
}

/// `x = value`.
pub struct Fill<'a> {
    /// Any shape and type, written.
    pub x: MatMut<'a>,
    /// What every element becomes.
    pub value: f32,
}

impl Fill<'_> {
    pub(in crate::backend) fn check(&self) {}
    pub(in crate::backend) fn work(&self) -> Work {
        Work::new(bytes_mut(&self.x), 0)
    }
}

/// `x *= alpha`.
pub struct Scale<'a> {
    /// Any shape and type, in place.
    pub x: MatMut<'a>,
    /// The factor.
    pub alpha: f32,
}

impl Scale<'_> {
    pub(in crate::backend) fn check(&self) {}
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(2 * bytes_mut(&self.x), 1, self.x.shape())
    }
}

/// `x = cap tanh(x / cap)`: logits that are capped softly (Gemma 2).
pub struct Softcap<'a> {
    /// *f32*, any shape, in place.
    pub x: MatMut<'a>,
    /// Above 0.
    pub cap: f32,
}

impl Softcap<'_> {
    pub(in crate::backend) fn check(&self) {
        assert!(is_f32(self.x.as_mat()) && self.cap > 0.0, "softcap");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(2 * bytes_mut(&self.x), 4, self.x.shape())
    }
}

/// `y += alpha x`.
pub struct Axpy<'a> {
    /// The factor.
    pub alpha: f32,
    /// Any shape and type.
    pub x: Mat<'a>,
    /// The same shape, any type, added to.
    pub y: MatMut<'a>,
}

impl Axpy<'_> {
    pub(in crate::backend) fn check(&self) {
        assert_eq!(self.x.shape(), self.y.shape(), "axpy");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(bytes(self.x) + 2 * bytes_mut(&self.y), 2, self.x.shape())
    }
}

/// `y += x`, rounded at random as [`struct@super::Fold`] does it, with the same numbers.
pub struct AddRounded<'a> {
    /// *f32*, any shape.
    pub x: Mat<'a>,
    /// The same shape, bf16, added to.
    pub y: MatMut<'a>,
    /// Of the random numbers.
    pub seed: u64,
}

impl AddRounded<'_> {
    pub(in crate::backend) fn check(&self) {
        assert_eq!(self.x.shape(), self.y.shape(), "add_rounded");
        assert!(is_f32(self.x) && self.y.dtype == DType::BF16, "add_rounded: types");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(bytes(self.x) + 2 * bytes_mut(&self.y), 1, self.x.shape())
    }
}
