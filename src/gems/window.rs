//! Gradients summed over a few steps, for the bases found in them ([`search`](super::search)).
//!
//! *Exact*: full gradients of every task. *Rows*: sketches `Y = Ωᵀ G`, linear in the gradient G, so that no
//! full gradient exists. *Columns*: `Z = G Qᵀ`, the other half of a power iteration (`Ω <- Z`).
//! (Halko, Martinsson, Tropp 2011, algorithms 4.3 and 4.4.)

use super::engine::{Scales, StateReader, Tapped};
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

    /// A window that sums `Ωᵀ G`; `probe` holds the streams' Ω, of these widths, side by side.
    pub fn rows(
        backend: &Arc<dyn Backend>,
        streams: &Streams,
        (probe, widths): (Tensor, Vec<usize>),
        n: usize,
    ) -> Result<Self> {
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

    /// Nothing more will be observed.
    pub fn close(&mut self) {
        self.probe = None;
    }

    /// A matrix with the row space of stream s's gradient, to be worked on. Given away where no other stream needs it:
    /// to be asked for once.
    pub fn take_rows(&mut self, s: usize) -> Result<Tensor> {
        let be = &self.backend;
        if self.pass == Pass::Exact && s == 0 {
            let mut whole = be.duplicate(self.sums[0].mat(), DType::F32)?;
            for sum in &self.sums[1..] {
                be.axpy(1.0, sum.mat(), whole.mat_mut())?;
            }
            return Ok(whole);
        }
        let at = if self.pass == Pass::Exact { s - 1 } else { s };
        let nothing = be.alloc(0, self.sums[at].cols(), DType::F32)?;
        Ok(std::mem::replace(&mut self.sums[at], nothing))
    }
}
