//! The nonlinearity of a feed-forward block.

use crate::backend::work::{Work, bytes, bytes_or_none};
use crate::backend::{Mat, MatMut};

/// A nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x) (Llama, Qwen).
    Silu,
    /// max(0, x) (T5 v1.0).
    Relu,
    /// The tanh approximation of GELU, `gelu_new` (T5 v1.1).
    GeluTanh,
}

/// `y = act(gate) * up`, or `act(gate)` without `up`.
pub struct Activate<'a> {
    /// Which.
    pub kind: Activation,
    /// `[T x M]`.
    pub gate: Mat<'a>,
    /// `[T x M]`.
    pub up: Option<Mat<'a>>,
    /// `[T x M]`, written.
    pub y: MatMut<'a>,
}

impl Activate<'_> {
    pub(in crate::backend) fn check(&self) {
        let shape = self.gate.shape();
        assert!(shape == self.y.shape() && self.up.is_none_or(|u| u.shape() == shape), "activation");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(2 * bytes(self.gate) + bytes_or_none(self.up), 5, self.gate.shape())
    }
}

/// The gradients of [`Activate`].
pub struct ActivateBackward<'a> {
    /// Which.
    pub kind: Activation,
    /// `[T x M]`.
    pub gate: Mat<'a>,
    /// `[T x M]`.
    pub up: Option<Mat<'a>>,
    /// `[T x M]`.
    pub dy: Mat<'a>,
    /// `[T x M]`, written.
    pub dgate: MatMut<'a>,
    /// `[T x M]`, written; there when `up` is.
    pub dup: Option<MatMut<'a>>,
}

impl ActivateBackward<'_> {
    pub(in crate::backend) fn check(&self) {
        let shape = self.gate.shape();
        assert!(shape == self.dy.shape() && shape == self.dgate.shape(), "activation_backward");
        assert!(self.up.is_some() || self.dup.is_none(), "activation_backward: dup goes with up");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(3 * bytes(self.gate) + 2 * bytes_or_none(self.up), 8, self.gate.shape())
    }
}
