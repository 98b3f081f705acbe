//! From the gradients that windows summed to new bases, for many layers at once.
//!
//! Every stage is launched for all layers before anything is waited for: the host reads the small eigenproblems
//! of all layers together, once a stream, and all energies once at the end. Within a layer the streams follow
//! each other, because a basis is kept off those before it.

use super::engine::deflate_rows;
use super::linalg::{row_space, symmetric_eigen};
use super::window::{Pass, Streams, Window};
use crate::backend::{Backend, DType, Mat, Op, Tensor};
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// A layer whose bases are looked for.
pub(super) struct Search {
    window: Window,
    streams: Streams,
    /// What the bases keep off: `[k x N]` orthonormal rows.
    protected: Option<Arc<Tensor>>,
    /// Each basis is kept off those before it.
    complementary: bool,
    /// Rows of Gaussian probes, a sketch's last.
    oversample: usize,
    /// The old basis of every stream without a gradient.
    old: Vec<Option<Tensor>>,
    /// New bases, stacked.
    a: Tensor,
}

/// What new bases hold.
pub(super) struct Found {
    /// Share of each stream's gradient energy in its basis.
    pub energy: Vec<f64>,
    /// Share of the whole gradient's energy the null space leaves.
    pub room: f64,
}

impl Search {
    /// Ends a window. `old` bases serve the streams that had no gradient.
    pub fn new(
        be: &dyn Backend,
        mut window: Window,
        streams: &Streams,
        old: Option<Mat>,
        protected: Option<Arc<Tensor>>,
        (complementary, oversample): (bool, usize),
    ) -> Result<Self> {
        window.close();
        let n = window.sums.first().map_or(0, Tensor::cols);
        let unseen = |s: usize| old.filter(|_| !window.has(s)).map(|old| old.row_range(streams.columns(s)));
        let kept = |s| unseen(s).map(|basis| be.duplicate(basis, DType::F32)).transpose();
        Ok(Self {
            old: (0..streams.ranks.len()).map(kept).collect::<Result<_>>()?,
            a: be.zeros(streams.total(), n, DType::F32)?,
            streams: streams.clone(),
            window,
            protected,
            complementary,
            oversample,
        })
    }

    /// Elements of the copies that are made of full gradients.
    pub fn copies(&self) -> usize {
        match self.window.pass {
            Pass::Exact => 3 * self.window.sums.iter().map(Tensor::len).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Where stream s begins: the rows of its gradient, or its old basis, or no rows.
    fn begin(&mut self, be: &dyn Backend, s: usize) -> Result<Tensor> {
        match (self.window.has(s), self.old[s].take()) {
            (true, _) => self.window.take_rows(s),
            (_, Some(old)) => Ok(old),
            _ => be.alloc(0, self.a.cols(), DType::F32),
        }
    }

    /// Rows of y whose energies stand for the gradient's: all, or those of the Gaussian probes; none of an old basis.
    fn sample(&self, s: usize, y: &Tensor) -> Range<usize> {
        match (self.window.has(s), self.window.pass) {
            (false, _) => 0..0,
            (_, Pass::Exact) => 0..y.rows(),
            _ => y.rows().saturating_sub(self.oversample)..y.rows(),
        }
    }

    /// The bases before stream s, which its own keeps off.
    fn before(&self, s: usize) -> Mat<'_> {
        let rows = if self.complementary { self.streams.columns(s).start } else { 0 };
        self.a.mat().row_range(0..rows)
    }

    /// Keeps the rows of x off protected directions.
    fn protect(&self, be: &dyn Backend, x: &mut Tensor) -> Result<()> {
        self.protected.as_ref().map_or(Ok(()), |k| deflate_rows(be, x, k.mat()))
    }
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
        self.backend.dots(&pairs, self.values.mat_mut().row_range(stage..stage + 1))
    }
}

/// New bases of all `layers`, stacked: `[R x N]` f32 each. Waits once a stream, and once more.
pub(super) fn find(be: &dyn Backend, mut layers: Vec<Search>) -> Result<Vec<(Tensor, Found)>> {
    let streams = layers.iter().map(|l| l.streams.ranks.len()).max().unwrap_or(0);
    // Of every stream the energy before and the energy held; then what the null space leaves of the first.
    let mut energies = Energies { backend: be, values: be.alloc(2 * streams + 1, layers.len(), DType::F32)? };
    for s in 0..streams {
        find_stream(be, &mut layers, (s, 2 * streams), &mut energies)?;
    }
    let (values, count) = (be.download(energies.values.mat())?, layers.len());
    let found = |(i, layer): (usize, Search)| {
        let share = |part: usize, whole: usize| {
            let (part, whole) = (f64::from(values[part * count + i]), f64::from(values[whole * count + i]));
            (whole > 0.0).then(|| part / whole)
        };
        let energy = (0..streams).map(|s| share(2 * s + 1, 2 * s).unwrap_or(f64::NAN)).collect();
        (layer.a, Found { energy, room: share(2 * streams, 0).unwrap_or(1.0) })
    };
    Ok(layers.into_iter().enumerate().map(found).collect())
}

fn find_stream(
    be: &dyn Backend,
    layers: &mut [Search],
    (s, room): (usize, usize),
    energies: &mut Energies,
) -> Result<()> {
    let mut rows = layers.iter_mut().map(|l| l.begin(be, s)).collect::<Result<Vec<_>>>()?;
    let samples: Vec<_> = layers.iter().zip(&rows).map(|(l, y)| l.sample(s, y)).collect();
    energies.measure(2 * s, rows.iter().zip(&samples).map(|(y, r)| y.mat().row_range(r.clone())))?;
    let mut free = Vec::new();
    for ((layer, y), sample) in layers.iter().zip(&mut rows).zip(&samples) {
        if layer.window.has(s) {
            layer.protect(be, y)?;
        }
        free.push(be.duplicate(y.mat().row_range(sample.clone()), DType::F32)?);
        deflate_rows(be, y, layer.before(s))?;
    }
    if s == 0 {
        energies.measure(room, free.iter().map(Tensor::mat))?;
    }
    let with = layers.iter().zip(&mut rows).filter(|(l, _)| l.window.has(s));
    lead(be, &mut with.map(|(l, y)| (y, l.streams.ranks[s])).collect::<Vec<_>>())?;
    let mut bases = rows;
    for (layer, basis) in layers.iter().zip(&mut bases).filter(|(l, _)| l.window.has(s)) {
        // Rounding in the last products can tilt a basis back by a few units in the last place.
        layer.protect(be, basis)?;
        deflate_rows(be, basis, layer.before(s))?;
    }
    be.orthonormalize_rows(&mut bases.iter_mut().map(Tensor::mat_mut).collect::<Vec<_>>())?;
    let mut along = Vec::new();
    for ((layer, basis), free) in layers.iter_mut().zip(&bases).zip(&free) {
        let mut held = be.alloc(free.rows(), basis.rows(), DType::F32)?;
        be.matmul(held.mat_mut(), 0.0, 1.0, free.mat(), Op::N, basis.mat(), Op::T)?;
        along.push(held);
        let first = layer.streams.columns(s).start;
        be.copy(basis.mat(), layer.a.mat_mut().row_range(first..first + basis.rows()))?;
    }
    energies.measure(2 * s + 1, along.iter().map(Tensor::mat))
}

/// Puts in place of each matrix its leading right singular vectors as rows, as many as wanted: zero rows follow where
/// there are fewer. Waits once.
fn lead(be: &dyn Backend, all: &mut [(&mut Tensor, usize)]) -> Result<()> {
    // Small gradients are decomposed as they are, everything else through the Gram matrix of its rows.
    let whole = |y: &Tensor| y.rows() > 64 && y.rows().min(y.cols()) <= 1024;
    let size = |y: &Tensor| y.rows() * if whole(y) { y.cols() } else { y.rows() };
    let mut problems = be.alloc(1, all.iter().map(|(y, _)| size(y)).sum(), DType::F32)?;
    let mut at = 0;
    for (y, _) in all.iter() {
        let to = problems.mat_mut().col_range(at..at + size(y));
        at += size(y);
        match whole(y) {
            true => be.copy(y.mat(), to.reshape(y.rows(), y.cols()))?,
            false => be.matmul(to.reshape(y.rows(), y.rows()), 0.0, 1.0, y.mat(), Op::N, y.mat(), Op::T)?,
        }
    }
    let values = be.download(problems.mat())?;
    drop(problems);
    let mut rest = &values[..];
    let mut parts = Vec::new();
    for (y, count) in all.iter() {
        let (part, after) = rest.split_at(size(y));
        rest = after;
        parts.push((y.shape(), whole(y), *count, part));
    }
    let solved: Vec<Vec<f32>> = parts.into_par_iter().map(solve).collect::<Result<_>>()?;
    let joined = solved.concat();
    let vectors = be.tensor(&joined, 1, joined.len(), DType::F32)?;
    let mut at = 0;
    for ((y, count), solved) in all.iter_mut().zip(&solved) {
        let width = if whole(y) { y.cols() } else { y.rows() };
        let from = vectors.mat().col_range(at..at + solved.len()).reshape(solved.len() / width, width);
        at += solved.len();
        let mut basis = be.zeros(*count, y.cols(), DType::F32)?;
        let to = basis.mat_mut().row_range(0..from.rows);
        match (from.rows, whole(y)) {
            (0, _) => {}
            (_, true) => be.copy(from, to)?,
            _ => be.matmul(to, 0.0, 1.0, from, Op::N, y.mat(), Op::N)?,
        }
        **y = basis;
    }
    Ok(())
}

/// The leading vectors, as rows, of a matrix (its right singular vectors) or of a Gram matrix of so many rows.
fn solve(((rows, cols), whole, count, values): ((usize, usize), bool, usize, &[f32])) -> Result<Vec<f32>> {
    if whole {
        return Ok(row_space(values, rows, cols, count)?.vectors);
    }
    let (_, mut vectors) = symmetric_eigen(values, rows)?;
    vectors.truncate(count.min(rows) * rows);
    Ok(vectors)
}
