//! GEMS and GaLore on the input side: frozen bases A, trained coordinates B.
//!
//! Between refreshes the layer computes `x Wᵀ + (x Aᵀ) Bᵀ`; the gradient of B's columns are the
//! coordinates `dY_sᵀ (X A_sᵀ)` of each subspace (GEMS, arXiv 2601.09496, with all subspaces from one pass).
//!
//! Under the knowledge metric (`metric`) bases Q are found in `P G S`, and `A = Q S`: coordinates are `R = P dYᵀ (X Aᵀ)`,
//! and the weight changes by `P N A`.

mod remainder;
mod renewal;

use super::adam::{direction, idle};
use super::adapter::{Adapter, Delta, Pass, Step, Update, change_by_adam};
use super::metric::Metric;
use super::pairs::{LayerGram, task_pairs};
use super::pull::Pull;
use super::refresh::window::{GradientWindow, Ranks};
use super::settings::{Bases, GateKind, GemsSettings, Moments, NullSide, NullSpaceSettings, Project};
use super::state::State;
use crate::backend::{
    AdamBlock, AdamUpdate, AdaptedLinear, Backend, Branch, ColumnPair, DType, GradBlock, Gram, GramEntry,
    Mat, MatMut, ProjectColumns, Tensor, WeightGrad, factors,
};
use crate::error::Result;
use crate::layers::LinearGradient;
use remainder::{Remainder, own_columns_mut, own_rows};
use std::ops::Range;
use std::sync::Arc;

/// How a layer's gradient is seen by its engine.
pub(super) struct SubspaceOptions {
    pub bases: Bases,
    pub moments: Moments,
    pub oversample: usize,
    pub power_iterations: u64,
    pub exact: bool,
    /// Gradient and update are projected on the output side.
    pub project: Option<Project>,
    pub learns: bool,
    pub rehearses: bool,
    /// Most directions of the remainder beside a weight in codes; `None`: the weight takes what is learned.
    pub remainder: Option<usize>,
    pub seed: u64,
    pub site: u64,
}

impl SubspaceOptions {
    pub fn new(
        s: &GemsSettings,
        null: &NullSpaceSettings,
        (exact, rehearses): (bool, bool),
        seed: u64,
        site: usize,
    ) -> Self {
        Self {
            bases: s.bases,
            moments: s.moments,
            oversample: s.oversample,
            power_iterations: s.power_iterations,
            exact,
            project: (null.side == NullSide::Output).then_some(null.project),
            learns: s.gates.kind == GateKind::Learned,
            rehearses,
            remainder: None,
            seed,
            site: site as u64,
        }
    }
}

pub(super) struct Subspaces {
    backend: Arc<dyn Backend>,
    options: SubspaceOptions,
    ranks: Ranks,
    m: usize,
    n: usize,
    /// Protected directions: `[k x N]` rows on the input side.
    protected_rows: Option<Arc<Tensor>>,
    /// Protected directions: `[M x k]` columns on the output side.
    protected_columns: Option<Arc<Tensor>>,
    /// Accumulated coordinates, `[M x R]` f32.
    b: Tensor,
    /// Adam's moments, `[M x R]`.
    first: Tensor,
    second: Tensor,
    /// Gradient coordinates: shared columns task by task, then every task's own, `[M x (T r + Σ r_t)]`.
    coordinates: Tensor,
    /// The rehearsal's coordinates in all subspaces, `[M x R]`.
    held: Option<Tensor>,
    /// `A Aᵀ`, where the rows of A are not orthonormal: by it coordinates are measured. Elsewhere orthonormality is
    /// taken for granted where moments are carried (a rotation) and in the energies of a refresh.
    overlap: Option<Tensor>,
    metric: Option<LayerMetric>,
    pull: Option<Pull>,
    remainder: Option<Remainder>,
    /// For learned gates.
    learning: Option<Learning>,
    pub window: Option<GradientWindow>,
    refreshes: u64,
    /// Tasks seen by the window that a checkpoint left open.
    resumes: Option<Vec<bool>>,
}

/// The knowledge metric of a layer.
pub(super) struct LayerMetric {
    /// S, and P.
    pub inputs: Arc<Metric>,
    pub outputs: Arc<Metric>,
    /// Q `[R x N]` f32: orthonormal rows, of which `A = Q S`.
    pub q: Tensor,
}

/// What tells the effect of the gates that were: the whole gradient along the tasks' columns `[M x Σ r_t]`, and the last
/// change of B there, per unit of gate.
struct Learning {
    whole: Tensor,
    last: Tensor,
}

impl Subspaces {
    pub fn new(
        backend: &Arc<dyn Backend>,
        options: SubspaceOptions,
        ranks: Ranks,
        (m, n): (usize, usize),
        (protected_rows, protected_columns): (Option<Arc<Tensor>>, Option<Arc<Tensor>>),
        (sides, pull): (Option<[Arc<Metric>; 2]>, Option<Pull>),
    ) -> Result<Self> {
        let total = ranks.total();
        let own = total - ranks.shared();
        let zeros = |cols| backend.zeros(m, cols, DType::F32);
        Ok(Self {
            b: zeros(total)?,
            first: zeros(total)?,
            second: zeros(total)?,
            coordinates: zeros(ranks.tasks * ranks.shared() + own)?,
            held: options.rehearses.then(|| zeros(total)).transpose()?,
            overlap: None,
            metric: match sides {
                Some([inputs, outputs]) => {
                    let q = backend.zeros(total, n, DType::F32)?;
                    Some(LayerMetric { inputs, outputs, q })
                }
                None => None,
            },
            pull,
            remainder: match options.remainder {
                Some(rank) => Some(Remainder::new(&**backend, m, total, rank)?),
                None => None,
            },
            learning: match options.learns {
                true => Some(Learning { whole: zeros(own)?, last: zeros(own)? }),
                false => None,
            },
            window: None,
            refreshes: 0,
            resumes: None,
            backend: Arc::clone(backend),
            options,
            ranks,
            m,
            n,
            protected_rows,
            protected_columns,
        })
    }

    /// Gives the layer an empty branch.
    pub fn attach(&self, layer: &mut AdaptedLinear) -> Result<()> {
        let dtype = self.backend.compute_dtype();
        let total = self.ranks.total() + self.remainder.as_ref().map_or(0, Remainder::rank);
        let (a, b) = (self.backend.zeros(total, self.n, dtype)?, self.backend.zeros(self.m, total, dtype)?);
        layer.branch = Some(Branch { a, b });
        Ok(())
    }

    fn complementary(&self) -> bool {
        self.options.bases == Bases::Complementary
    }

    /// Columns of task t's own coordinates within the gradient's.
    fn own_columns(&self, t: usize) -> Range<usize> {
        let r = self.ranks.shared();
        let columns = self.ranks.columns(t + 1);
        let shift = self.ranks.tasks * r - r;
        columns.start + shift..columns.end + shift
    }

    /// Whether tasks have subspaces of their own.
    fn specific(&self) -> bool {
        self.ranks.count() > 1
    }

    /// The null space, where it is taken out of the gradient, and out of the update.
    fn projections(&self) -> (Option<&Arc<Tensor>>, Option<&Arc<Tensor>>) {
        let when = |wanted: [Project; 2]| {
            self.protected_columns
                .as_ref()
                .filter(|_| self.options.project.is_some_and(|p| wanted.contains(&p)))
        };
        (when([Project::Gradient, Project::Both]), when([Project::Update, Project::Both]))
    }

    /// Blocks of the coordinates: every task's rows in the shared subspace, then in its own.
    fn gradient_blocks(&self, g: &LinearGradient, pass: &Pass) -> Vec<GradBlock> {
        let r = self.ranks.shared();
        let mut blocks = Vec::new();
        for (t, rows) in g.segments.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            blocks.push(GradBlock { rows: rows.clone(), columns: 0..r, to: t * r, scale: 1.0 });
            if self.specific() {
                let (columns, to) = (self.ranks.columns(t + 1), self.own_columns(t).start);
                blocks.push(GradBlock { rows: rows.clone(), columns, to, scale: pass.scales[t] });
            }
        }
        blocks
    }

    /// Blocks of the coordinates whose products a step wants: the tasks' shared columns, then every task's own.
    fn column_pairs(&self) -> Vec<ColumnPair> {
        let (r, tasks) = (self.ranks.shared(), self.ranks.tasks);
        let own = |t: usize| if self.specific() { self.own_columns(t) } else { t * r..(t + 1) * r };
        let shared = task_pairs(tasks).map(|(i, j)| ColumnPair { a: i * r, b: j * r, width: r });
        let own = (0..tasks).map(own).map(|c| ColumnPair { a: c.start, b: c.start, width: c.len() });
        shared.chain(own).collect()
    }

    /// Adam's constants: the tasks' weighted sum in the shared subspace, then every task in its own, gated. B decays
    /// also where a task is absent.
    fn adam_blocks(&self, step: &Step) -> Vec<AdamBlock> {
        let (o, r, tasks) = (step.optimizer, self.ranks.shared(), self.ranks.tasks);
        let keep = 1.0 - step.lr * o.weight_decay;
        let keep_before = keep as f32;
        let (shared, held) = (direction(o, 0..r, step.t, step.rate), step.held.0);
        let mut blocks = vec![AdamBlock { from: 0, terms: tasks, stride: r, held, keep_before, ..shared }];
        for t in (0..tasks).filter(|_| self.specific()) {
            let (columns, from) = (self.ranks.columns(t + 1), self.own_columns(t).start);
            blocks.push(match step.active[t] {
                true => {
                    let gate = Some(factors::gate(tasks, t));
                    let own = direction(o, columns, step.t_tasks[t], step.rate);
                    AdamBlock { from, gate, held: step.held.1[t], keep_before, ..own }
                }
                false => AdamBlock { from, ..idle(columns, keep) },
            });
        }
        blocks
    }

    /// Keeps the change of the tasks' own columns per unit of gate, decay left out.
    fn remember(&mut self, change: &Tensor, step: &Step) -> Result<()> {
        let (be, decay) = (&self.backend, step.lr * step.optimizer.weight_decay);
        let (Some(Learning { last, .. }), Some(gates)) = (&mut self.learning, step.gates) else {
            return Ok(());
        };
        let own = self.ranks.shared()..self.ranks.total();
        be.copy(change.mat().col_range(own.clone()), last.mat_mut())?;
        if decay != 0.0 {
            be.axpy(decay as f32, self.b.mat().col_range(own.clone()), last.mat_mut())?;
        }
        for (t, gate) in gates.iter().enumerate() {
            let columns = self.ranks.columns(t + 1);
            let columns = columns.start - own.start..columns.end - own.start;
            be.scale(last.mat_mut().col_range(columns), if *gate > 0.0 { 1.0 / gate } else { 0.0 })?;
        }
        Ok(())
    }

    /// The change of B under the metric: `P N`, with N Adam's of `P R`, and B's own decay.
    fn change_in_metric(&mut self, metric: &Metric, blocks: Vec<AdamBlock>, step: &Step) -> Result<Tensor> {
        let be = Arc::clone(&self.backend);
        let gradient = metric.columns(&*be, self.coordinates.mat())?;
        let zeros = be.zeros(self.m, self.ranks.total(), DType::F32)?;
        let g = (gradient.mat(), self.held.as_ref().map(Tensor::mat));
        let moments = (&mut self.first, &mut self.second);
        let change = change_by_adam(&*be, zeros, g, moments, blocks, step.factors)?;
        drop(gradient);
        let mut change = metric.columns(&*be, change.mat())?;
        let decay = step.lr * step.optimizer.weight_decay;
        if decay != 0.0 {
            be.axpy(-decay as f32, self.b.mat(), change.mat_mut())?;
        }
        Ok(change)
    }

    /// The change of B, whole: Adam in the subspaces, then the null space on the output side.
    fn change(&mut self, blocks: Vec<AdamBlock>, step: &Step) -> Result<Tensor> {
        let be = Arc::clone(&self.backend);
        if let Some(outputs) = self.metric.as_ref().map(|m| Arc::clone(&m.outputs)) {
            let change = self.change_in_metric(&outputs, blocks, step)?;
            self.remember(&change, step)?;
            return Ok(change);
        }
        let x0 = match step.optimizer.weight_decay == 0.0 {
            true => be.zeros(self.m, self.ranks.total(), DType::F32)?,
            false => be.duplicate(self.b.mat(), DType::F32)?,
        };
        let g = (self.coordinates.mat(), self.held.as_ref().map(Tensor::mat));
        let moments = (&mut self.first, &mut self.second);
        let mut change = change_by_adam(&*be, x0, g, moments, blocks, step.factors)?;
        self.remember(&change, step)?;
        if let (_, Some(k)) = self.projections() {
            be.run(ProjectColumns { x: change.mat_mut(), k: k.mat() })?;
        }
        Ok(change)
    }

    /// Sets what the counters were, and opens the window that was open, to be filled by [`Adapter::state`].
    pub fn resume(&mut self, refreshes: u64, seen: Option<Vec<bool>>) {
        (self.refreshes, self.resumes) = (refreshes, seen);
    }
}

impl Adapter for Subspaces {
    fn observe(&mut self, g: &LinearGradient, pass: &Pass, products: MatMut) -> Result<()> {
        if let Some(window) = &mut self.window {
            window.observe(&self.ranks, g, pass)?;
        }
        let Some(h) = g.h else { return Ok(()) };
        if self.refreshes == 0 {
            return Ok(());
        }
        let (blocks, pairs) = (self.gradient_blocks(g, pass), self.column_pairs());
        let products = products.col_range(0..pairs.len());
        self.backend.run(WeightGrad {
            dy: g.dy,
            x: h,
            blocks: &blocks,
            out: self.coordinates.mat_mut(),
            write: pass.write(),
            gram: Some(Gram { pairs: &pairs, products }),
        })?;
        let Some(Learning { whole, .. }) = &mut self.learning else { return Ok(()) };
        let (rows, columns) = (0..h.rows, self.ranks.shared()..self.ranks.total());
        let blocks = &[GradBlock { rows, columns, to: 0, scale: 1.0 }];
        let (out, write) = (whole.mat_mut(), pass.write());
        self.backend.run(WeightGrad { dy: g.dy, x: h, blocks, out, write, gram: None })
    }

    fn leaves(&mut self) -> Vec<MatMut<'_>> {
        let whole = self.learning.iter_mut().map(|l| &mut l.whole);
        std::iter::once(&mut self.coordinates).chain(whole).map(Tensor::mat_mut).collect()
    }

    fn hold(&mut self, g: &LinearGradient, pass: &Pass) -> Result<()> {
        let (Some(h), Some(held)) = (g.h, &mut self.held) else { return Ok(()) };
        if self.refreshes == 0 {
            return Ok(());
        }
        let blocks = &[GradBlock::whole(0..h.rows, self.ranks.total())];
        let (out, write) = (held.mat_mut(), pass.write());
        self.backend.run(WeightGrad { dy: g.dy, x: h, blocks, out, write, gram: None })
    }

    fn held(&mut self) -> Vec<MatMut<'_>> {
        self.held.iter_mut().map(Tensor::mat_mut).collect()
    }

    fn finish_hold(&mut self) -> Result<()> {
        if let (Some(metric), Some(held)) = (&self.metric, &mut self.held) {
            *held = metric.outputs.columns(&*self.backend, held.mat())?;
        }
        Ok(())
    }

    fn gram(&self) -> LayerGram<'_> {
        let (r, tasks) = (self.ranks.shared(), self.ranks.tasks);
        let mut entries: Vec<GramEntry> = task_pairs(tasks).map(|(i, j)| GramEntry::Layer(i, j)).collect();
        entries.extend((0..tasks).map(GramEntry::Own));
        let block = |first: usize, width: usize| self.coordinates.mat().col_range(first..first + width);
        let of = |p: ColumnPair| (block(p.a, p.width), block(p.b, p.width));
        let mut pairs: Vec<(Mat, Mat)> = self.column_pairs().into_iter().map(of).collect();
        let fused = pairs.len();
        if let Some(Learning { whole, last }) = &self.learning {
            let own = |t: usize| {
                let columns = self.ranks.columns(t + 1);
                columns.start - r..columns.end - r
            };
            entries.extend((0..tasks).map(GramEntry::Effect));
            pairs.extend((0..tasks).map(|t| (whole.mat().col_range(own(t)), last.mat().col_range(own(t)))));
        }
        LayerGram { entries, pairs, fused }
    }

    fn update<'a>(&'a mut self, layer: &'a mut AdaptedLinear, step: &Step) -> Result<Update<'a>> {
        let be = Arc::clone(&self.backend);
        if let (Some(k), _) = self.projections() {
            let k = Arc::clone(k);
            be.run(ProjectColumns { x: self.coordinates.mat_mut(), k: k.mat() })?;
        }
        let blocks = self.adam_blocks(step);
        let total = self.ranks.total();
        let copy = layer.branch.as_mut().map(|branch| (own_columns_mut(branch, total), 1.0));
        let between = self.projections().1.is_some() || self.overlap.is_some() || self.learning.is_some();
        if between || step.measured_first {
            let change = self.change(blocks, step)?;
            let (overlap, to) = (self.overlap.as_ref(), self.b.mat_mut());
            return Ok(Update::Deltas(vec![Delta { change, overlap, to, copy }]));
        }
        let (g, held) = (self.coordinates.mat(), self.held.as_ref().map(Tensor::mat));
        let (x, m, v) = (self.b.mat_mut(), self.first.mat_mut(), self.second.mat_mut());
        Ok(Update::InPlace(vec![AdamUpdate { x, g, held, m, v, blocks, copy, change: None }]))
    }

    fn state(&mut self, layer: &mut AdaptedLinear, state: &mut State) -> Result<()> {
        if state.restores() {
            self.attach(layer)?;
        }
        let Some(branch) = &mut layer.branch else { return Ok(()) };
        state.weight("a", branch.a.mat_mut())?;
        if let Some(metric) = &mut self.metric {
            state.optimizer("q", metric.q.mat_mut())?;
        }
        state.weight("b", self.b.mat_mut())?;
        state.optimizer("m", self.first.mat_mut())?;
        state.optimizer("v", self.second.mat_mut())?;
        if let Some(learning) = &mut self.learning {
            state.optimizer("last", learning.last.mat_mut())?;
        }
        if let Some(held) = &mut self.held {
            state.optimizer("held", held.mat_mut())?;
        }
        if let Some(seen) = self.resumes.take() {
            let shape = (self.m, self.n);
            self.window = Some(GradientWindow::reopen(&self.backend, &self.ranks, shape, seen, state)?);
        }
        if let Some(window) = &mut self.window {
            window.state(state)?;
        }
        match &mut self.remainder {
            Some(remainder) => {
                remainder.state(state)?;
                remainder.show(&*self.backend, branch)?;
            }
            None => state.weight("w", layer.weight.mat_mut())?,
        }
        if state.restores() {
            let total = self.ranks.total();
            self.backend.copy(self.b.mat(), own_columns_mut(branch, total))?;
            let a = self.backend.duplicate(own_rows(branch, total), branch.a.dtype())?;
            self.measure_by(a.mat())?;
        }
        Ok(())
    }
}
