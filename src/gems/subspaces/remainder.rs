//! What was learned on a weight in codes, to which nothing can be added: a low-rank remainder beside it.
//!
//! The layer computes with `W + U V`, and between refreshes with `W + U V + B A`: its branch holds the rows of A, then those
//! of V, and the columns of B, then those of U. A fold makes `U V` the best approximation of `U V + B A` of bounded rank. Rows of
//! V are sums of rows of A: what all bases keep off, the remainder keeps off; columns of U are sums of columns of B.

use crate::backend::{Backend, Branch, DType, Mat, MatMut, Operand, Tensor};
use crate::error::{Error, Result};
use crate::gems::linalg::symmetric_eigen;
use crate::gems::pull::{Pull, Through};
use crate::gems::state::State;
use std::ops::Range;

/// Eigenvalues of a Gram matrix of f32 sums below this share of the largest are rounding.
const ROUNDING: f64 = 1e-6;

/// `U V`, of which the layer's branch has V, and U in compute type.
pub struct Remainder {
    /// `[M x K]` f32.
    u: Tensor,
    /// Rows and columns of the branch that are the remainder's.
    columns: Range<usize>,
    /// Share of the squared norm of `U V + B A` that the last fold could not keep.
    pub lost: Option<f64>,
}

impl Remainder {
    /// None yet, of at most `rank` directions, beside subspaces of `total`.
    pub fn new(be: &dyn Backend, m: usize, total: usize, rank: usize) -> Result<Self> {
        Ok(Self { u: be.zeros(m, rank, DType::F32)?, columns: total..total + rank, lost: None })
    }

    /// Most directions.
    pub fn rank(&self) -> usize {
        self.columns.len()
    }

    /// Begins to take up `B A` of the branch's own rows.
    pub fn begin(&self, be: &dyn Backend, branch: &Branch, b: Mat) -> Result<TakingUp> {
        let (a, all, left) = (branch.a.mat(), self.columns.end, self.left(be, b)?);
        let gram = |x: Operand, y: Operand| -> Result<Tensor> {
            let mut gram = be.alloc(all, all, DType::F32)?;
            be.product(gram.mat_mut(), 0.0, 1.0, x, y)?;
            Ok(gram)
        };
        let grams = [gram(a.n(), a.t())?, gram(left.mat().t(), left.mat().n())?];
        Ok(TakingUp { rank: self.rank(), grams })
    }

    /// The columns of B, then those of U.
    fn left(&self, be: &dyn Backend, b: Mat) -> Result<Tensor> {
        let mut left = be.alloc(b.rows, self.columns.end, DType::F32)?;
        be.copy(b, left.mat_mut().col_range(0..b.cols))?;
        be.copy(self.u.mat(), left.mat_mut().col_range(self.columns.clone()))?;
        Ok(left)
    }

    /// Takes it up, as `kept` says.
    pub fn finish(&mut self, be: &dyn Backend, branch: &mut Branch, b: Mat, kept: &Leading) -> Result<()> {
        let (a, all, rank, left) = (branch.a.mat(), self.columns.end, self.rank(), self.left(be, b)?);
        self.lost = kept.lost;
        let (by_rows, by_columns) =
            (be.tensor(&kept.rows, rank, all, DType::F32)?, be.tensor(&kept.columns, all, rank, DType::F32)?);
        let mut v = be.alloc(rank, a.cols, DType::F32)?;
        be.product(v.mat_mut(), 0.0, 1.0, by_rows.mat().n(), a.n())?;
        be.product(self.u.mat_mut(), 0.0, 1.0, left.mat().n(), by_columns.mat().n())?;
        be.copy(v.mat(), branch.a.mat_mut().row_range(self.columns.clone()))?;
        self.show(be, branch)
    }

    /// What its pull needs to see of V.
    pub fn seen(&self, be: &dyn Backend, branch: &Branch, pull: &Pull) -> Result<[Tensor; 2]> {
        pull.seen_through(be, branch.a.mat().row_range(self.columns.clone()))
    }

    /// Is pulled, by `strength`.
    pub fn pulled(
        &mut self,
        be: &dyn Backend,
        branch: &mut Branch,
        (pull, seen, strength): (&Pull, &Through, f64),
    ) -> Result<()> {
        pull.factor_through(be, self.u.mat_mut(), seen, strength)?;
        self.show(be, branch)
    }

    /// Puts U into the branch.
    pub fn show(&self, be: &dyn Backend, branch: &mut Branch) -> Result<()> {
        be.copy(self.u.mat(), branch.b.mat_mut().col_range(self.columns.clone()))
    }

    /// Saves or restores U; V is the branch's.
    pub fn state(&mut self, state: &mut State) -> Result<()> {
        state.weight("u", self.u.mat_mut())
    }
}

/// A layer whose remainder takes up `B A`.
pub struct TakingUp {
    rank: usize,
    /// `A Aᵀ`, and that of the columns of B and U.
    grams: [Tensor; 2],
}

impl TakingUp {
    /// What the host needs.
    pub fn grams(&self) -> [Mat<'_>; 2] {
        self.grams.each_ref().map(Tensor::mat)
    }

    /// What is kept, from the values of [`TakingUp::grams`].
    pub fn solve(&self, grams: &[Vec<f32>]) -> Result<Leading> {
        Leading::of(&grams[0], &grams[1], self.grams[0].rows(), self.rank)
    }
}

/// The branch's own rows of A.
pub fn own_rows(branch: &Branch, total: usize) -> Mat<'_> {
    branch.a.mat().row_range(0..total)
}

/// The same, to write.
pub fn own_rows_mut(branch: &mut Branch, total: usize) -> MatMut<'_> {
    branch.a.mat_mut().row_range(0..total)
}

/// The branch's own columns of B, to write.
pub fn own_columns_mut(branch: &mut Branch, total: usize) -> MatMut<'_> {
    branch.b.mat_mut().col_range(0..total)
}

/// The leading singular directions of a product `B A`, as combinations of the rows of A and of the columns of B.
pub struct Leading {
    /// `[rank x all]`: orthonormal rows when applied to A.
    rows: Vec<f32>,
    /// `[all x rank]`.
    columns: Vec<f32>,
    lost: Option<f64>,
}

impl Leading {
    /// From `A Aᵀ` and `Bᵀ B`. With `A Aᵀ = E D Eᵀ`, `A = (E D^1/2) Q` and Q orthonormal; with `C = E D^1/2` and the
    /// eigenvectors F of `Cᵀ Bᵀ B C`, `B A = (B C F) (Fᵀ Q)`, and the columns of `B C F` are orthogonal.
    fn of(of_a: &[f32], of_b: &[f32], all: usize, rank: usize) -> Result<Self> {
        if let Some(v) = of_a.iter().chain(of_b).find(|v| !v.is_finite()) {
            return Err(Error::numeric(format!("what was learned of a layer holds {v}")));
        }
        let nothing = |m: &[f32]| m.iter().all(|v| *v == 0.0);
        if nothing(of_a) || nothing(of_b) {
            return Ok(Self { rows: vec![0.0; rank * all], columns: vec![0.0; all * rank], lost: None });
        }
        let (d, e) = symmetric_eigen(of_a, all)?;
        let known = d.iter().take_while(|v| **v > ROUNDING * d[0] && **v > 0.0).count();
        let e = |k: usize, i: usize| f64::from(e[k * all + i]);
        let c = |i: usize, k: usize| e(k, i) * d[k].sqrt();
        let mut half = vec![0f64; all * known];
        for i in 0..all {
            for k in 0..known {
                half[i * known + k] = (0..all).map(|j| f64::from(of_b[i * all + j]) * c(j, k)).sum();
            }
        }
        let inner =
            |at: usize| (0..all).map(|i| c(i, at / known) * half[i * known + at % known]).sum::<f64>();
        let inner: Vec<f32> = (0..known * known).map(|at| inner(at) as f32).collect();
        let (squares, f) = symmetric_eigen(&inner, known)?;
        let (kept, total) = (rank.min(known), squares.iter().map(|s| s.max(0.0)).sum::<f64>());
        let f = |j: usize, k: usize| f64::from(f[j * known + k]);
        let (mut rows, mut columns) = (vec![0f32; rank * all], vec![0f32; all * rank]);
        for j in 0..kept {
            for i in 0..all {
                rows[j * all + i] = (0..known).map(|k| f(j, k) * e(k, i) / d[k].sqrt()).sum::<f64>() as f32;
                columns[i * rank + j] = (0..known).map(|k| f(j, k) * c(i, k)).sum::<f64>() as f32;
            }
        }
        let rest: f64 = squares.iter().skip(kept).map(|s| s.max(0.0)).sum();
        Ok(Self { rows, columns, lost: (total > 0.0).then(|| rest / total) })
    }
}
