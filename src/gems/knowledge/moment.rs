//! Second moments of streamed vectors, and their spectra.
//!
//! Up to [`WHOLE`] dimensions `Σ x xᵀ` is summed and decomposed as it is. Above, n x n never exists: one pass keeps
//! `Y = Ω Σ x xᵀ` `[q x n]`, where the rows of Ω are random and orthonormal, and `Σ |x|²`, which is the trace. The Nyström
//! approximation `Yᵀ (Ω Yᵀ)^-1 Y` has the leading eigenvectors of the moment, as good as the best ones where eigenvalues
//! fall (Tropp, Yurtsever, Udell and Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming
//! data", 2017, algorithm 3). What it leaves of the trace is the mean eigenvalue of the other directions.

use super::Spectrum;
use crate::backend::{Backend, DType, Dots, GradBlock, Mat, OrthonormalizeRows, Tensor, WeightGrad, Write};
use crate::error::{Error, Result};
use crate::gems::linalg::{nystrom_eigen, symmetric_eigen};
use crate::random::{self, Purpose};
use rayon::prelude::*;
use std::sync::Arc;

/// Dimensions up to which a second moment is kept whole.
pub const WHOLE: usize = 1024;
/// Partial sums of squares.
const PARTS: usize = 64;
/// Eigenvalues of a sketch's core that are rounding, relative to the sketch's norm: what sums in f32 leave.
const ROUNDING: f64 = 1e-7;

/// Rows of the sketch of a moment of `dim` dimensions of which `directions` are to be kept: a quarter more.
pub fn sketch_rows(dim: usize, directions: usize) -> usize {
    (directions + directions.div_ceil(4)).min(dim)
}

/// Ω: random orthonormal rows `[q x dim]` in the type that layers compute in, the same for equal arguments.
pub fn test_matrix(backend: &Arc<dyn Backend>, dim: usize, rows: usize, seed: u64) -> Result<Arc<Tensor>> {
    let values = random::normal(seed, Purpose::Sketch, 60, dim as u64, rows * dim);
    let mut omega = backend.tensor(&values, rows, dim, DType::F32)?;
    backend.run(OrthonormalizeRows { matrices: vec![omega.mat_mut()] })?;
    Ok(Arc::new(match backend.compute_dtype() {
        DType::F32 => omega,
        dtype => backend.duplicate(omega.mat(), dtype)?,
    }))
}

/// A sum `Σ x xᵀ` over streamed vectors, or what is kept of it.
pub struct Moment {
    backend: Arc<dyn Backend>,
    dim: usize,
    pub(super) rows: usize,
    /// `Σ x xᵀ` `[n x n]`, or Y `[q x n]`.
    pub(super) sum: Tensor,
    pub(super) sketch: Option<Sketch>,
}

/// What belongs to a sketch.
pub(super) struct Sketch {
    omega: Arc<Tensor>,
    /// `Σ |x|²` in parts, `[1 x PARTS]`.
    pub squares: Tensor,
}

impl Moment {
    /// An empty sum over vectors of `dim` numbers, kept whole.
    pub fn whole(backend: &Arc<dyn Backend>, dim: usize) -> Result<Self> {
        let sum = backend.zeros(dim, dim, DType::F32)?;
        Ok(Self { backend: Arc::clone(backend), dim, rows: 0, sum, sketch: None })
    }

    /// An empty sketch by Ω `[q x dim]` (see [`test_matrix`]).
    pub fn sketched(backend: &Arc<dyn Backend>, omega: &Arc<Tensor>) -> Result<Self> {
        let (q, dim) = omega.shape();
        let (sum, squares) = (backend.zeros(q, dim, DType::F32)?, backend.zeros(1, PARTS, DType::F32)?);
        let sketch = Some(Sketch { omega: Arc::clone(omega), squares });
        Ok(Self { backend: Arc::clone(backend), dim, rows: 0, sum, sketch })
    }

    /// Vectors summed so far.
    pub fn samples(&self) -> usize {
        self.rows
    }

    /// Adds rows of vectors.
    pub fn add(&mut self, x: Mat) -> Result<()> {
        if x.rows == 0 {
            return Ok(());
        }
        self.rows += x.rows;
        let be = &self.backend;
        let blocks = &[GradBlock::whole(0..x.rows, x.cols)];
        let (out, write) = (self.sum.mat_mut(), Write::Add);
        let Some(Sketch { omega, squares }) = &mut self.sketch else {
            return be.run(WeightGrad { dy: x, x, blocks, out, write, gram: None });
        };
        let mut z = be.alloc(x.rows, omega.rows(), x.dtype)?;
        be.product(z.mat_mut(), 0.0, 1.0, x.n(), omega.mat().t())?;
        be.run(WeightGrad { dy: z.mat(), x, blocks, out, write, gram: None })?;
        let wide = if x.dtype == DType::F32 { None } else { Some(be.duplicate(x, DType::F32)?) };
        let x = wide.as_ref().map_or(x, Tensor::mat);
        let step = x.rows.div_ceil(PARTS);
        let part = |start: usize| x.row_range(start..(start + step).min(x.rows));
        let pairs: Vec<(Mat, Mat)> = (0..x.rows).step_by(step).map(|s| (part(s), part(s))).collect();
        let (count, mut fresh) = (pairs.len(), be.alloc(1, PARTS, DType::F32)?);
        be.run(Dots { pairs, out: fresh.mat_mut() })?;
        be.axpy(1.0, fresh.mat().col_range(0..count), squares.mat_mut().col_range(0..count))
    }

    /// The mean `E[x xᵀ]`, row by row, of a moment that is kept whole.
    pub fn mean(&self) -> Result<Vec<f32>> {
        let mut values = self.backend.download(self.sum.mat())?;
        let n = self.rows.max(1) as f32;
        values.iter_mut().for_each(|v| *v /= n);
        Ok(values)
    }

    /// The spectra of moments, by name; of a sketch the leading `directions`. Those of sketches are found together: a
    /// device orthonormalises many matrices in the time of one.
    ///
    /// # Errors
    /// A moment over no vector, or of zeros, NaN or infinity; a device that fails.
    pub fn spectra(moments: &[(&str, &Self)], directions: usize) -> Result<Vec<Spectrum>> {
        let (mut sketches, mut of_sketches) = (Vec::new(), Vec::new());
        for (name, moment) in moments.iter().filter(|(_, m)| m.sketch.is_some()) {
            sketches.push(moment.factored().map_err(|e| e.at(name))?);
        }
        if let Some((_, first)) = moments.first() {
            let matrices = sketches.iter_mut().map(|s| s.q.mat_mut()).collect();
            first.backend.run(OrthonormalizeRows { matrices })?;
        }
        for ((name, moment), sketch) in moments.iter().filter(|(_, m)| m.sketch.is_some()).zip(sketches) {
            of_sketches.push(moment.nystrom(&sketch, directions).map_err(|e| e.at(name))?);
        }
        let (mut of_sketches, mut all) = (of_sketches.into_iter(), Vec::with_capacity(moments.len()));
        for some in moments.chunks(rayon::current_num_threads()) {
            let of_whole = Self::decomposed(some)?;
            all.extend(some.iter().zip(of_whole).map(|((name, _), found)| {
                let found = found.or_else(|| of_sketches.next()).unwrap_or_default();
                Spectrum { name: (*name).to_string(), ..found }
            }));
        }
        Ok(all)
    }

    /// The spectra of those that are kept whole, side by side.
    fn decomposed(moments: &[(&str, &Self)]) -> Result<Vec<Option<Spectrum>>> {
        // The device gives them one after the other.
        let mean = |(name, moment): &(&str, &Self)| {
            let mean = || moment.seen().and_then(|()| moment.mean()).map_err(|e| e.at(name));
            moment.sketch.is_none().then(mean).transpose()
        };
        let means = moments.iter().map(mean).collect::<Result<Vec<Option<Vec<f32>>>>>()?;
        let sizes = moments.iter().map(|(name, m)| (*name, m.dim, m.rows));
        let all: Vec<_> = sizes.zip(means).collect();
        let spectrum = |((name, dim, rows), mean): ((&str, usize, usize), Option<Vec<f32>>)| {
            mean.map(|mean| Self::spectrum_of(&mean, dim, rows).map_err(|e| e.at(name))).transpose()
        };
        all.into_par_iter().map(spectrum).collect()
    }

    /// The whole spectrum of a mean of `rows` vectors.
    fn spectrum_of(mean: &[f32], dim: usize, rows: usize) -> Result<Spectrum> {
        let (values, directions) = symmetric_eigen(mean, dim)?;
        // A sum of fewer vectors than dimensions has no more eigenvalues than vectors; what looks like more is rounding.
        let known = |(i, v): (usize, f64)| if i < rows { v.max(0.0) } else { 0.0 };
        let values: Vec<f64> = values.into_iter().enumerate().map(known).collect();
        nonzero(values.iter().sum())?;
        Ok(Spectrum { dim, directions, values, rest: 0.0, samples: rows, ..Spectrum::default() })
    }

    fn seen(&self) -> Result<()> {
        if self.rows > 0 {
            return Ok(());
        }
        Err(Error::data("the general text is too short: no vector was seen")
            .remedy("give texts of more than one token, or more of them"))
    }

    /// What is needed of a sketch, with a copy of Y that is to be orthonormalised.
    fn factored(&self) -> Result<Factored> {
        self.seen()?;
        let (be, Some(sketch)) = (&self.backend, &self.sketch) else { unreachable!("asked of a sketch") };
        let squares = be.download(sketch.squares.mat())?;
        let trace = squares.iter().map(|v| f64::from(*v)).sum::<f64>();
        let mut norm = be.alloc(1, 1, DType::F32)?;
        be.run(Dots { pairs: vec![(self.sum.mat(), self.sum.mat())], out: norm.mat_mut() })?;
        let norm = f64::from(be.download(norm.mat())?[0]).sqrt();
        if !trace.is_finite() || !norm.is_finite() {
            return Err(Error::numeric("a second moment holds NaN or infinity"));
        }
        nonzero(trace)?;
        Ok(Factored { q: be.duplicate(self.sum.mat(), DType::F32)?, trace, rounding: ROUNDING * norm })
    }

    /// The leading eigenvectors by the Nyström approximation.
    fn nystrom(&self, s: &Factored, directions: usize) -> Result<Spectrum> {
        let (be, Some(sketch)) = (&self.backend, &self.sketch) else { unreachable!("asked of a sketch") };
        let rows = self.sum.rows();
        let small = |left: Mat| -> Result<Vec<f32>> {
            let mut product = be.alloc(rows, rows, DType::F32)?;
            be.product(product.mat_mut(), 0.0, 1.0, left.n(), self.sum.mat().t())?;
            be.download(product.mat())
        };
        let (r, b) = (small(s.q.mat())?, small(sketch.omega.mat())?);
        let (values, vectors) = nystrom_eigen(&r, &b, rows, s.rounding)?;
        let values: Vec<f64> = values.into_iter().take_while(|v| *v > s.rounding).collect();
        let k = values.len().min(directions).min(self.rows);
        let u = be.tensor(&vectors[..k * rows], k, rows, DType::F32)?;
        let mut found = be.alloc(k, self.dim, DType::F32)?;
        be.product(found.mat_mut(), 0.0, 1.0, u.mat().n(), s.q.mat().n())?;
        let n = self.rows as f64;
        let values: Vec<f64> = values[..k].iter().map(|v| v / n).collect();
        let (trace, held) = (s.trace / n, values.iter().sum::<f64>());
        // As many directions as vectors are all that there is.
        let left = if self.rows <= directions { 0.0 } else { (trace - held).max(0.0) };
        let rest = left / (self.dim - k).max(1) as f64;
        let directions = be.download(found.mat())?;
        Ok(Spectrum { dim: self.dim, directions, values, rest, samples: self.rows, ..Spectrum::default() })
    }
}

/// A sketch on its way to a spectrum.
struct Factored {
    /// Y, then its orthonormal rows.
    q: Tensor,
    trace: f64,
    /// What is no larger than this is rounding.
    rounding: f64,
}

fn nonzero(trace: f64) -> Result<()> {
    if trace > 0.0 {
        return Ok(());
    }
    Err(Error::numeric("it is zero on all of the general text")
        .remedy(
            "look at the model's weights: a layer that sees or sends back nothing but zeros is dead; to tune it all the \
             same, set null_space.side = \"none\" and null_space.item_rows = 0",
        ))
}
