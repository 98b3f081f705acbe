//! Gradients summed over a few steps, and the bases found in them.
//!
//! *Exact*: full gradients of every task. *Rows*: sketches `Y = Ωᵀ G`, linear in the gradient G, so that no
//! full gradient exists. *Columns*: `Z = G Qᵀ`, the other half of a power iteration (`Ω <- Z`).
//! (Halko, Martinsson, Tropp 2011, algorithms 4.3 and 4.4.)

use super::engine::{Scales, StateReader, Tapped, deflate_rows};
use super::linalg::{row_space, symmetric_eigen};
use crate::backend::{Backend, DType, Mat, Op, OuterPart, Tensor};
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;

/// The subspaces of a layer: the shared one, then one a task (none for GaLore).
#[derive(Debug, Clone)]
pub(super) struct Streams {
    /// Number of tasks.
    pub tasks: usize,
    /// Ranks: shared first.
    pub ranks: Vec<usize>,
}

impl Streams {
    /// All ranks together.
    pub fn total(&self) -> usize {
        self.ranks.iter().sum()
    }
    /// Columns of stream s in the stack.
    pub fn columns(&self, s: usize) -> Range<usize> {
        let start = self.ranks[..s].iter().sum();
        start..start + self.ranks[s]
    }
    /// Rows (tokens) of a batch that feed stream s.
    fn rows(&self, s: usize, g: &Tapped) -> Range<usize> {
        if s == 0 { 0..g.x.rows } else { g.segments[s - 1].clone() }
    }
}

/// What a pass over gradients sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Exact,
    Rows,
    Columns,
}

pub(super) struct Window {
    backend: Arc<dyn Backend>,
    pub pass: Pass,
    /// Ω `[M x Q]` of a rows pass, Q `[Q x N]` of a columns pass, each with the streams' blocks in order.
    probe: Option<Tensor>,
    /// Width of each stream's block.
    widths: Vec<usize>,
    /// Gradients `[M x N]` of every task; sketches `[q x N]` or coordinates `[M x q]` of every stream.
    pub sums: Vec<Tensor>,
    /// Tasks whose gradient was not zero.
    pub seen: Vec<bool>,
}

/// A basis and what it holds.
pub(super) struct Found {
    /// Stacked bases, `[R x N]` f32.
    pub a: Tensor,
    /// Share of each stream's gradient energy in its basis.
    pub energy: Vec<f64>,
    /// Share of the whole gradient's energy the null space leaves.
    pub room: f64,
}

impl Window {
    /// A window that sums full gradients.
    pub fn exact(backend: &Arc<dyn Backend>, streams: &Streams, m: usize, n: usize) -> Result<Self> {
        let sums = (0..streams.tasks).map(|_| backend.zeros(m, n, DType::F32)).collect::<Result<_>>()?;
        Ok(Self {
            backend: Arc::clone(backend),
            pass: Pass::Exact,
            probe: None,
            widths: Vec::new(),
            sums,
            seen: vec![false; streams.tasks],
        })
    }

    /// A window that sums `Ωᵀ G`; `omegas[s]` is `[M x q_s]`.
    pub fn rows(backend: &Arc<dyn Backend>, streams: &Streams, omegas: &[Tensor], n: usize) -> Result<Self> {
        let widths: Vec<usize> = omegas.iter().map(Tensor::cols).collect();
        let m = omegas.first().map_or(0, Tensor::rows);
        let mut probe = backend.alloc(m, widths.iter().sum(), DType::F32)?;
        let mut at = 0;
        for omega in omegas {
            backend.copy(omega.mat(), probe.mat_mut().col_range(at..at + omega.cols()))?;
            at += omega.cols();
        }
        let sums = widths.iter().map(|q| backend.zeros(*q, n, DType::F32)).collect::<Result<_>>()?;
        let seen = vec![false; streams.tasks];
        Ok(Self { backend: Arc::clone(backend), pass: Pass::Rows, probe: Some(probe), widths, sums, seen })
    }

    /// A window that sums `G Qᵀ`; `bases[s]` is `[q_s x N]`.
    pub fn columns(
        backend: &Arc<dyn Backend>,
        streams: &Streams,
        bases: &[Tensor],
        m: usize,
    ) -> Result<Self> {
        let widths: Vec<usize> = bases.iter().map(Tensor::rows).collect();
        let n = bases.first().map_or(0, Tensor::cols);
        let mut probe = backend.alloc(widths.iter().sum(), n, DType::F32)?;
        let mut at = 0;
        for basis in bases {
            backend.copy(basis.mat(), probe.mat_mut().row_range(at..at + basis.rows()))?;
            at += basis.rows();
        }
        let sums = widths.iter().map(|q| backend.zeros(m, *q, DType::F32)).collect::<Result<_>>()?;
        let seen = vec![false; streams.tasks];
        Ok(Self { backend: Arc::clone(backend), pass: Pass::Columns, probe: Some(probe), widths, sums, seen })
    }

    /// Adds a micro-batch's gradient.
    pub fn observe(&mut self, streams: &Streams, g: &Tapped, scales: &Scales) -> Result<()> {
        for (seen, scale) in self.seen.iter_mut().zip(&scales.tasks) {
            *seen |= *scale > 0.0;
        }
        let be = &self.backend;
        let probe = match &self.probe {
            None => {
                for (sum, rows) in self.sums.iter_mut().zip(g.segments) {
                    let part = OuterPart { rows: rows.clone(), columns: 0..g.x.cols, to: 0, scale: 1.0 };
                    be.outer(g.dy, g.x, &[part], sum.mat_mut())?;
                }
                return Ok(());
            }
            Some(probe) => probe,
        };
        let mut inner = be.alloc(g.x.rows, self.widths.iter().sum(), DType::F32)?;
        match self.pass {
            Pass::Columns => be.matmul(inner.mat_mut(), 0.0, 1.0, g.x, Op::N, probe.mat(), Op::T)?,
            _ => be.matmul(inner.mat_mut(), 0.0, 1.0, g.dy, Op::N, probe.mat(), Op::N)?,
        }
        let mut at = 0;
        for (s, sum) in self.sums.iter_mut().enumerate() {
            let block = inner.mat().col_range(at..at + self.widths[s]);
            at += self.widths[s];
            let part = |columns| OuterPart { rows: streams.rows(s, g), columns, to: 0, scale: 1.0 };
            match self.pass {
                Pass::Columns => be.outer(g.dy, block, &[part(0..block.cols)], sum.mat_mut())?,
                _ => be.outer(block, g.x, &[part(0..g.x.cols)], sum.mat_mut())?,
            }
        }
        Ok(())
    }

    /// The probes, to be saved.
    pub fn probe(&self) -> Option<Mat<'_>> {
        self.probe.as_ref().map(|p| p.mat())
    }

    /// An exact or rows window as it was saved.
    pub fn restore(
        backend: &Arc<dyn Backend>,
        streams: &Streams,
        (m, n): (usize, usize),
        seen: Vec<bool>,
        from: &StateReader,
    ) -> Result<Self> {
        let mut window = match from.find("window.probe") {
            None => Self::exact(backend, streams, m, n)?,
            Some(probe) => {
                let probe = backend.tensor(&probe.values, probe.rows, probe.cols, DType::F32)?;
                let size = |s: usize| from.find(&format!("window.{s}")).map_or(0, |t| t.rows);
                let widths: Vec<usize> = (0..streams.ranks.len()).map(size).collect();
                let sums = widths.iter().map(|q| backend.zeros(*q, n, DType::F32)).collect::<Result<_>>()?;
                let (backend, seen) = (Arc::clone(backend), Vec::new());
                Self { backend, pass: Pass::Rows, probe: Some(probe), widths, sums, seen }
            }
        };
        for (i, sum) in window.sums.iter_mut().enumerate() {
            from.get(&format!("window.{i}"), sum.mat_mut())?;
        }
        window.seen = seen;
        Ok(window)
    }

    /// Forgets what was summed (after a step whose gradient was not finite).
    pub fn clear(&mut self) -> Result<()> {
        self.seen.iter_mut().for_each(|s| *s = false);
        self.sums.iter_mut().try_for_each(|s| self.backend.fill(s.mat_mut(), 0.0))
    }

    /// Whether stream s has a gradient.
    pub fn has(&self, s: usize) -> bool {
        if s == 0 { self.seen.iter().any(|s| *s) } else { self.seen[s - 1] }
    }

    /// A matrix with the row space of stream s's gradient, to be worked on.
    fn rows_of(&self, s: usize) -> Result<Tensor> {
        let be = &self.backend;
        if self.pass != Pass::Exact {
            return be.duplicate(self.sums[s].mat(), DType::F32);
        }
        if s > 0 {
            return be.duplicate(self.sums[s - 1].mat(), DType::F32);
        }
        let mut whole = be.duplicate(self.sums[0].mat(), DType::F32)?;
        for sum in &self.sums[1..] {
            be.axpy(1.0, sum.mat(), whole.mat_mut())?;
        }
        Ok(whole)
    }

    /// Rows of stream s's matrix whose energies stand for the gradient's: all, or those of the Gaussian probes.
    fn sample(&self, s: usize, y: &Tensor, oversample: usize) -> Range<usize> {
        match self.pass {
            Pass::Exact => 0..y.rows(),
            _ => self.widths[s].saturating_sub(oversample)..self.widths[s],
        }
    }

    /// New bases. `protected` (rows, orthonormal) is removed first; `old` serves tasks that had no gradient;
    /// `complementary` deflates each basis against those before it. Waits.
    pub fn find(
        &self,
        streams: &Streams,
        old: Option<Mat>,
        protected: Option<Mat>,
        complementary: bool,
        oversample: usize,
    ) -> Result<Found> {
        let be = &self.backend;
        let n = self.sums.first().map_or(0, Tensor::cols);
        let mut a = be.zeros(streams.total(), n, DType::F32)?;
        let mut energy = Vec::new();
        let mut room = 1.0;
        for s in 0..streams.ranks.len() {
            let columns = streams.columns(s);
            if !self.has(s) {
                energy.push(f64::NAN);
                let Some(old) = old else { continue };
                let mut kept = be.duplicate(old.row_range(columns.clone()), DType::F32)?;
                if complementary {
                    deflate_rows(&**be, &mut kept, a.mat().row_range(0..columns.start))?;
                }
                be.orthonormalize_rows(&mut [kept.mat_mut()])?;
                be.copy(kept.mat(), a.mat_mut().row_range(columns))?;
                continue;
            }
            let mut y = self.rows_of(s)?;
            let sample = self.sample(s, &y, oversample);
            let before = energy_of(&**be, y.mat().row_range(sample.clone()))?;
            if let Some(k) = protected {
                deflate_rows(&**be, &mut y, k)?;
            }
            let free = be.duplicate(y.mat().row_range(sample), DType::F32)?;
            if s == 0 && before > 0.0 {
                room = energy_of(&**be, free.mat())? / before;
            }
            if complementary {
                deflate_rows(&**be, &mut y, a.mat().row_range(0..columns.start))?;
            }
            let mut basis = leading_rows(be, &y, columns.len())?;
            // Rounding in the last products can tilt a basis back by a few units in the last place.
            for fixed in
                protected.into_iter().chain(complementary.then(|| a.mat().row_range(0..columns.start)))
            {
                deflate_rows(&**be, &mut basis, fixed)?;
            }
            be.orthonormalize_rows(&mut [basis.mat_mut()])?;
            let mut along = be.alloc(free.rows(), basis.rows(), DType::F32)?;
            be.matmul(along.mat_mut(), 0.0, 1.0, free.mat(), Op::N, basis.mat(), Op::T)?;
            let held = energy_of(&**be, along.mat())?;
            energy.push(if before > 0.0 { held / before } else { f64::NAN });
            be.copy(basis.mat(), a.mat_mut().row_range(columns))?;
        }
        Ok(Found { a, energy, room })
    }

    /// The orthonormal rows of each stream's sketch, for a columns pass. Waits.
    pub fn ranges(&self, protected: Option<Mat>) -> Result<Vec<Tensor>> {
        self.sums
            .iter()
            .map(|sum| {
                let mut q = self.backend.duplicate(sum.mat(), DType::F32)?;
                if let Some(k) = protected {
                    deflate_rows(&*self.backend, &mut q, k)?;
                }
                self.backend.orthonormalize_rows(&mut [q.mat_mut()])?;
                Ok(q)
            })
            .collect()
    }
}

fn energy_of(backend: &dyn Backend, x: Mat) -> Result<f64> {
    let mut out = backend.alloc(1, 1, DType::F32)?;
    backend.dots(&[(x, x)], out.mat_mut())?;
    Ok(backend.download(out.mat())?[0] as f64)
}

/// The leading `count` right singular vectors of y as rows (fewer than `count`: zero rows follow).
fn leading_rows(backend: &Arc<dyn Backend>, y: &Tensor, count: usize) -> Result<Tensor> {
    let (rows, cols) = y.shape();
    let mut out = backend.zeros(count, cols, DType::F32)?;
    if rows > 64 && rows.min(cols) <= 1024 {
        let found = row_space(&backend.download(y.mat())?, rows, cols, count)?;
        let got = found.vectors.len() / cols.max(1);
        backend.upload(&found.vectors, out.mat_mut().row_range(0..got))?;
        return Ok(out);
    }
    let mut gram = backend.alloc(rows, rows, DType::F32)?;
    backend.matmul(gram.mat_mut(), 0.0, 1.0, y.mat(), Op::N, y.mat(), Op::T)?;
    let (_, vectors) = symmetric_eigen(&backend.download(gram.mat())?, rows)?;
    let got = count.min(rows);
    let u = backend.tensor(&vectors[..got * rows], got, rows, DType::F32)?;
    backend.matmul(out.mat_mut().row_range(0..got), 0.0, 1.0, u.mat(), Op::N, y.mat(), Op::N)?;
    Ok(out)
}
