//! What was learned on a weight in codes, to which nothing can be added: a low-rank remainder beside it.
//!
//! The layer computes with `W + U V`, and between refreshes with `W + U V + B A`: its branch holds the rows of A, then those
//! of V, and the columns of B, then those of U. A fold makes `U V` the best approximation of `U V + B A` of bounded rank. Rows of
//! V are sums of rows of A: what all bases keep off, the remainder keeps off; columns of U are sums of columns of B.

use crate::backend::{Backend, Branch, DType, Mat, MatMut, Tensor};
use crate::error::{Error, Result};
use crate::gems::linalg::symmetric_eigen;
use crate::gems::pull::Pull;
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

    /// Takes up `B A` of the branch's own rows; what is then there is pulled by `strength`.
    pub fn fold(
        &mut self,
        be: &dyn Backend,
        branch: &mut Branch,
        b: Mat,
        (pull, strength): (Option<&Pull>, f64),
    ) -> Result<()> {
        let (a, all) = (branch.a.mat(), self.columns.end);
        let mut left = be.alloc(b.rows, all, DType::F32)?;
        be.copy(b, left.mat_mut().col_range(0..b.cols))?;
        be.copy(self.u.mat(), left.mat_mut().col_range(self.columns.clone()))?;
        let gram = |x: crate::backend::Operand, y| -> Result<Vec<f32>> {
            let mut gram = be.alloc(all, all, DType::F32)?;
            be.product(gram.mat_mut(), 0.0, 1.0, x, y)?;
            be.download(gram.mat())
        };
        let (of_a, of_b) = (gram(a.n(), a.t())?, gram(left.mat().t(), left.mat().n())?);
        let kept = Leading::of(&of_a, &of_b, all, self.rank())?;
        self.lost = kept.lost;
        let rank = self.rank();
        let (by_rows, by_columns) =
            (be.tensor(&kept.rows, rank, all, DType::F32)?, be.tensor(&kept.columns, all, rank, DType::F32)?);
        let mut v = be.alloc(rank, a.cols, DType::F32)?;
        be.product(v.mat_mut(), 0.0, 1.0, by_rows.mat().n(), a.n())?;
        be.product(self.u.mat_mut(), 0.0, 1.0, left.mat().n(), by_columns.mat().n())?;
        be.copy(v.mat(), branch.a.mat_mut().row_range(self.columns.clone()))?;
        if let Some(pull) = pull {
            let v = branch.a.mat().row_range(self.columns.clone());
            pull.factor(be, self.u.mat_mut(), v, strength)?;
        }
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
struct Leading {
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
