//! From the gradients that windows summed to new bases, for many layers at once.
//!
//! Every stage is launched for all layers before anything is waited for: the host reads the small eigenproblems
//! of all layers together, once a subspace, and all energies once at the end. Within a layer the subspaces follow
//! each other, because a basis is kept off those before it.

use super::window::{GradientWindow, Ranks, Sketch};
use crate::backend::{Backend, DType, Dots, Mat, MatmulMany, OrthonormalizeRows, Tensor};
use crate::error::Result;
use crate::gems::linalg::{row_space, symmetric_eigen};
use crate::gems::metric::Metric;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// A layer whose bases are looked for.
pub(in crate::gems) struct Search {
    window: GradientWindow,
    ranks: Ranks,
    /// What the bases keep off: `[k x N]` orthonormal rows.
    protected: Option<Arc<Tensor>>,
    /// S and P: bases are looked for in P G S.
    metric: Option<Sides>,
    /// Each basis is kept off those before it.
    complementary: bool,
    /// Rows of Gaussian probes, a sketch's last.
    oversample: usize,
    /// The old basis of every subspace without a gradient.
    old: Vec<Option<Tensor>>,
    /// New bases, stacked.
    a: Tensor,
}

/// The knowledge metric of inputs, and of outputs.
type Sides = (Arc<Metric>, Arc<Metric>);

/// What new bases hold.
pub(in crate::gems) struct Found {
    /// Share of each subspace's gradient energy in its basis.
    pub energy: Vec<f64>,
    /// Share of the whole gradient's energy the null space leaves.
    pub room: f64,
}

impl Search {
    /// Ends a window. `old` bases serve the subspaces that had no gradient.
    pub fn new(
        be: &dyn Backend,
        mut window: GradientWindow,
        ranks: &Ranks,
        old: Option<Mat>,
        (protected, metric): (Option<Arc<Tensor>>, Option<Sides>),
        (complementary, oversample): (bool, usize),
    ) -> Result<Self> {
        window.close();
        let n = window.sums.first().map_or(0, Tensor::cols);
        let unseen = |s: usize| old.filter(|_| !window.has(s)).map(|old| old.row_range(ranks.columns(s)));
        let kept = |s| unseen(s).map(|basis| be.duplicate(basis, DType::F32)).transpose();
        Ok(Self {
            old: (0..ranks.count()).map(kept).collect::<Result<_>>()?,
            a: be.zeros(ranks.total(), n, DType::F32)?,
            ranks: ranks.clone(),
            window,
            protected,
            metric,
            complementary,
            oversample,
        })
    }

    /// Elements of the copies that are made of full gradients.
    pub fn copies(&self) -> usize {
        match self.window.sketch {
            Sketch::Exact => 3 * self.window.sums.iter().map(Tensor::len).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Where subspace s begins: the rows of its gradient, or its old basis, or no rows.
    fn begin(&mut self, be: &dyn Backend, s: usize) -> Result<Tensor> {
        let old = self.old[s].take();
        match (self.window.has(s), old) {
            (true, _) => {
                let rows = self.window.take_rows(s)?;
                self.whitened(be, rows)
            }
            (_, Some(old)) => Ok(old),
            _ => be.alloc(0, self.a.cols(), DType::F32),
        }
    }

    /// The rows of P G S, under the metric; a sketch has P in it already.
    fn whitened(&self, be: &dyn Backend, y: Tensor) -> Result<Tensor> {
        let Some((inputs, outputs)) = &self.metric else { return Ok(y) };
        let y = inputs.rows(be, y.mat())?;
        if self.window.sketch == Sketch::Exact { outputs.columns(be, y.mat()) } else { Ok(y) }
    }

    /// Rows of y whose energies stand for the gradient's: all, or those of the Gaussian probes; none of an old basis.
    fn sample(&self, s: usize, y: &Tensor) -> Range<usize> {
        match (self.window.has(s), self.window.sketch) {
            (false, _) => 0..0,
            (_, Sketch::Exact) => 0..y.rows(),
            _ => y.rows().saturating_sub(self.oversample)..y.rows(),
        }
    }

    /// The bases before subspace s, which its own keeps off.
    fn before(&self, s: usize) -> Option<Mat<'_>> {
        self.complementary.then(|| self.a.mat().row_range(0..self.ranks.columns(s).start))
    }

    /// Protected directions, which gradients are kept off; an old basis is already.
    fn protected(&self, s: usize) -> Option<Mat<'_>> {
        self.protected.as_ref().filter(|_| self.window.has(s)).map(|k| k.mat())
    }
}

/// Removes from the rows of every matrix (`[. x N]`) what lies in the span of its orthonormal rows (`[R x N]`).
pub(super) fn deflate<'a>(
    be: &dyn Backend,
    all: impl Iterator<Item = (&'a mut Tensor, Mat<'a>)>,
) -> Result<()> {
    let mut all: Vec<_> = all.filter(|(x, a)| x.rows() > 0 && a.rows > 0).collect();
    let new = |(x, a): &(&mut Tensor, Mat)| be.alloc(x.rows(), a.rows, DType::F32);
    let mut along = all.iter().map(new).collect::<Result<Vec<_>>>()?;
    let components = along.iter_mut().zip(&all).map(|(along, (x, a))| (along.mat_mut(), x.mat(), *a));
    be.run(MatmulMany { beta: 0.0, alpha: 1.0, transpose_b: true, products: components.collect() })?;
    let rests = all.iter_mut().zip(&along).map(|((x, a), along)| (x.mat_mut(), along.mat(), *a));
    be.run(MatmulMany { beta: 1.0, alpha: -1.0, transpose_b: false, products: rests.collect() })
}

/// Every layer's matrix with the space that it is to be kept off, where there is one.
fn off<'a>(
    layers: &'a [Search],
    all: &'a mut [Tensor],
    space: impl Fn(&'a Search) -> Option<Mat<'a>>,
) -> impl Iterator<Item = (&'a mut Tensor, Mat<'a>)> {
    layers.iter().zip(all).filter_map(move |(layer, x)| Some((x, space(layer)?)))
}

/// Squared norms of a matrix of every layer, stage by stage; read once.
struct Energies<'a> {
    backend: &'a dyn Backend,
    /// `[stages x layers]`.
    values: Tensor,
}

impl Energies<'_> {
    fn measure<'m>(&mut self, stage: usize, of: impl Iterator<Item = Mat<'m>>) -> Result<()> {
        let pairs: Vec<(Mat, Mat)> = of.map(|m| (m, m)).collect();
        self.backend.run(Dots { pairs, out: self.values.mat_mut().row_range(stage..stage + 1) })
    }
}

/// New bases of all `layers`, stacked: `[R x N]` f32 each. Waits once a subspace, and once more.
pub(super) fn find(be: &dyn Backend, mut layers: Vec<Search>) -> Result<Vec<(Tensor, Found)>> {
    let count = layers.iter().map(|l| l.ranks.count()).max().unwrap_or(0);
    // Of every subspace the energy before and the energy held; then what the null space leaves of the first.
    let mut energies = Energies { backend: be, values: be.alloc(2 * count + 1, layers.len(), DType::F32)? };
    for s in 0..count {
        find_subspace(be, &mut layers, (s, 2 * count), &mut energies)?;
    }
    let (values, width) = (be.download(energies.values.mat())?, layers.len());
    let found = |(i, layer): (usize, Search)| {
        let share = |part: usize, whole: usize| {
            let (part, whole) = (f64::from(values[part * width + i]), f64::from(values[whole * width + i]));
            (whole > 0.0).then(|| part / whole)
        };
        let energy = (0..count).map(|s| share(2 * s + 1, 2 * s).unwrap_or(f64::NAN)).collect();
        (layer.a, Found { energy, room: share(2 * count, 0).unwrap_or(1.0) })
    };
    Ok(layers.into_iter().enumerate().map(found).collect())
}

fn find_subspace(
    be: &dyn Backend,
    layers: &mut [Search],
    (s, room): (usize, usize),
    energies: &mut Energies,
) -> Result<()> {
    let mut rows = layers.iter_mut().map(|l| l.begin(be, s)).collect::<Result<Vec<_>>>()?;
    let samples: Vec<_> = layers.iter().zip(&rows).map(|(l, y)| l.sample(s, y)).collect();
    energies.measure(2 * s, rows.iter().zip(&samples).map(|(y, r)| y.mat().row_range(r.clone())))?;
    deflate(be, off(layers, &mut rows, |l| l.protected(s)))?;
    let sampled =
        |(y, sample): (&Tensor, &Range<usize>)| be.duplicate(y.mat().row_range(sample.clone()), DType::F32);
    let free = rows.iter().zip(&samples).map(sampled).collect::<Result<Vec<_>>>()?;
    deflate(be, off(layers, &mut rows, |l| l.before(s)))?;
    if s == 0 {
        energies.measure(room, free.iter().map(Tensor::mat))?;
    }
    let seen = layers.iter().zip(&mut rows).filter(|(l, _)| l.window.has(s));
    lead(be, seen.map(|(l, rows)| Problem { rows, wanted: l.ranks.each[s] }).collect())?;
    let mut bases = rows;
    // Rounding in the last products can tilt a basis back by a few units in the last place.
    deflate(be, off(layers, &mut bases, |l| l.protected(s)))?;
    deflate(be, off(layers, &mut bases, |l| l.before(s)))?;
    be.run(OrthonormalizeRows { matrices: bases.iter_mut().map(Tensor::mat_mut).collect() })?;
    let new = |(free, basis): (&Tensor, &Tensor)| be.alloc(free.rows(), basis.rows(), DType::F32);
    let mut along = free.iter().zip(&bases).map(new).collect::<Result<Vec<_>>>()?;
    let held = along.iter_mut().zip(&free).zip(&bases).map(|((c, a), b)| (c.mat_mut(), a.mat(), b.mat()));
    be.run(MatmulMany { beta: 0.0, alpha: 1.0, transpose_b: true, products: held.collect() })?;
    for (layer, basis) in layers.iter_mut().zip(&bases) {
        let first = layer.ranks.columns(s).start;
        be.copy(basis.mat(), layer.a.mat_mut().row_range(first..first + basis.rows()))?;
    }
    energies.measure(2 * s + 1, along.iter().map(Tensor::mat))
}

/// A matrix that its leading right singular vectors are to replace.
struct Problem<'a> {
    rows: &'a mut Tensor,
    /// How many: zero rows follow where there are fewer.
    wanted: usize,
}

impl Problem<'_> {
    /// Small gradients are decomposed as they are, everything else through the Gram matrix of its rows.
    fn whole(&self) -> bool {
        let (rows, cols) = self.rows.shape();
        rows > 64 && rows.min(cols) <= 1024
    }

    /// Numbers that the host needs of each row, and of which its answer's rows are made.
    fn width(&self) -> usize {
        if self.whole() { self.rows.cols() } else { self.rows.rows() }
    }

    /// The vectors as rows, or what combines them from the matrix's rows.
    fn solve(&self, values: &[f32]) -> Result<Vec<f32>> {
        let (rows, cols) = self.rows.shape();
        if self.whole() {
            return Ok(row_space(values, rows, cols, self.wanted)?.vectors);
        }
        let (_, mut vectors) = symmetric_eigen(values, rows)?;
        vectors.truncate(self.wanted.min(rows) * rows);
        Ok(vectors)
    }
}

/// Puts the leading right singular vectors in place of every matrix. Waits once.
fn lead(be: &dyn Backend, problems: Vec<Problem>) -> Result<()> {
    let values = read(be, &problems)?;
    let mut rest = &values[..];
    let mut parts = Vec::new();
    for p in &problems {
        let (part, after) = rest.split_at(p.rows.rows() * p.width());
        rest = after;
        parts.push(part);
    }
    let solved = problems.par_iter().zip(parts).map(|(p, part)| p.solve(part));
    let solved = solved.collect::<Result<Vec<_>>>()?;
    combine(be, problems, &solved)
}

/// What the host needs of all problems, one after the other.
fn read(be: &dyn Backend, problems: &[Problem]) -> Result<Vec<f32>> {
    let grams = problems.iter().filter(|p| !p.whole());
    let gram = |p: &'_ Problem| be.alloc(p.width(), p.width(), DType::F32);
    let mut grams = grams.map(|p| Ok((gram(p)?, p.rows.mat()))).collect::<Result<Vec<_>>>()?;
    let products = grams.iter_mut().map(|(gram, y)| (gram.mat_mut(), *y, *y));
    be.run(MatmulMany { beta: 0.0, alpha: 1.0, transpose_b: true, products: products.collect() })?;
    let size = |p: &Problem| p.rows.rows() * p.width();
    let mut all = be.alloc(1, problems.iter().map(size).sum(), DType::F32)?;
    let (mut at, mut grams) = (0, grams.iter());
    for p in problems {
        let gram = if p.whole() { None } else { grams.next() };
        let from = gram.map_or(p.rows.mat(), |(gram, _)| gram.mat()).reshape(1, size(p));
        be.copy(from, all.mat_mut().col_range(at..at + size(p)))?;
        at += size(p);
    }
    be.download(all.mat())
}

/// Replaces the matrices by what was found.
fn combine(be: &dyn Backend, problems: Vec<Problem>, solved: &[Vec<f32>]) -> Result<()> {
    let joined = solved.concat();
    let vectors = be.tensor(&joined, 1, joined.len(), DType::F32)?;
    let mut at = 0;
    let mut bases = Vec::new();
    for (p, solved) in problems.iter().zip(solved) {
        let from = vectors.mat().col_range(at..at + solved.len());
        at += solved.len();
        let got = solved.len() / p.width();
        let (count, cols) = (p.wanted, p.rows.cols());
        let basis =
            if got == count { be.alloc(count, cols, DType::F32) } else { be.zeros(count, cols, DType::F32) };
        bases.push((basis?, from.reshape(got, p.width())));
    }
    let mut products = Vec::new();
    for ((basis, from), p) in bases.iter_mut().zip(&problems) {
        let to = basis.mat_mut().row_range(0..from.rows);
        match p.whole() {
            true => be.copy(*from, to)?,
            false => products.push((to, *from, p.rows.mat())),
        }
    }
    be.run(MatmulMany { beta: 0.0, alpha: 1.0, transpose_b: false, products })?;
    problems.into_iter().zip(bases).for_each(|(p, (basis, _))| *p.rows = basis);
    Ok(())
}
