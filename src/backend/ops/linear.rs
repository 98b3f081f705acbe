//! The linear layer with its low-rank branch.

use super::Quantised;
use crate::backend::work::Work;
use crate::backend::{DType, Mat, MatMut, Tensor};

/// A weight `W [M x N]` with an optional bias `[1 x M]` and an optional low-rank branch:
/// `y = x Wᵀ + bias + (x Aᵀ) Bᵀ`.
pub struct AdaptedLinear {
    /// `[M x N]`.
    pub weight: Weight,
    /// `[1 x M]`, compute type.
    pub bias: Option<Tensor>,
    /// The low-rank branch, absent when the layer is not adapted or everything is folded into W.
    pub branch: Option<Branch>,
}

/// A layer's weight, as it is kept.
#[allow(clippy::large_enum_variant, reason = "one a layer")]
pub enum Weight {
    /// Compute type, or bf16 where that is f32.
    Whole(Tensor),
    /// In codes: nothing is ever written to it.
    Quantised(Quantised),
}

impl Weight {
    /// (M, N).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Whole(w) => w.shape(),
            Self::Quantised(q) => q.shape,
        }
    }
    /// M.
    pub fn rows(&self) -> usize {
        self.shape().0
    }
    /// N.
    pub fn cols(&self) -> usize {
        self.shape().1
    }
    /// Its codes, if it is kept in codes.
    pub fn quantised(&self) -> Option<&Quantised> {
        match self {
            Self::Whole(_) => None,
            Self::Quantised(q) => Some(q),
        }
    }
    /// The weight of a layer that is not kept in codes.
    pub fn whole(&self) -> &Tensor {
        match self {
            Self::Whole(w) => w,
            Self::Quantised(_) => unreachable!("{WRITTEN}"),
        }
    }
    /// The same, to read.
    pub fn mat(&self) -> Mat<'_> {
        self.whole().mat()
    }
    /// The same, to write.
    pub fn mat_mut(&mut self) -> MatMut<'_> {
        match self {
            Self::Whole(w) => w.mat_mut(),
            Self::Quantised(_) => unreachable!("{WRITTEN}"),
        }
    }
    /// Its type.
    pub fn dtype(&self) -> DType {
        self.whole().dtype()
    }
    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Whole(w) => w.len() * w.dtype().bytes(),
            Self::Quantised(q) => q.bytes(),
        }
    }
}

impl From<Tensor> for Weight {
    fn from(weight: Tensor) -> Self {
        Self::Whole(weight)
    }
}

/// Whoever changes weights asks first: [`MethodSettings`](crate::gems::MethodSettings) refuses what would.
const WRITTEN: &str = "a weight in codes is taken as it is, and never changed";

/// The low-rank branch of an [`AdaptedLinear`], in compute type.
pub struct Branch {
    /// `[R x N]`: the stacked bases of all subspaces (rows), or LoRA's A.
    pub a: Tensor,
    /// `[M x R]`: the accumulated coordinates, or LoRA's B times its scale.
    pub b: Tensor,
}

/// `y = x Wᵀ + bias (+ h Bᵀ, h = x Aᵀ)`.
pub struct Linear<'a> {
    /// The layer.
    pub layer: &'a AdaptedLinear,
    /// `[T x N]`.
    pub x: Mat<'a>,
    /// `[T x R]`, written; there exactly when the layer has a branch.
    pub h: Option<MatMut<'a>>,
    /// `[T x M]`, written.
    pub y: MatMut<'a>,
}

impl Linear<'_> {
    pub(in crate::backend) fn check(&self) {
        let (m, n) = self.layer.weight.shape();
        assert!(self.x.cols == n && self.y.shape() == (self.x.rows, m), "linear");
        assert_eq!(self.layer.branch.is_some(), self.h.is_some(), "linear: h goes with a branch");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        work(self.layer, self.x, &self.y, false)
    }
}

/// The gradient of [`Linear`] at its input: `dx (+)= dy W (+ z A, z = dy B)`.
pub struct LinearInputGrad<'a> {
    /// The layer.
    pub layer: &'a AdaptedLinear,
    /// `[T x M]`.
    pub dy: Mat<'a>,
    /// `[T x R]`, written; there exactly when the layer has a branch.
    pub z: Option<MatMut<'a>>,
    /// `[T x N]`, written or added to.
    pub dx: MatMut<'a>,
    /// Whether dx is added to.
    pub accumulate: bool,
}

impl LinearInputGrad<'_> {
    pub(in crate::backend) fn check(&self) {
        let (m, n) = self.layer.weight.shape();
        assert!(self.dy.cols == m && self.dx.shape() == (self.dy.rows, n), "linear_input_grad");
        assert_eq!(self.layer.branch.is_some(), self.z.is_some(), "linear_input_grad: z goes with a branch");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        work(self.layer, self.dy, &self.dx, self.accumulate)
    }
}

/// Either way: the base product, and the branch's two.
fn work(layer: &AdaptedLinear, from: Mat, to: &MatMut, adds: bool) -> Work {
    let (m, n, t) = (layer.weight.rows(), layer.weight.cols(), from.rows);
    let e = from.dtype;
    let product = Work::product((t, to.cols, from.cols), from.dtype, e, to.dtype, adds);
    let base =
        Work { bytes: product.bytes - (m * n * e.bytes()) as u64 + layer.weight.bytes() as u64, ..product };
    let branch = layer.branch.as_ref().map_or(Work::default(), |b| {
        let r = b.a.rows();
        Work::new((r * (m + n + t) * e.bytes()) as u64, (2 * t * r * (m + n)) as u64)
    });
    base + branch
}
