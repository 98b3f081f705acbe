//! The pull: at every fold, what was learned is drawn back towards the base model, by what it costs.
//!
//! `D = W - W_base` becomes the minimum of `1/2 |D' - D|² + tau/2 tr(F D' C D'ᵀ)`: the proximal step of the forecast of the
//! divergence. In the eigenbases of F and C that is `D'_ab = D_ab / (1 + tau f_a c_b)`. (Elastic weight consolidation,
//! Kirkpatrick et al. 2017, with Kronecker factors, Ritter et al. 2018; with F and C constant, the pull of L2-SP, Li et al. 2018.)

use super::knowledge::Spectrum;
use super::linalg::symmetric_eigen;
use crate::backend::{Backend, DType, Fold, HostCopy, Mat, MatMut, Rounding, Tensor};
use crate::error::Result;
use std::sync::Arc;

/// The pull on one layer. All of it waits on the host: one layer at a time is on the device.
pub(super) struct Pull {
    /// `None`: of a weight in codes, to which nothing is added: then [`Pull::factor`] alone serves.
    base: Option<HostCopy>,
    inputs: Arc<Spectrum>,
    outputs: Arc<Spectrum>,
    /// `tau` at the top of the schedule.
    rate: f64,
}

/// Columns that are rounded together.
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
        strength: f64,
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
        let d = shrink(be, d, &self.outputs, &self.inputs, self.rate * strength)?;
        be.copy(base.mat(), w.reborrow())?;
        drop(base);
        match rounding {
            Rounding::Nearest => be.axpy(1.0, d.mat(), w),
            Rounding::Stochastic(seed) => add_rounded(be, w, &d, seed),
        }
    }

    /// The change `scale B A` of a layer with A held: B becomes the minimum of the same quadratic over B. With
    /// `G = A Aᵀ` that is the pull of `B G^1/2` with `G^-1/2 A C Aᵀ G^-1/2` in the place of C.
    pub fn factor(&self, be: &dyn Backend, b: MatMut, a: Mat, strength: f64) -> Result<()> {
        let (gram, cost) = self.seen_through(be, a)?;
        let r = a.rows;
        let (values, vectors) = symmetric_eigen(&gram, r)?;
        let largest = values.first().copied().unwrap_or(0.0);
        let power = |p: f64| -> Vec<f32> {
            let factor = |v: f64| if v > 1e-10 * largest { v.powf(p) } else { 0.0 };
            symmetric(&vectors, &values.iter().map(|v| factor(*v)).collect::<Vec<_>>())
        };
        let (root, inverse) = (power(0.5), power(-0.5));
        let inner = product(&product(&inverse, &cost, r), &inverse, r);
        let (values, directions) = symmetric_eigen(&inner, r)?;
        let values = values.into_iter().map(|v| v.max(0.0)).collect();
        let inputs = Spectrum { dim: r, directions, values, ..Spectrum::default() };
        let by = |m: &[f32]| be.tensor(m, r, r, DType::F32);
        let mut whitened = be.alloc(b.rows, r, DType::F32)?;
        be.product(whitened.mat_mut(), 0.0, 1.0, b.as_mat().n(), by(&root)?.mat().n())?;
        let pulled = shrink(be, whitened, &self.outputs, &inputs, self.rate * strength)?;
        be.product(b, 0.0, 1.0, pulled.mat().n(), by(&inverse)?.mat().n())
    }

    /// `A Aᵀ` and `A C Aᵀ`, `[r x r]`.
    fn seen_through(&self, be: &dyn Backend, a: Mat) -> Result<(Vec<f32>, Vec<f32>)> {
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
        Ok((be.download(gram.mat())?, be.download(cost.mat())?))
    }
}

/// `W += D`, rounded stochastically, once: as a fold of D with the identity, a few columns at a time.
fn add_rounded(be: &dyn Backend, mut w: MatMut, d: &Tensor, seed: u64) -> Result<()> {
    let size = ROUNDED.min(d.cols());
    let identity: Vec<f32> = (0..size * size).map(|i| f32::from(i / size == i % size)).collect();
    let identity = be.tensor(&identity, size, size, w.dtype)?;
    for from in (0..d.cols()).step_by(size.max(1)) {
        let columns = from..(from + size).min(d.cols());
        let a = identity.mat().row_range(0..columns.len()).col_range(0..columns.len());
        let (b, w) = (d.mat().col_range(columns.clone()), w.reborrow().col_range(columns));
        let rounding = Rounding::Stochastic(seed.wrapping_add((from as u64) << 20));
        be.run(Fold { w, keep: 1.0, scale: 1.0, b, a, rounding })?;
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

/// `D_ab / (1 + tau f_a c_b)` in the eigenbases of F and C, `D [M x N]` f32. Where not all directions of a side are known the
/// others count as one, with their mean eigenvalue: `(k_F + 1) (k_C + 1)` blocks,
///
/// `D' = g_00 D + U_Fᵀ diag(g_a0 - g_00) U_F D + D U_Cᵀ diag(g_0b - g_00) U_C + U_Fᵀ (e ∘ U_F D U_Cᵀ) U_C`
///
/// with `g_ab = 1 / (1 + tau f_a c_b)` and `e_ab = g_ab - g_a0 - g_0b + g_00`; where a side has no others, their factors are 0.
pub(super) fn shrink(
    be: &dyn Backend,
    mut d: Tensor,
    f: &Spectrum,
    c: &Spectrum,
    tau: f64,
) -> Result<Tensor> {
    let ((m, n), (kf, kc)) = (d.shape(), (f.kept(), c.kept()));
    let (others_f, others_c) = (kf < m, kc < n);
    let kept = |f: f64, c: f64| 1.0 / (1.0 + tau * f.max(0.0) * c.max(0.0));
    let of_f = |a: usize| if others_c { kept(f.values[a], c.rest) } else { 0.0 };
    let of_c = |b: usize| if others_f { kept(f.rest, c.values[b]) } else { 0.0 };
    let of_others = if others_f && others_c { kept(f.rest, c.rest) } else { 0.0 };
    let uf = be.tensor(&f.directions, kf, m, DType::F32)?;
    let uc = be.tensor(&c.directions, kc, n, DType::F32)?;
    // Along both sides' known directions.
    let mut along = be.alloc(kf, n, DType::F32)?;
    be.product(along.mat_mut(), 0.0, 1.0, uf.mat().n(), d.mat().n())?;
    let mut both = be.alloc(kf, kc, DType::F32)?;
    be.product(both.mat_mut(), 0.0, 1.0, along.mat().n(), uc.mat().t())?;
    let mut values = be.download(both.mat())?;
    for (i, value) in values.iter_mut().enumerate() {
        let (a, b) = (i / kc, i % kc);
        let factor = kept(f.values[a], c.values[b]) - of_f(a) - of_c(b) + of_others;
        *value = (f64::from(*value) * factor) as f32;
    }
    be.upload(&values, both.mat_mut())?;
    let before = d;
    d = be.duplicate(before.mat(), DType::F32)?;
    be.scale(d.mat_mut(), of_others as f32)?;
    if others_c {
        let weighed = be.tensor(&scaled(f, |a| of_f(a) - of_others), kf, m, DType::F32)?;
        be.product(d.mat_mut(), 1.0, 1.0, weighed.mat().t(), along.mat().n())?;
    }
    if others_f {
        let mut along = be.alloc(m, kc, DType::F32)?;
        be.product(along.mat_mut(), 0.0, 1.0, before.mat().n(), uc.mat().t())?;
        let weighed = be.tensor(&scaled(c, |b| of_c(b) - of_others), kc, n, DType::F32)?;
        be.product(d.mat_mut(), 1.0, 1.0, along.mat().n(), weighed.mat().n())?;
    }
    drop(before);
    be.product(along.mat_mut(), 0.0, 1.0, both.mat().n(), uc.mat().n())?;
    be.product(d.mat_mut(), 1.0, 1.0, uf.mat().t(), along.mat().n())?;
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
