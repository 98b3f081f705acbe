//! The pull: at every fold, what was learned is drawn back towards the base model, by what it costs.
//!
//! `D = W - W_base` becomes the minimum of `1/2 |D' - D|² + tau/2 tr(F D' C D'ᵀ)`: the proximal step of the forecast of the
//! divergence. In the eigenbases of F and C that is `D'_ab = D_ab / (1 + tau f_a c_b)`. (Elastic weight consolidation,
//! Kirkpatrick et al. 2017, with Kronecker factors, Ritter et al. 2018; with F and C constant, the pull of L2-SP, Li et al. 2018.)

use super::knowledge::Spectrum;
use super::linalg::symmetric_eigen;
use crate::backend::{
    AddRounded, Backend, DType, Eigenvalues, Fold, HostCopy, Mat, MatMut, Matmul, MatmulSplit, Operand,
    Rounding, Shrink, Tensor,
};
use crate::error::Result;
use std::sync::Arc;

/// The pull on one layer. All of it is kept on the host: one layer at a time is on the device.
pub(super) struct Pull {
    /// `None`: of a weight in codes, to which nothing is added: then [`Pull::factor`] alone serves.
    base: Option<HostCopy>,
    inputs: Arc<Spectrum>,
    outputs: Arc<Spectrum>,
    /// `tau` at the top of the schedule.
    rate: f64,
}

/// Columns that are rounded with the same seed.
const ROUNDED: usize = 1024;

impl Pull {
    /// Towards the weight as it is now.
    pub fn new(
        be: &dyn Backend,
        weight: Option<Mat>,
        (inputs, outputs): (Arc<Spectrum>, Arc<Spectrum>),
        rate: f64,
    ) -> Result<Self> {
        let base = weight.map(|weight| HostCopy::of(be, weight)).transpose()?;
        Ok(Self { base, inputs, outputs, rate })
    }

    /// `W <- W_base + pulled(W + B A - W_base)`, rounded once; `strength` is the learning rate over that at the top of its
    /// schedule.
    pub fn fold(
        &self,
        be: &dyn Backend,
        mut w: MatMut,
        branch: Option<(Mat, Mat)>,
        (strength, inputs): (f64, &mut LastInputs),
        rounding: Rounding,
    ) -> Result<()> {
        let mut d = be.duplicate(w.as_mat(), DType::F32)?;
        if let Some((b, a)) = branch {
            let rounding = Rounding::Nearest;
            be.run(Fold { w: d.mat_mut(), keep: 1.0, scale: 1.0, b, a, rounding })?;
        }
        let Some(base) = &self.base else { unreachable!("a weight that is folded into has a base") };
        let base = base.tensor(be, w.dtype)?;
        be.axpy(-1.0, base.mat(), d.mat_mut())?;
        let inputs = inputs.known(be, &self.inputs)?;
        let d = shrink(be, d, &self.outputs, inputs, self.rate * strength)?;
        be.copy(base.mat(), w.reborrow())?;
        drop(base);
        match rounding {
            Rounding::Nearest => be.axpy(1.0, d.mat(), w),
            Rounding::Stochastic(seed) => add_rounded(be, w, &d, seed),
        }
    }

    /// The change `scale B A` of a layer with A held: B becomes the minimum of the same quadratic over B. With
    /// `G = A Aᵀ` that is the pull of `B G^1/2` with `G^-1/2 A C Aᵀ G^-1/2` in the place of C. Waits.
    pub fn factor(&self, be: &dyn Backend, b: MatMut, a: Mat, strength: f64) -> Result<()> {
        let seen = self.seen_through(be, a)?;
        let through = Through::of(&be.download_all(&seen.each_ref().map(Tensor::mat))?, a.rows)?;
        self.factor_through(be, b, &through, strength)
    }

    /// The same, with what was found of A.
    pub fn factor_through(&self, be: &dyn Backend, b: MatMut, a: &Through, strength: f64) -> Result<()> {
        let r = a.inputs.dim;
        let by = |m: &[f32]| be.tensor(m, r, r, DType::F32);
        let mut whitened = be.alloc(b.rows, r, DType::F32)?;
        be.product(whitened.mat_mut(), 0.0, 1.0, b.as_mat().n(), by(&a.root)?.mat().n())?;
        let inputs = Known::of(be, &a.inputs)?;
        let pulled = shrink(be, whitened, &self.outputs, &inputs, self.rate * strength)?;
        be.product(b, 0.0, 1.0, pulled.mat().n(), by(&a.inverse)?.mat().n())
    }

    /// `A Aᵀ` and `A C Aᵀ`, `[r x r]`.
    pub fn seen_through(&self, be: &dyn Backend, a: Mat) -> Result<[Tensor; 2]> {
        let (c, r) = (&self.inputs, a.rows);
        let mut gram = be.alloc(r, r, DType::F32)?;
        be.product(gram.mat_mut(), 0.0, 1.0, a.n(), a.t())?;
        let rows = scaled(c, |j| (c.values[j] - c.rest).abs().sqrt());
        let rows = be.tensor(&rows, c.kept(), c.dim, DType::F32)?;
        let mut along = be.alloc(r, c.kept(), DType::F32)?;
        be.product(along.mat_mut(), 0.0, 1.0, a.n(), rows.mat().t())?;
        let mut cost = be.duplicate(gram.mat(), DType::F32)?;
        be.scale(cost.mat_mut(), c.rest as f32)?;
        let above = c.values.iter().take_while(|v| **v >= c.rest).count();
        for (columns, sign) in [(0..above, 1.0), (above..c.kept(), -1.0)] {
            let part = along.mat().col_range(columns);
            if part.cols > 0 {
                be.product(cost.mat_mut(), 1.0, sign, part.n(), part.t())?;
            }
        }
        Ok([gram, cost])
    }
}

/// A of a change `B A`, as the pull of B sees it; `[r x r]` each.
pub(super) struct Through {
    /// G^1/2.
    root: Vec<f32>,
    /// G^-1/2.
    inverse: Vec<f32>,
    /// `G^-1/2 A C Aᵀ G^-1/2`.
    inputs: Spectrum,
}

impl Through {
    /// From the values of [`Pull::seen_through`].
    pub fn of(seen: &[Vec<f32>], r: usize) -> Result<Self> {
        let (values, vectors) = symmetric_eigen(&seen[0], r)?;
        let largest = values.first().copied().unwrap_or(0.0);
        let power = |p: f64| -> Vec<f32> {
            let factor = |v: f64| if v > 1e-10 * largest { v.powf(p) } else { 0.0 };
            symmetric(&vectors, &values.iter().map(|v| factor(*v)).collect::<Vec<_>>())
        };
        let (root, inverse) = (power(0.5), power(-0.5));
        let inner = product(&product(&inverse, &seen[1], r), &inverse, r);
        let (values, directions) = symmetric_eigen(&inner, r)?;
        let values = values.into_iter().map(|v| v.max(0.0)).collect();
        let inputs = Spectrum { dim: r, directions, values, ..Spectrum::default() };
        Ok(Self { root, inverse, inputs })
    }
}

/// `W += D`, rounded stochastically, once, a few columns at a time.
fn add_rounded(be: &dyn Backend, mut w: MatMut, d: &Tensor, seed: u64) -> Result<()> {
    for from in (0..d.cols()).step_by(ROUNDED) {
        let columns = from..(from + ROUNDED).min(d.cols());
        let (x, y) = (d.mat().col_range(columns.clone()), w.reborrow().col_range(columns));
        be.run(AddRounded { x, y, seed: seed.wrapping_add((from as u64) << 20) })?;
    }
    Ok(())
}

/// Known directions, each times a factor.
fn scaled(c: &Spectrum, factor: impl Fn(usize) -> f64) -> Vec<f32> {
    let rows = c.directions.chunks_exact(c.dim.max(1)).enumerate();
    rows.flat_map(|(j, row)| {
        let factor = factor(j);
        row.iter().map(move |v| (f64::from(*v) * factor) as f32)
    })
    .collect()
}

/// A second moment on the device, for the time of one pull.
struct Known {
    /// U, `[k x n]`.
    directions: Tensor,
    /// `[1 x k]`.
    values: Tensor,
    /// That of all other directions, if there are others.
    rest: Option<f32>,
}

impl Known {
    fn of(be: &dyn Backend, s: &Spectrum) -> Result<Self> {
        let values: Vec<f32> = s.values.iter().map(|v| v.max(0.0) as f32).collect();
        Ok(Self {
            directions: be.tensor(&s.directions, s.kept(), s.dim, DType::F32)?,
            values: be.tensor(&values, 1, values.len(), DType::F32)?,
            rest: (s.kept() < s.dim).then_some(s.rest.max(0.0) as f32),
        })
    }

    /// Of a side along the known directions.
    fn known(&self) -> Eigenvalues<'_> {
        Eigenvalues { known: Some(self.values.mat()), rest: self.rest }
    }

    /// Of a side along all others.
    fn others(&self) -> Eigenvalues<'_> {
        Eigenvalues { known: None, rest: self.rest }
    }
}

/// The second moment of the inputs of the layer that was pulled last: those that read the same input follow each other, and
/// it goes to the device once for all of them.
#[derive(Default)]
pub(super) struct LastInputs(Option<(Arc<Spectrum>, Known)>);

impl LastInputs {
    fn known(&mut self, be: &dyn Backend, s: &Arc<Spectrum>) -> Result<&Known> {
        let last = self.0.take().filter(|(last, _)| Arc::ptr_eq(last, s));
        let this = match last {
            Some(last) => last,
            None => (Arc::clone(s), Known::of(be, s)?),
        };
        Ok(&self.0.insert(this).1)
    }
}

/// `D_ab / (1 + tau f_a c_b)` in the eigenbases of F and C, `D [M x N]` f32. Where not all directions of a side are known the
/// others count as one, with their mean eigenvalue: `(k_F + 1) (k_C + 1)` blocks,
///
/// `D' = g_00 D + D U_Cᵀ diag(g_0b - g_00) U_C + U_Fᵀ (diag(g_a0 - g_00) U_F D + (e ∘ U_F D U_Cᵀ) U_C)`
///
/// with `g_ab = 1 / (1 + tau f_a c_b)` and `e_ab = g_ab - g_a0 - g_0b + g_00`; where a side has no others, their factors are 0.
/// Nothing here waits for the device.
fn shrink(be: &dyn Backend, mut d: Tensor, f: &Spectrum, c: &Known, tau: f64) -> Result<Tensor> {
    let ((m, n), tau, f) = (d.shape(), tau as f32, Known::of(be, f)?);
    let (uf, uc) = (f.directions.mat(), c.directions.mat());
    let by_factors = |x: &mut Tensor, rows: Eigenvalues, cols: Eigenvalues| {
        be.run(Shrink { x: x.mat_mut(), rows, cols, tau })
    };
    let add = |to: &mut Tensor, sums: bool, a: Operand, b: Operand| {
        let beta = if sums { 1.0 } else { 0.0 };
        be.run(MatmulSplit(Matmul { c: to.mat_mut(), beta, alpha: 1.0, a, b }))
    };
    let product = |rows, cols, a: Operand, b: Operand| -> Result<Tensor> {
        let mut to = be.alloc(rows, cols, DType::F32)?;
        add(&mut to, false, a, b)?;
        Ok(to)
    };
    let mut along_f = product(uf.rows, n, uf.n(), d.mat().n())?;
    let mut along_both = product(uf.rows, uc.rows, along_f.mat().n(), uc.t())?;
    by_factors(&mut along_both, f.known(), c.known())?;
    if c.rest.is_some() {
        by_factors(&mut along_f, f.known(), c.others())?;
    }
    add(&mut along_f, c.rest.is_some(), along_both.mat().n(), uc.n())?;
    drop(along_both);
    if f.rest.is_some() {
        let mut along_c = product(m, uc.rows, d.mat().n(), uc.t())?;
        by_factors(&mut along_c, f.others(), c.known())?;
        if c.rest.is_some() {
            by_factors(&mut d, f.others(), c.others())?;
        }
        add(&mut d, c.rest.is_some(), along_c.mat().n(), uc.n())?;
    }
    add(&mut d, f.rest.is_some(), uf.t(), along_f.mat().n())?;
    Ok(d)
}

/// `Σ_j values_j v_j v_jᵀ` of the rows of `vectors`.
fn symmetric(vectors: &[f32], values: &[f64]) -> Vec<f32> {
    let r = values.len();
    let at = |i: usize, j: usize| {
        let term = |k: usize| values[k] * f64::from(vectors[k * r + i]) * f64::from(vectors[k * r + j]);
        (0..r).map(term).sum::<f64>() as f32
    };
    (0..r * r).map(|e| at(e / r, e % r)).collect()
}

/// The product of two `[r x r]` matrices.
fn product(a: &[f32], b: &[f32], r: usize) -> Vec<f32> {
    let at = |i: usize, j: usize| {
        (0..r).map(|k| f64::from(a[i * r + k]) * f64::from(b[k * r + j])).sum::<f64>() as f32
    };
    (0..r * r).map(|e| at(e / r, e % r)).collect()
}
