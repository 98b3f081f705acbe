//! The published optimizer, step for step: full gradients of the whole loss and of every task, a basis on the
//! side the shape dictates, bases renewed from the gradient of steps 1, T, 2T, ... with moments kept.

use super::adam::{bare, direction};
use super::engine::{Engine, Products, Scales, StateReader, StateWriter, Step, Tapped, gram_of, task_pairs};
use super::linalg::row_space;
use super::settings::{Decay, NullSide, NullSpaceSettings, OptimizerSettings, Project};
use crate::backend::{AdaptedLinear, Backend, DType, Mat, MatMut, Op, OuterPart, Quantity, Tensor};
use crate::error::Result;
use std::sync::Arc;

/// One matrix under the published optimizer.
pub struct PublishedMatrix {
    backend: Arc<dyn Backend>,
    /// Rows M and columns N of the weight.
    shape: (usize, usize),
    /// Ranks, the shared subspace first, each at most min(M, N).
    pub ranks: Vec<usize>,
    refresh_every: u64,
    side: NullSide,
    project: Project,
    protected: Option<Arc<Tensor>>,
    /// Rows `[r x N]` (M >= N) or, transposed, columns (`[r x M]`) of each subspace.
    bases: Vec<Tensor>,
    moments: Vec<[Tensor; 2]>,
}

/// What one step of a [`PublishedMatrix`] is given.
pub struct PublishedStep<'a> {
    /// Betas, eps; decay is the caller's.
    pub optimizer: &'a OptimizerSettings,
    /// Learning rate times scale.
    pub rate: f64,
    /// Number of the step, from 1.
    pub t: u64,
    /// Weights of the task subspaces.
    pub gates: &'a [f64],
    /// Factor on the gradients.
    pub clip: f64,
    /// Bases to use instead of the SVD's at a refresh.
    pub bases: Option<Vec<Tensor>>,
}

impl PublishedMatrix {
    /// A matrix of M rows and N columns; `protected` as columns of the side's space.
    pub fn new(
        backend: &Arc<dyn Backend>,
        (m, n): (usize, usize),
        ranks: &[usize],
        refresh_every: u64,
        (side, project): (NullSide, Project),
        protected: Option<Arc<Tensor>>,
    ) -> Result<Self> {
        let ranks: Vec<usize> = ranks.iter().map(|r| (*r).min(m).min(n)).collect();
        let right = m >= n;
        let moment =
            |r: usize| if right { backend.zeros(m, r, DType::F32) } else { backend.zeros(r, n, DType::F32) };
        let basis = |r: &usize| backend.zeros(*r, m.min(n), DType::F32);
        Ok(Self {
            bases: ranks.iter().map(basis).collect::<Result<_>>()?,
            moments: ranks.iter().map(|r| Ok([moment(*r)?, moment(*r)?])).collect::<Result<_>>()?,
            shape: (m, n),
            ranks,
            refresh_every,
            side,
            project,
            protected,
            backend: Arc::clone(backend),
        })
    }

    fn right(&self) -> bool {
        self.shape.0 >= self.shape.1
    }

    fn projected(&self, x: &mut Tensor) -> Result<()> {
        match (&self.protected, self.side) {
            (Some(k), NullSide::Input) => self.backend.project_rows(x.mat_mut(), k.mat()),
            (Some(k), NullSide::Output) => self.backend.project_columns(x.mat_mut(), k.mat()),
            _ => Ok(()),
        }
    }

    /// The leading basis of a gradient on this matrix's side, as rows.
    fn basis(&self, g: &Tensor, rank: usize) -> Result<Tensor> {
        let (m, n) = self.shape;
        let values = self.backend.download(g.mat())?;
        let found = if self.right() {
            row_space(&values, m, n, rank)?
        } else {
            row_space(&super::linalg::transpose(&values, m, n), n, m, rank)?
        };
        let dim = m.min(n);
        let mut rows = found.vectors;
        rows.resize(rank * dim, 0.0);
        self.backend.tensor(&rows, rank, dim, DType::F32)
    }

    /// The change of W that a step makes, before decay. `gradients`: of the whole loss, then of every task.
    pub fn step(&mut self, gradients: &mut [Tensor], step: PublishedStep) -> Result<Tensor> {
        let be = Arc::clone(&self.backend);
        let (m, n) = self.shape;
        let refresh = step.t == 1 || step.t.is_multiple_of(self.refresh_every.max(1));
        let mut update = be.zeros(m, n, DType::F32)?;
        let mut injected = step.bases.unwrap_or_default().into_iter();
        for (s, g) in gradients.iter_mut().enumerate().take(self.ranks.len()) {
            if matches!(self.project, Project::Gradient | Project::Both) {
                self.projected(g)?;
            }
            if refresh {
                self.bases[s] = match injected.next() {
                    Some(basis) => basis,
                    None => self.basis(g, self.ranks[s])?,
                };
            }
            let gate = if s == 0 { 1.0 } else { step.gates[s - 1] };
            let (basis, right) = (self.bases[s].mat(), self.right());
            let (rows, cols) = self.moments[s][0].shape();
            let mut r = be.alloc(rows, cols, DType::F32)?;
            match right {
                true => be.matmul(r.mat_mut(), 0.0, 1.0, g.mat(), Op::N, basis, Op::T)?,
                false => be.matmul(r.mat_mut(), 0.0, 1.0, basis, Op::N, g.mat(), Op::N)?,
            }
            let mut d = be.zeros(rows, cols, DType::F32)?;
            let block = direction(step.optimizer, 0..cols, step.t, step.rate * gate, step.clip);
            let [first, second] = &mut self.moments[s];
            be.adam(vec![bare(&mut d, &r, (first, second), block)], None, None)?;
            match right {
                true => be.matmul(update.mat_mut(), 1.0, 1.0, d.mat(), Op::N, basis, Op::N)?,
                false => be.matmul(update.mat_mut(), 1.0, 1.0, basis, Op::T, d.mat(), Op::N)?,
            }
        }
        if matches!(self.project, Project::Update | Project::Both) {
            self.projected(&mut update)?;
        }
        Ok(update)
    }

    /// First moments of the subspaces.
    pub fn first_moment(&self, s: usize) -> Mat<'_> {
        self.moments[s][0].mat()
    }
}

/// A [`PublishedMatrix`] as one adapted layer.
pub(super) struct Published {
    backend: Arc<dyn Backend>,
    matrix: PublishedMatrix,
    master: Option<Tensor>,
    /// Gradient of the whole loss, then of every task's.
    sums: Vec<Tensor>,
}

impl Published {
    pub fn new(
        backend: &Arc<dyn Backend>,
        layer: &AdaptedLinear,
        ranks: &[usize],
        refresh_every: u64,
        null: &NullSpaceSettings,
        protected: Option<Arc<Tensor>>,
    ) -> Result<Self> {
        let (m, n) = layer.weight.shape();
        let master = match layer.weight.dtype() {
            DType::F32 => None,
            _ => Some(backend.duplicate(layer.weight.mat(), DType::F32)?),
        };
        Ok(Self {
            matrix: PublishedMatrix::new(
                backend,
                (m, n),
                ranks,
                refresh_every,
                (null.side, null.project),
                protected,
            )?,
            master,
            sums: ranks.iter().map(|_| backend.zeros(m, n, DType::F32)).collect::<Result<_>>()?,
            backend: Arc::clone(backend),
        })
    }
}

impl Engine for Published {
    fn begin(&mut self) -> Result<()> {
        self.sums.iter_mut().try_for_each(|s| self.backend.fill(s.mat_mut(), 0.0))
    }

    fn observe(&mut self, g: &Tapped, scales: &Scales, _: MatMut) -> Result<()> {
        let columns = || 0..g.x.cols;
        let whole = OuterPart { rows: 0..g.x.rows, columns: columns(), to: 0, scale: 1.0 };
        self.backend.outer(g.dy, g.x, &[whole], self.sums[0].mat_mut())?;
        for (t, sum) in self.sums[1..].iter_mut().enumerate().filter(|(t, _)| !g.segments[*t].is_empty()) {
            let part =
                OuterPart { rows: g.segments[t].clone(), columns: columns(), to: 0, scale: scales.tasks[t] };
            self.backend.outer(g.dy, g.x, &[part], sum.mat_mut())?;
        }
        Ok(())
    }

    fn products(&self) -> Products<'_> {
        let tasks = self.sums.len() - 1;
        let mut quantities: Vec<Quantity> =
            task_pairs(tasks).map(|(i, j)| Quantity::LayerApart(i, j)).collect();
        quantities.extend((0..tasks).map(Quantity::Own));
        quantities.push(Quantity::Whole);
        let mut pairs = gram_of(&self.sums[1..]);
        pairs.extend(self.sums[1..].iter().chain(&self.sums[..1]).map(|s| (s.mat(), s.mat())));
        Products { quantities, pairs }
    }

    fn direction(&mut self, step: &Step) -> Result<Vec<Tensor>> {
        let given = PublishedStep {
            optimizer: step.optimizer,
            rate: step.rate,
            t: step.t,
            gates: &step.known.gates,
            clip: step.known.clip,
            bases: None,
        };
        Ok(vec![self.matrix.step(&mut self.sums, given)?])
    }

    fn apply(
        &mut self,
        layer: &mut AdaptedLinear,
        update: Vec<Tensor>,
        factor: f64,
        step: &Step,
    ) -> Result<()> {
        let be = &self.backend;
        let mut w = match &mut self.master {
            Some(master) => master.mat_mut(),
            None => layer.weight.mat_mut(),
        };
        be.axpy(factor as f32, update[0].mat(), w.reborrow())?;
        let decay = step.lr * step.optimizer.weight_decay;
        if decay != 0.0 && step.optimizer.decay == Decay::Weights {
            be.scale(w, (1.0 - decay) as f32)?;
        }
        match &self.master {
            Some(master) => be.copy(master.mat(), layer.weight.mat_mut()),
            None => Ok(()),
        }
    }

    fn state(&self, layer: &AdaptedLinear, out: &mut StateWriter) -> Result<()> {
        out.put("w", self.master.as_ref().unwrap_or(&layer.weight).mat())?;
        for (s, basis) in self.matrix.bases.iter().enumerate() {
            out.put(&format!("a.{s}"), basis.mat())?;
            out.put(&format!("m.{s}"), self.matrix.moments[s][0].mat())?;
            out.put(&format!("v.{s}"), self.matrix.moments[s][1].mat())?;
        }
        Ok(())
    }

    fn restore(&mut self, layer: &mut AdaptedLinear, from: &mut StateReader) -> Result<()> {
        match &mut self.master {
            Some(master) => {
                from.get("w", master.mat_mut())?;
                self.backend.copy(master.mat(), layer.weight.mat_mut())?;
            }
            None => from.get("w", layer.weight.mat_mut())?,
        }
        for (s, basis) in self.matrix.bases.iter_mut().enumerate() {
            from.get(&format!("a.{s}"), basis.mat_mut())?;
            from.get(&format!("m.{s}"), self.matrix.moments[s][0].mat_mut())?;
            from.get(&format!("v.{s}"), self.matrix.moments[s][1].mat_mut())?;
        }
        Ok(())
    }
}
