//! Products of matrices.

use crate::backend::work::Work;
use crate::backend::{DType, Mat, MatMut};

/// A matrix as it enters a product.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// As it is stored.
    pub mat: Mat<'a>,
    /// Whether its transpose is meant.
    pub transposed: bool,
}

impl<'a> Mat<'a> {
    /// This matrix in a product.
    pub fn n(self) -> Operand<'a> {
        Operand { mat: self, transposed: false }
    }
    /// The transpose of this matrix in a product.
    pub fn t(self) -> Operand<'a> {
        Operand { mat: self, transposed: true }
    }
}

impl Operand<'_> {
    /// (rows, columns), after transposition.
    pub fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.mat.cols, self.mat.rows) } else { self.mat.shape() }
    }
}

/// `C = beta C + alpha A B`, f32 accumulation.
pub struct Matmul<'a> {
    /// `[m x n]`, any type; not read for `beta` 0, even NaN does not matter then.
    pub c: MatMut<'a>,
    /// 0 or 1.
    pub beta: f32,
    /// Factor on the product.
    pub alpha: f32,
    /// `[m x k]`, any type.
    pub a: Operand<'a>,
    /// `[k x n]`, any type.
    pub b: Operand<'a>,
}

impl Matmul<'_> {
    pub(in crate::backend) fn check(&self) {
        let ((m, k), b, c) = (self.a.shape(), self.b.shape(), self.c.shape());
        assert!(b.0 == k && c == (m, b.1), "matmul: {:?} x {b:?} into {c:?}", (m, k));
        assert!(self.beta == 0.0 || self.beta == 1.0, "matmul: beta {}", self.beta);
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let (m, n) = self.c.shape();
        let (a, b) = (self.a.mat.dtype, self.b.mat.dtype);
        Work::product((m, n, self.a.shape().1), a, b, self.c.dtype, self.beta != 0.0)
    }
}

/// `C = beta C + alpha A B` of large *f32* matrices where 16 bits of A and of B are enough, of which a device with tensor cores
/// for bf16 multiplies the sums of two bf16 matrices instead.
pub struct MatmulSplit<'a>(pub Matmul<'a>);

impl MatmulSplit<'_> {
    pub(in crate::backend) fn check(&self) {
        self.0.check();
        let types = [self.0.a.mat.dtype, self.0.b.mat.dtype, self.0.c.dtype];
        assert!(types == [DType::F32; 3], "matmul_split: types");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        self.0.work()
    }
}

/// Independent small products `C = beta C + alpha A op(B)` of *f32* matrices, of which a device does many at a time.
pub struct MatmulMany<'a> {
    /// 0 or 1.
    pub beta: f32,
    /// Factor on every product.
    pub alpha: f32,
    /// Whether every B enters transposed.
    pub transpose_b: bool,
    /// (C, A, B).
    pub products: Vec<(MatMut<'a>, Mat<'a>, Mat<'a>)>,
}

impl MatmulMany<'_> {
    /// B as it enters.
    pub fn operand<'b>(&self, b: Mat<'b>) -> Operand<'b> {
        Operand { mat: b, transposed: self.transpose_b }
    }
    pub(in crate::backend) fn check(&self) {
        assert!(self.beta == 0.0 || self.beta == 1.0, "matmul_many: beta {}", self.beta);
        for (c, a, b) in &self.products {
            assert!((a.cols, c.cols) == self.operand(*b).shape() && a.rows == c.rows, "matmul_many: shapes");
            assert!([a.dtype, b.dtype, c.dtype] == [DType::F32; 3], "matmul_many: types");
        }
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let f = DType::F32;
        let one = |(c, a, _): &(MatMut, Mat, Mat)| {
            Work::product((c.rows, c.cols, a.cols), f, f, f, self.beta != 0.0)
        };
        self.products.iter().map(one).sum()
    }
}
