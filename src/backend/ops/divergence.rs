//! The divergence of a model's predictions from earlier ones.

use super::is_f32;
use crate::backend::work::{Work, bytes};
use crate::backend::{Mat, MatMut};

/// `kl = KL(softmax(before) || softmax(logits))` of every row, whose gradient takes the place of the logits:
/// `logits <- factor (softmax(logits) - softmax(before)) slope`, where slope is 1, or that of the cap that the logits had.
pub struct Divergence<'a> {
    /// *f32* `[L x V]`, in place.
    pub logits: MatMut<'a>,
    /// *f32* `[L x V]`.
    pub before: Mat<'a>,
    /// Factor on the gradient.
    pub factor: f32,
    /// What both were capped by: the slope is `1 - (logit / softcap)²`.
    pub softcap: Option<f32>,
    /// *f32* `[L x 1]`, written; in nats.
    pub kl: MatMut<'a>,
}

impl Divergence<'_> {
    pub(in crate::backend) fn check(&self) {
        assert!(self.logits.shape() == self.before.shape(), "divergence");
        assert!(self.kl.shape() == (self.logits.rows, 1), "divergence");
        assert!(is_f32(self.logits.as_mat()) && is_f32(self.before), "divergence");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        // Both read, the gradient written.
        Work::each(3 * bytes(self.before), 12, self.before.shape())
    }
}
