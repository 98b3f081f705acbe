//! The published optimizer, step for step: full gradients of the whole loss and of every task, a basis on the
//! side the shape dictates, bases renewed from the gradient of steps 1, T, 2T, ... with moments kept.

use super::adam::direction;
use super::adapter::{Adapter, Delta, Pass, Step, Update, change_by_adam};
use super::linalg::{row_space, transpose};
use super::master::{Master, NullSpace};
use super::pairs::{LayerGram, task_pairs};
use super::settings::{Decay, OptimizerSettings};
use super::state::State;
use crate::backend::{
    AdamBlock, AdaptedLinear, Backend, DType, GradBlock, GramEntry, Mat, MatMut, Tensor, WeightGrad, factors,
};
use crate::error::Result;
use crate::layers::LinearGradient;
use std::ops::Range;
use std::sync::Arc;

/// One matrix under the published optimizer.
pub struct PublishedMatrix {
    backend: Arc<dyn Backend>,
    /// Rows M and columns N of the weight.
    shape: (usize, usize),
    /// Ranks, the shared subspace first, each at most min(M, N).
    pub ranks: Vec<usize>,
    refresh_every: u64,
    null_space: NullSpace,
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
    /// Clipping and the gates of the task subspaces ([`factors`]), *f32* `[1 x 1 + 2 tasks]`.
    pub factors: Mat<'a>,
    /// Bases to use instead of the SVD's at a refresh.
    pub bases: Option<Vec<Tensor>>,
}

impl PublishedMatrix {
    /// A matrix of M rows and N columns.
    pub fn new(
        backend: &Arc<dyn Backend>,
        (m, n): (usize, usize),
        ranks: &[usize],
        refresh_every: u64,
        null_space: NullSpace,
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
            null_space,
            backend: Arc::clone(backend),
        })
    }

    fn right(&self) -> bool {
        self.shape.0 >= self.shape.1
    }

    /// The leading basis of a gradient on this matrix's side, as rows.
    fn basis(&self, g: &Tensor, rank: usize) -> Result<Tensor> {
        let (m, n) = self.shape;
        let values = self.backend.download(g.mat())?;
        let found = if self.right() {
            row_space(&values, m, n, rank)?
        } else {
            row_space(&transpose(&values, m, n), n, m, rank)?
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
        let tasks = self.ranks.len() - 1;
        for (s, g) in gradients.iter_mut().enumerate().take(self.ranks.len()) {
            self.null_space.project_gradient(&*be, g.mat_mut())?;
            if refresh {
                self.bases[s] = match injected.next() {
                    Some(basis) => basis,
                    None => self.basis(g, self.ranks[s])?,
                };
            }
            let (basis, right) = (self.bases[s].mat(), self.right());
            let (rows, cols) = self.moments[s][0].shape();
            let mut r = be.alloc(rows, cols, DType::F32)?;
            match right {
                true => be.product(r.mat_mut(), 0.0, 1.0, g.mat().n(), basis.t())?,
                false => be.product(r.mat_mut(), 0.0, 1.0, basis.n(), g.mat().n())?,
            }
            let gate = s.checked_sub(1).map(|task| factors::gate(tasks, task));
            let block = AdamBlock { gate, ..direction(step.optimizer, 0..cols, step.t, step.rate) };
            let [m, v] = &mut self.moments[s];
            let zeros = be.zeros(rows, cols, DType::F32)?;
            let d = change_by_adam(&*be, zeros, (r.mat(), None), (m, v), vec![block], step.factors)?;
            match right {
                true => be.product(update.mat_mut(), 1.0, 1.0, d.mat().n(), basis.n())?,
                false => be.product(update.mat_mut(), 1.0, 1.0, basis.t(), d.mat().n())?,
            }
        }
        self.null_space.project_update(&*be, update.mat_mut())?;
        Ok(update)
    }
}

/// A [`PublishedMatrix`] as one adapted layer. Its step is read before the update: it decays whatever is there.
pub(super) struct Published {
    backend: Arc<dyn Backend>,
    matrix: PublishedMatrix,
    master: Master,
    /// Gradient of the whole loss, then of every task's.
    sums: Vec<Tensor>,
}

impl Published {
    pub fn new(
        backend: &Arc<dyn Backend>,
        layer: &AdaptedLinear,
        ranks: &[usize],
        refresh_every: u64,
        null_space: NullSpace,
    ) -> Result<Self> {
        let (m, n) = layer.weight.shape();
        Ok(Self {
            matrix: PublishedMatrix::new(backend, (m, n), ranks, refresh_every, null_space)?,
            master: Master::of(&**backend, layer)?,
            sums: ranks.iter().map(|_| backend.zeros(m, n, DType::F32)).collect::<Result<_>>()?,
            backend: Arc::clone(backend),
        })
    }
}

impl Adapter for Published {
    fn observe(&mut self, g: &LinearGradient, pass: &Pass, _: MatMut) -> Result<()> {
        let whole = (0..g.x.rows, 1.0);
        let tasks = g.segments.iter().cloned().zip(pass.scales.iter().copied());
        let rows: Vec<(Range<usize>, f32)> = std::iter::once(whole).chain(tasks).collect();
        for (sum, (rows, scale)) in self.sums.iter_mut().zip(rows) {
            let blocks = &[GradBlock { scale, ..GradBlock::whole(rows, g.x.cols) }];
            let (out, write) = (sum.mat_mut(), pass.write());
            self.backend.run(WeightGrad { dy: g.dy, x: g.x, blocks, out, write, gram: None })?;
        }
        Ok(())
    }

    fn leaves(&mut self) -> Vec<MatMut<'_>> {
        self.sums.iter_mut().map(Tensor::mat_mut).collect()
    }

    fn gram(&self) -> LayerGram<'_> {
        let (whole, own) = (&self.sums[0], &self.sums[1..]);
        let mut entries: Vec<GramEntry> =
            task_pairs(own.len()).map(|(i, j)| GramEntry::LayerApart(i, j)).collect();
        entries.extend((0..own.len()).map(GramEntry::Own));
        entries.push(GramEntry::Whole);
        let mut pairs: Vec<(Mat, Mat)> =
            task_pairs(own.len()).map(|(i, j)| (own[i].mat(), own[j].mat())).collect();
        pairs.extend(own.iter().chain([whole]).map(|s| (s.mat(), s.mat())));
        LayerGram { entries, pairs, fused: 0 }
    }

    fn update<'a>(&'a mut self, layer: &'a mut AdaptedLinear, step: &Step) -> Result<Update<'a>> {
        let be = Arc::clone(&self.backend);
        let (optimizer, rate, t, factors) = (step.optimizer, step.rate, step.t, step.factors);
        let given = PublishedStep { optimizer, rate, t, factors, bases: None };
        let mut change = self.matrix.step(&mut self.sums, given)?;
        let (to, copy) = self.master.parts(layer);
        let decay = step.lr * optimizer.weight_decay;
        if decay != 0.0 && optimizer.decay == Decay::Weights {
            // (W + change) (1 - decay), as the published optimizer decays after its step.
            be.scale(change.mat_mut(), (1.0 - decay) as f32)?;
            be.axpy(-decay as f32, to.as_mat(), change.mat_mut())?;
        }
        Ok(Update::Deltas(vec![Delta { change, overlap: None, to, copy }]))
    }

    fn state(&mut self, layer: &mut AdaptedLinear, state: &mut State) -> Result<()> {
        self.master.state(&*self.backend, layer, state)?;
        for (s, (basis, [m, v])) in self.matrix.bases.iter_mut().zip(&mut self.matrix.moments).enumerate() {
            state.weight(&format!("a.{s}"), basis.mat_mut())?;
            state.optimizer(&format!("m.{s}"), m.mat_mut())?;
            state.optimizer(&format!("v.{s}"), v.mat_mut())?;
        }
        Ok(())
    }
}
