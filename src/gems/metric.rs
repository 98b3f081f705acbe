//! The knowledge metric: steps are spent by what a direction costs.
//!
//! With the second moment C of a layer's inputs, of mean eigenvalue c, `S = (C / c + damping I)^-1/2`, scaled so that
//! `tr S² = N`; with that of its output gradients, F, likewise P. Bases are found in `P G S` and steps made in its coordinates, so
//! that a step's length is measured in them: the natural gradient with Kronecker factors (K-FAC: Martens and Grosse, 2015) of
//! the base model's own predictions, to the power 1/2 on each side.

use super::knowledge::Spectrum;
use crate::backend::{Backend, DType, Mat, Tensor};
use crate::error::{Error, Result};

/// S (or P): a symmetric matrix on the device.
pub(super) enum Metric {
    /// `[n x n]`, where all directions are known.
    Full(Tensor),
    /// `constant I - Vᵀ V` over the first `falling` rows of V, `+ Vᵀ V` over the others.
    LowRank {
        constant: f32,
        /// `V [k x n]`: the known directions, each times the root of its distance from the constant.
        directions: Tensor,
        falling: usize,
    },
}

/// Eigenvalues of S: at the known directions, and at all others.
pub(super) fn eigenvalues(c: &Spectrum, damping: f64) -> Result<(Vec<f64>, f64)> {
    let mean = c.mean();
    if !(mean > 0.0 && mean.is_finite()) {
        return Err(Error::numeric(format!("the mean eigenvalue of this second moment is {mean}"))
            .at(&c.name)
            .remedy("learn the knowledge from more general text, or leave the layer out of gems.targets"));
    }
    let square = |value: f64| 1.0 / (value.max(0.0) / mean + damping);
    let others = (c.dim - c.kept()) as f64;
    let trace: f64 = c.values.iter().map(|v| square(*v)).sum::<f64>() + others * square(c.rest);
    let scale = c.dim as f64 / trace;
    let root = |value: f64| (scale * square(value)).sqrt();
    Ok((c.values.iter().map(|v| root(*v)).collect(), root(c.rest)))
}

impl Metric {
    /// The metric of a second moment.
    ///
    /// # Errors
    /// The moment is zero; the device.
    pub fn new(be: &dyn Backend, c: &Spectrum, damping: f64) -> Result<Self> {
        let (known, rest) = eigenvalues(c, damping)?;
        let (n, k) = (c.dim, c.kept());
        let scaled = |factor: &dyn Fn(f64) -> f64| -> Vec<f32> {
            let rows = c.directions.chunks_exact(n.max(1)).zip(&known);
            rows.flat_map(|(row, s)| {
                let factor = factor(*s);
                row.iter().map(move |v| (f64::from(*v) * factor) as f32)
            })
            .collect()
        };
        if k == n {
            let half = be.tensor(&scaled(&f64::sqrt), n, n, DType::F32)?;
            let mut whole = be.alloc(n, n, DType::F32)?;
            be.product(whole.mat_mut(), 0.0, 1.0, half.mat().t(), half.mat().n())?;
            return Ok(Self::Full(whole));
        }
        let directions = be.tensor(&scaled(&|s| (s - rest).abs().sqrt()), k, n, DType::F32)?;
        // Values descend, so that what falls below the constant comes first.
        let falling = known.iter().take_while(|s| **s < rest).count();
        Ok(Self::LowRank { constant: rest as f32, directions, falling })
    }

    /// `x S` of rows `[r x n]`, *f32*.
    pub fn rows(&self, be: &dyn Backend, x: Mat) -> Result<Tensor> {
        let mut y = be.alloc(x.rows, x.cols, DType::F32)?;
        match self {
            Self::Full(s) => be.product(y.mat_mut(), 0.0, 1.0, x.n(), s.mat().n())?,
            Self::LowRank { constant, directions, falling } => {
                be.copy(x, y.mat_mut())?;
                be.scale(y.mat_mut(), *constant)?;
                for (v, sign) in parts(directions, *falling) {
                    let mut along = be.alloc(x.rows, v.rows, DType::F32)?;
                    be.product(along.mat_mut(), 0.0, 1.0, x.n(), v.t())?;
                    be.product(y.mat_mut(), 1.0, sign, along.mat().n(), v.n())?;
                }
            }
        }
        Ok(y)
    }

    /// `S x` of columns `[n x r]`, *f32*.
    pub fn columns(&self, be: &dyn Backend, x: Mat) -> Result<Tensor> {
        let mut y = be.alloc(x.rows, x.cols, DType::F32)?;
        match self {
            Self::Full(s) => be.product(y.mat_mut(), 0.0, 1.0, s.mat().n(), x.n())?,
            Self::LowRank { constant, directions, falling } => {
                be.copy(x, y.mat_mut())?;
                be.scale(y.mat_mut(), *constant)?;
                for (v, sign) in parts(directions, *falling) {
                    let mut along = be.alloc(v.rows, x.cols, DType::F32)?;
                    be.product(along.mat_mut(), 0.0, 1.0, v.n(), x.n())?;
                    be.product(y.mat_mut(), 1.0, sign, v.t(), along.mat().n())?;
                }
            }
        }
        Ok(y)
    }
}

/// The directions below and above the constant, with the sign of their product.
fn parts(directions: &Tensor, falling: usize) -> impl Iterator<Item = (Mat<'_>, f32)> {
    let (below, above) = (0..falling, falling..directions.rows());
    [(below, -1.0), (above, 1.0)]
        .into_iter()
        .filter(|(rows, _)| !rows.is_empty())
        .map(|(rows, sign)| (directions.mat().row_range(rows), sign))
}
