//! Gradients summed over a few steps, for the bases found in them (by `search`).
//!
//! *Exact*: full gradients of every task. *Rows*: sketches `Y = Ωᵀ G`, linear in the gradient G, so that no
//! full gradient exists. *Columns*: `Z = G Qᵀ`, the other half of a power iteration (`Ω <- Z`).
//! (Halko, Martinsson, Tropp 2011, algorithms 4.3 and 4.4.)

use crate::backend::{Backend, DType, GradBlock, Tensor, WeightGrad, Write};
use crate::error::Result;
use crate::gems::adapter::Pass;
use crate::gems::state::State;
use crate::layers::LinearGradient;
use std::ops::Range;
use std::sync::Arc;

/// The ranks of a layer's subspaces: the shared one, then one a task (none for GaLore).
#[derive(Debug, Clone)]
pub(in crate::gems) struct Ranks {
    /// Number of tasks.
    pub tasks: usize,
    /// Shared first.
    pub each: Vec<usize>,
}

impl Ranks {
    /// Of the shared subspace.
    pub fn shared(&self) -> usize {
        self.each[0]
    }
    /// How many subspaces there are.
    pub fn count(&self) -> usize {
        self.each.len()
    }
    /// All ranks together.
    pub fn total(&self) -> usize {
        self.each.iter().sum()
    }
    /// Columns of subspace s in the stack.
    pub fn columns(&self, s: usize) -> Range<usize> {
        let start = self.each[..s].iter().sum();
        start..start + self.each[s]
    }
    /// Rows (tokens) of a batch that feed subspace s.
    fn rows(&self, s: usize, g: &LinearGradient) -> Range<usize> {
        if s == 0 { 0..g.x.rows } else { g.segments[s - 1].clone() }
    }
}

/// What a window sums of gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gems) enum Sketch {
    Exact,
    Rows,
    Columns,
}

pub(in crate::gems) struct GradientWindow {
    backend: Arc<dyn Backend>,
    pub sketch: Sketch,
    /// Ω `[M x Q]` of a rows pass, Q `[Q x N]` of a columns pass, each with the subspaces' blocks in order.
    probe: Option<Tensor>,
    /// Width of each subspace's block.
    widths: Vec<usize>,
    /// Gradients `[M x N]` of every task; sketches `[q x N]` or coordinates `[M x q]` of every subspace.
    pub sums: Vec<Tensor>,
    /// Tasks whose gradient was not zero.
    pub seen: Vec<bool>,
}

impl GradientWindow {
    /// A window that sums full gradients.
    pub fn exact(backend: &Arc<dyn Backend>, ranks: &Ranks, m: usize, n: usize) -> Result<Self> {
        let sums = (0..ranks.tasks).map(|_| backend.zeros(m, n, DType::F32)).collect::<Result<_>>()?;
        Ok(Self {
            backend: Arc::clone(backend),
            sketch: Sketch::Exact,
            probe: None,
            widths: Vec::new(),
            sums,
            seen: vec![false; ranks.tasks],
        })
    }

    /// A window that sums `Ωᵀ G`; `probe` holds the subspaces' Ω, of these widths, side by side.
    pub fn rows(
        backend: &Arc<dyn Backend>,
        ranks: &Ranks,
        (probe, widths): (Tensor, Vec<usize>),
        n: usize,
    ) -> Result<Self> {
        let sums = widths.iter().map(|q| backend.zeros(*q, n, DType::F32)).collect::<Result<_>>()?;
        let seen = vec![false; ranks.tasks];
        Ok(Self {
            backend: Arc::clone(backend),
            sketch: Sketch::Rows,
            probe: Some(probe),
            widths,
            sums,
            seen,
        })
    }

    /// A window that sums `G Qᵀ`; `bases[s]` is `[q_s x N]`.
    pub fn columns(backend: &Arc<dyn Backend>, ranks: &Ranks, bases: &[Tensor], m: usize) -> Result<Self> {
        let widths: Vec<usize> = bases.iter().map(Tensor::rows).collect();
        let n = bases.first().map_or(0, Tensor::cols);
        let mut probe = backend.alloc(widths.iter().sum(), n, DType::F32)?;
        let mut at = 0;
        for basis in bases {
            backend.copy(basis.mat(), probe.mat_mut().row_range(at..at + basis.rows()))?;
            at += basis.rows();
        }
        let sums = widths.iter().map(|q| backend.zeros(m, *q, DType::F32)).collect::<Result<_>>()?;
        let seen = vec![false; ranks.tasks];
        Ok(Self {
            backend: Arc::clone(backend),
            sketch: Sketch::Columns,
            probe: Some(probe),
            widths,
            sums,
            seen,
        })
    }

    /// Adds a micro-batch's gradient.
    pub fn observe(&mut self, ranks: &Ranks, g: &LinearGradient, pass: &Pass) -> Result<()> {
        for (seen, scale) in self.seen.iter_mut().zip(&pass.scales) {
            *seen |= *scale > 0.0;
        }
        let be = &self.backend;
        let add = |dy, x, block, sum: &mut Tensor| {
            be.run(WeightGrad { dy, x, blocks: &[block], out: sum.mat_mut(), write: Write::Add, gram: None })
        };
        let Some(probe) = &self.probe else {
            let mut tasks = self.sums.iter_mut().zip(g.segments);
            return tasks
                .try_for_each(|(sum, rows)| add(g.dy, g.x, GradBlock::whole(rows.clone(), g.x.cols), sum));
        };
        let mut inner = be.alloc(g.x.rows, self.widths.iter().sum(), DType::F32)?;
        let (a, b) = match self.sketch {
            Sketch::Columns => (g.x.n(), probe.mat().t()),
            _ => (g.dy.n(), probe.mat().n()),
        };
        be.product(inner.mat_mut(), 0.0, 1.0, a, b)?;
        let mut at = 0;
        for (s, sum) in self.sums.iter_mut().enumerate() {
            let (block, rows) = (inner.mat().col_range(at..at + self.widths[s]), ranks.rows(s, g));
            at += self.widths[s];
            match self.sketch {
                Sketch::Columns => add(g.dy, block, GradBlock::whole(rows, block.cols), sum)?,
                _ => add(block, g.x, GradBlock::whole(rows, g.x.cols), sum)?,
            }
        }
        Ok(())
    }

    /// An exact or rows window of the shapes that it was saved with, to be filled by [`GradientWindow::state`].
    pub fn reopen(
        backend: &Arc<dyn Backend>,
        ranks: &Ranks,
        (m, n): (usize, usize),
        seen: Vec<bool>,
        state: &State,
    ) -> Result<Self> {
        let Some((rows, cols)) = state.shape("window.probe") else {
            return Ok(Self { seen, ..Self::exact(backend, ranks, m, n)? });
        };
        let probe = backend.zeros(rows, cols, DType::F32)?;
        let width = |s: usize| state.shape(&format!("window.{s}")).map_or(0, |(rows, _)| rows);
        let widths: Vec<usize> = (0..ranks.count()).map(width).collect();
        Ok(Self { seen, ..Self::rows(backend, ranks, (probe, widths), n)? })
    }

    /// Saves or restores probes and sums.
    pub fn state(&mut self, state: &mut State) -> Result<()> {
        if let Some(probe) = &mut self.probe {
            state.optimizer("window.probe", probe.mat_mut())?;
        }
        let mut sums = self.sums.iter_mut().enumerate();
        sums.try_for_each(|(i, sum)| state.optimizer(&format!("window.{i}"), sum.mat_mut()))
    }

    /// Forgets what was summed (after a step whose gradient was not finite).
    pub fn clear(&mut self) -> Result<()> {
        self.seen.iter_mut().for_each(|s| *s = false);
        self.sums.iter_mut().try_for_each(|s| self.backend.fill(s.mat_mut(), 0.0))
    }

    /// Whether subspace s has a gradient.
    pub fn has(&self, s: usize) -> bool {
        if s == 0 { self.seen.iter().any(|s| *s) } else { self.seen[s - 1] }
    }

    /// Nothing more will be observed.
    pub fn close(&mut self) {
        self.probe = None;
    }

    /// A matrix with the row space of subspace s's gradient, to be worked on. Given away where no other subspace needs it:
    /// to be asked for once.
    pub fn take_rows(&mut self, s: usize) -> Result<Tensor> {
        let be = &self.backend;
        if self.sketch == Sketch::Exact && s == 0 {
            let mut whole = be.duplicate(self.sums[0].mat(), DType::F32)?;
            for sum in &self.sums[1..] {
                be.axpy(1.0, sum.mat(), whole.mat_mut())?;
            }
            return Ok(whole);
        }
        let at = if self.sketch == Sketch::Exact { s - 1 } else { s };
        let nothing = be.alloc(0, self.sums[at].cols(), DType::F32)?;
        Ok(std::mem::replace(&mut self.sums[at], nothing))
    }
}
