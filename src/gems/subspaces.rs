//! GEMS and GaLore on the input side: frozen bases A, trained coordinates B.
//!
//! Between refreshes the layer computes `x Wᵀ + (x Aᵀ) Bᵀ`; the gradient of B's columns are the
//! coordinates `dY_sᵀ (X A_sᵀ)` of each subspace (GEMS, arXiv 2601.09496, with all subspaces from one pass).

use super::adam::direction;
use super::engine::{Engine, Products, Scales, StateReader, StateWriter, Step, Tapped, task_pairs};
use super::search::Search;
use super::settings::{Bases, GemsSettings, Moments, NullSide, NullSpaceSettings, Project};
use super::window::{Pass, Streams, Window};
use crate::backend::{
    AdamBlock, AdamUpdate, AdaptedLinear, Backend, Branch, ColumnPair, DType, Mat, MatMut, Op, OuterPart,
    Quantity, Rounding, Tensor, factors,
};
use crate::error::Result;
use crate::random::{self, Purpose};
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
    pub seed: u64,
    pub site: u64,
}

impl SubspaceOptions {
    pub fn new(s: &GemsSettings, null: &NullSpaceSettings, exact: bool, seed: u64, site: usize) -> Self {
        Self {
            bases: s.bases,
            moments: s.moments,
            oversample: s.oversample,
            power_iterations: s.power_iterations,
            exact,
            project: (null.side == NullSide::Output).then_some(null.project),
            learns: s.gates.kind == super::settings::GateKind::Learned,
            seed,
            site: site as u64,
        }
    }
}

pub(super) struct Subspaces {
    backend: Arc<dyn Backend>,
    options: SubspaceOptions,
    pub streams: Streams,
    m: usize,
    n: usize,
    /// Protected directions: `[k x N]` rows on the input side.
    protected_rows: Option<Arc<Tensor>>,
    /// Protected directions: `[M x k]` columns on the output side.
    protected_columns: Option<Arc<Tensor>>,
    /// Accumulated coordinates, `[M x R]` f32.
    b: Tensor,
    moments: [Tensor; 2],
    /// Gradient coordinates: shared columns task by task, then every task's own, `[M x (T r + Σ r_t)]`.
    coordinates: Tensor,
    /// Nothing of this step is in them yet.
    fresh: bool,
    /// `A Aᵀ` when the bases overlap.
    overlap: Option<Tensor>,
    /// For learned gates: the whole gradient along the tasks' columns, and the last update there per unit of gate.
    learning: Option<[Tensor; 2]>,
    pub window: Option<Window>,
    refreshes: u64,
}

impl Subspaces {
    pub fn new(
        backend: &Arc<dyn Backend>,
        options: SubspaceOptions,
        streams: Streams,
        (m, n): (usize, usize),
        protected_rows: Option<Arc<Tensor>>,
        protected_columns: Option<Arc<Tensor>>,
    ) -> Result<Self> {
        let total = streams.total();
        let own = total - streams.ranks[0];
        let zeros = |cols| backend.zeros(m, cols, DType::F32);
        Ok(Self {
            b: zeros(total)?,
            moments: [zeros(total)?, zeros(total)?],
            coordinates: zeros(streams.tasks * streams.ranks[0] + own)?,
            fresh: true,
            overlap: None,
            learning: if options.learns { Some([zeros(own)?, zeros(own)?]) } else { None },
            window: None,
            refreshes: 0,
            backend: Arc::clone(backend),
            options,
            streams,
            m,
            n,
            protected_rows,
            protected_columns,
        })
    }

    /// Gives the layer an empty branch.
    pub fn attach(&self, layer: &mut AdaptedLinear) -> Result<()> {
        let dtype = self.backend.compute_dtype();
        let total = self.streams.total();
        let (a, b) = (self.backend.zeros(total, self.n, dtype)?, self.backend.zeros(self.m, total, dtype)?);
        layer.branch = Some(Branch { a, b });
        Ok(())
    }

    fn complementary(&self) -> bool {
        self.options.bases == Bases::Complementary
    }

    // ---- refresh ----------------------------------------------------------------------------

    /// Passes over the probe batches before the first step.
    pub fn probe_rounds(&self) -> u64 {
        if self.options.exact { 1 } else { 1 + 2 * self.options.power_iterations }
    }

    /// What probes start from: the coordinates of a columns pass; else the first moments, which are the gradient's
    /// coordinates, averaged: a power iteration for free. Nothing before the first bases.
    pub fn starts(&self) -> Vec<Mat<'_>> {
        match &self.window {
            _ if self.options.exact => Vec::new(),
            Some(w) if w.pass == Pass::Columns => w.sums.iter().map(Tensor::mat).collect(),
            _ if self.refreshes == 0 => Vec::new(),
            _ => (0..self.streams.ranks.len())
                .map(|s| self.moments[0].mat().col_range(self.streams.columns(s)))
                .collect(),
        }
    }

    /// Gaussian probes of every stream, `[M x any]` row by row. They stay among all others, so that energies can be told.
    pub fn gaussians(&self, round: u64) -> Vec<Vec<f32>> {
        let warm = !self.starts().is_empty();
        let columns = |s: usize| self.options.oversample + if warm { 0 } else { self.streams.ranks[s] };
        let values = |s: usize| {
            let (stream, n) = (self.options.site << 8 | s as u64, self.m * columns(s));
            random::normal(self.options.seed, Purpose::Sketch, stream, round, n)
        };
        if self.options.exact { Vec::new() } else { (0..self.streams.ranks.len()).map(values).collect() }
    }

    /// Opens a window of sketches (of full gradients for an exact layer), from `starts` of these lengths, scaled to
    /// unit columns on average, and Gaussian probes.
    pub fn open_rows(&mut self, lengths: &[f32], gaussians: &[Vec<f32>]) -> Result<()> {
        let be = &self.backend;
        if self.options.exact {
            self.window = Some(Window::exact(be, &self.streams, self.m, self.n)?);
            return Ok(());
        }
        let starts = self.starts();
        let warm = |s: usize| starts.get(s).map_or(0, |start| start.cols);
        let widths: Vec<usize> =
            gaussians.iter().enumerate().map(|(s, g)| warm(s) + g.len() / self.m).collect();
        let mut probe = be.alloc(self.m, widths.iter().sum(), DType::F32)?;
        let mut at = 0;
        for (s, width) in widths.iter().enumerate() {
            let (first, end) = (at + warm(s), at + width);
            if let Some(start) = starts.get(s) {
                be.copy(*start, probe.mat_mut().col_range(at..first))?;
                if lengths[s] > 0.0 {
                    let factor = ((self.m * warm(s)) as f32).sqrt() / lengths[s];
                    be.scale(probe.mat_mut().col_range(at..first), factor)?;
                }
            }
            be.upload(&gaussians[s], probe.mat_mut().col_range(first..end))?;
            at = end;
        }
        self.window = Some(Window::rows(be, &self.streams, (probe, widths), self.n)?);
        Ok(())
    }

    /// An open window's sketches with the protected directions that they are to be kept off.
    pub fn protected_sketches(&mut self) -> impl Iterator<Item = (&mut Tensor, Mat<'_>)> {
        let protected = self.protected_rows.as_ref().map(|k| k.mat());
        let sums = self.window.iter_mut().flat_map(|w| &mut w.sums);
        sums.filter_map(move |sum| Some((sum, protected?)))
    }

    /// From a window of sketches, whose rows are orthonormal by now, to one of coordinates along them.
    pub fn open_columns(&mut self) -> Result<()> {
        let Some(window) = self.window.take() else { return Ok(()) };
        self.window = Some(Window::columns(&self.backend, &self.streams, &window.sums, self.m)?);
        Ok(())
    }

    /// Ends the window: folds `B A` into W. New bases are then to be looked for, unless there was no gradient.
    pub fn leave(&mut self, layer: &mut AdaptedLinear) -> Result<Option<Search>> {
        let Some(window) = self.window.take().filter(|w| w.has(0)) else { return Ok(None) };
        let Some(branch) = &mut layer.branch else { return Ok(None) };
        let be = &*self.backend;
        if self.refreshes > 0 {
            let rounding = match layer.weight.dtype() {
                DType::F32 => Rounding::Nearest,
                _ => Rounding::Stochastic(self.options.seed ^ (self.options.site << 32) ^ self.refreshes),
            };
            be.fold(layer.weight.mat_mut(), 1.0, 1.0, self.b.mat(), branch.a.mat(), rounding)?;
            be.fill(self.b.mat_mut(), 0.0)?;
            be.fill(branch.b.mat_mut(), 0.0)?;
        }
        let old = (self.refreshes > 0).then(|| branch.a.mat());
        let rules = (self.complementary(), self.options.oversample);
        Search::new(be, window, &self.streams, old, self.protected_rows.clone(), rules).map(Some)
    }

    /// Takes the bases that were found.
    pub fn enter(&mut self, layer: &mut AdaptedLinear, new: &Tensor) -> Result<()> {
        let be = &Arc::clone(&self.backend);
        let Some(branch) = &mut layer.branch else { return Ok(()) };
        if self.refreshes > 0 {
            self.carry_moments(branch.a.mat(), new)?;
        }
        be.copy(new.mat(), branch.a.mat_mut())?;
        if !self.complementary() {
            let total = self.streams.total();
            let mut overlap = be.alloc(total, total, DType::F32)?;
            be.matmul(overlap.mat_mut(), 0.0, 1.0, branch.a.mat(), Op::N, branch.a.mat(), Op::T)?;
            self.overlap = Some(overlap);
        }
        if let Some([_, last]) = &mut self.learning {
            be.fill(last.mat_mut(), 0.0)?;
        }
        self.refreshes += 1;
        Ok(())
    }

    fn carry_moments(&mut self, old: Mat, new: &Tensor) -> Result<()> {
        let be = Arc::clone(&self.backend);
        match self.options.moments {
            Moments::Keep => {}
            Moments::Reset => {
                for m in &mut self.moments {
                    be.fill(m.mat_mut(), 0.0)?;
                }
            }
            Moments::Rotate => {
                // Of all streams at once: the blocks on the diagonal are wanted.
                let total = self.streams.total();
                let mut turn = be.alloc(total, total, DType::F32)?;
                be.matmul(turn.mat_mut(), 0.0, 1.0, old, Op::N, new.mat(), Op::T)?;
                for s in 0..self.streams.ranks.len() {
                    let columns = self.streams.columns(s);
                    let turn = turn.mat().row_range(columns.clone()).col_range(columns.clone());
                    let before =
                        be.duplicate(self.moments[0].mat().col_range(columns.clone()), DType::F32)?;
                    let after = self.moments[0].mat_mut().col_range(columns);
                    be.matmul(after, 0.0, 1.0, before.mat(), Op::N, turn, Op::N)?;
                }
            }
        }
        Ok(())
    }

    /// Number of refreshes so far; 0 before the first bases are found.
    pub fn refreshes(&self) -> u64 {
        self.refreshes
    }

    /// Columns of task t's own coordinates within [`Subspaces::coordinates`].
    fn own_columns(&self, t: usize) -> std::ops::Range<usize> {
        let r = self.streams.ranks[0];
        let columns = self.streams.columns(t + 1);
        let shift = self.streams.tasks * r - r;
        columns.start + shift..columns.end + shift
    }
    fn specific(&self) -> bool {
        self.streams.ranks.len() > 1
    }

    /// Whether the null space is taken out of the update, after Adam.
    fn projects_update(&self) -> bool {
        self.protected_columns.is_some()
            && matches!(self.options.project, Some(Project::Update | Project::Both))
    }

    /// The step's gradient in all subspaces, `[M x R]`: the tasks' weighted sum, then every task's own.
    fn gradient(&self, step: &Step) -> Result<Tensor> {
        let be = &self.backend;
        let (r, tasks, total) = (self.streams.ranks[0], self.streams.tasks, self.streams.total());
        let mut g = be.alloc(self.m, total, DType::F32)?;
        for (t, weight) in step.known.weights.iter().map(|w| *w as f32).enumerate() {
            let from = self.coordinates.mat().col_range(t * r..(t + 1) * r);
            let mut shared = g.mat_mut().col_range(0..r);
            match t {
                0 => be.copy(from, shared.reborrow())?,
                _ => be.axpy(weight, from, shared.reborrow())?,
            }
            if t == 0 && weight != 1.0 {
                be.scale(shared, weight)?;
            }
        }
        if self.specific() {
            // The tasks' own columns follow each other in both.
            let own = self.coordinates.mat().col_range(tasks * r..tasks * r + total - r);
            be.copy(own, g.mat_mut().col_range(r..total))?;
        }
        if let (Some(k), Some(Project::Gradient | Project::Both)) =
            (&self.protected_columns, self.options.project)
        {
            be.project_columns(g.mat_mut(), k.mat())?;
        }
        Ok(g)
    }

    /// Adam's constants for a [`Subspaces::gradient`]: the shared subspace, then every active task's own.
    fn blocks(&self, step: &Step) -> Vec<AdamBlock> {
        let (o, clip) = (step.optimizer, step.known.clip);
        let mut blocks = vec![direction(o, 0..self.streams.ranks[0], step.t, step.rate, clip)];
        for t in (0..self.streams.tasks).filter(|t| self.specific() && step.active[*t]) {
            let gate = if self.learning.is_some() { 1.0 } else { step.known.gates[t] };
            let columns = self.streams.columns(t + 1);
            blocks.push(direction(o, columns, step.t_tasks[t], step.rate * gate, clip));
        }
        blocks
    }

    /// The same for [`Engine::updates`]: gradients are columns of the coordinates, factors are on the device.
    fn blocks_at_once(&self, step: &Step) -> Vec<AdamBlock> {
        let (o, r, tasks) = (step.optimizer, self.streams.ranks[0], self.streams.tasks);
        let keep_before = (1.0 - step.lr * o.weight_decay) as f32;
        let shared = direction(o, 0..r, step.t, step.rate, 1.0);
        let mut blocks = vec![AdamBlock { from: 0, terms: tasks, stride: r, keep_before, ..shared }];
        for t in (0..tasks).filter(|t| self.specific() && step.active[*t]) {
            let own = direction(o, self.streams.columns(t + 1), step.t_tasks[t], step.rate, 1.0);
            let (from, gate) = (self.own_columns(t).start, Some(factors::gate(tasks, t)));
            blocks.push(AdamBlock { from, gate, keep_before, ..own });
        }
        blocks
    }

    /// Blocks of the coordinates whose products a step wants: the tasks' shared columns, then every task's own.
    fn column_pairs(&self) -> Vec<ColumnPair> {
        let (r, tasks) = (self.streams.ranks[0], self.streams.tasks);
        let own = |t: usize| if self.specific() { self.own_columns(t) } else { t * r..(t + 1) * r };
        let shared = task_pairs(tasks).map(|(i, j)| ColumnPair { a: i * r, b: j * r, width: r });
        let own = (0..tasks).map(own).map(|c| ColumnPair { a: c.start, b: c.start, width: c.len() });
        shared.chain(own).collect()
    }

    /// An update with what its norm is measured by: where bases overlap, the update through `A Aᵀ`.
    fn measured(&self, d: Tensor) -> Result<Vec<Tensor>> {
        let be = &self.backend;
        let mut update = vec![d];
        if let Some(overlap) = &self.overlap {
            let mut through = be.alloc(self.m, self.streams.total(), DType::F32)?;
            be.matmul(through.mat_mut(), 0.0, 1.0, update[0].mat(), Op::N, overlap.mat(), Op::N)?;
            update.push(through);
        }
        Ok(update)
    }
}

impl Engine for Subspaces {
    fn begin(&mut self) -> Result<()> {
        if let Some([whole, _]) = &mut self.learning {
            self.backend.fill(whole.mat_mut(), 0.0)?;
        }
        self.fresh = true;
        Ok(())
    }

    fn observe(&mut self, g: &Tapped, scales: &Scales, products: MatMut) -> Result<()> {
        if let Some(window) = &mut self.window {
            window.observe(&self.streams, g, scales)?;
        }
        let Some(h) = g.h else { return Ok(()) };
        if self.refreshes == 0 {
            return Ok(());
        }
        let r = self.streams.ranks[0];
        let mut parts = Vec::new();
        for (t, rows) in g.segments.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            parts.push(OuterPart { rows: rows.clone(), columns: 0..r, to: t * r, scale: 1.0 });
            if self.specific() {
                let to = self.own_columns(t).start;
                let (rows, columns) = (rows.clone(), self.streams.columns(t + 1));
                parts.push(OuterPart { rows, columns, to, scale: scales.tasks[t] });
            }
        }
        let pairs = self.column_pairs();
        let (products, to) = (products.col_range(0..pairs.len()), self.coordinates.mat_mut());
        self.backend.task_gradient(g.dy, h, &parts, to, self.fresh, &pairs, products)?;
        self.fresh = false;
        if let Some([whole, _]) = &mut self.learning {
            let part = OuterPart { rows: 0..h.rows, columns: r..self.streams.total(), to: 0, scale: 1.0 };
            self.backend.outer(g.dy, h, &[part], whole.mat_mut())?;
        }
        Ok(())
    }

    fn products(&self) -> Products<'_> {
        let (r, tasks) = (self.streams.ranks[0], self.streams.tasks);
        let mut quantities: Vec<Quantity> = task_pairs(tasks).map(|(i, j)| Quantity::Layer(i, j)).collect();
        quantities.extend((0..tasks).map(Quantity::Own));
        let pairs = match &self.learning {
            Some([whole, last]) => (0..tasks)
                .map(|t| {
                    let columns = self.streams.columns(t + 1);
                    let columns = columns.start - r..columns.end - r;
                    (whole.mat().col_range(columns.clone()), last.mat().col_range(columns))
                })
                .collect(),
            None => Vec::new(),
        };
        quantities.extend((0..pairs.len()).map(Quantity::Effect));
        Products { quantities, pairs }
    }

    fn direction(&mut self, step: &Step) -> Result<Vec<Tensor>> {
        let be = Arc::clone(&self.backend);
        let (r, tasks, total) = (self.streams.ranks[0], self.streams.tasks, self.streams.total());
        let (g, blocks) = (self.gradient(step)?, self.blocks(step));
        let mut d = be.zeros(self.m, total, DType::F32)?;
        let [m, v] = &mut self.moments;
        let (x, m, v) = (d.mat_mut(), m.mat_mut(), v.mat_mut());
        let update = AdamUpdate { x, g: g.mat(), m, v, blocks, copy: None, change: None };
        be.adam(vec![update], None, None)?;
        if let (Some(k), true) = (&self.protected_columns, self.projects_update()) {
            be.project_columns(d.mat_mut(), k.mat())?;
        }
        if let Some([_, last]) = &mut self.learning {
            be.copy(d.mat().col_range(r..total), last.mat_mut())?;
            for t in 0..tasks {
                let gate = step.known.gates[t] as f32;
                be.scale(d.mat_mut().col_range(self.streams.columns(t + 1)), gate)?;
            }
        }
        self.measured(d)
    }

    fn at_once(&self) -> bool {
        let projects = self.protected_columns.is_some() || self.overlap.is_some();
        !projects && self.learning.is_none() && self.refreshes > 0
    }

    fn updates<'a>(&'a mut self, layer: &'a mut AdaptedLinear, step: &Step) -> Vec<AdamUpdate<'a>> {
        let blocks = self.blocks_at_once(step);
        let [m, v] = &mut self.moments;
        let copy = layer.branch.as_mut().map(|branch| (branch.b.mat_mut(), 1.0));
        let (x, g, m, v) = (self.b.mat_mut(), self.coordinates.mat(), m.mat_mut(), v.mat_mut());
        vec![AdamUpdate { x, g, m, v, blocks, copy, change: None }]
    }

    fn change<'a>(&self, update: &'a [Tensor]) -> Vec<(Mat<'a>, Mat<'a>)> {
        let d = update[0].mat();
        vec![(d, update.get(1).map_or(d, |through| through.mat()))]
    }

    fn apply(
        &mut self,
        layer: &mut AdaptedLinear,
        update: Vec<Tensor>,
        factor: f64,
        step: &Step,
    ) -> Result<()> {
        let decay = 1.0 - step.lr * step.optimizer.weight_decay;
        if decay != 1.0 {
            self.backend.scale(self.b.mat_mut(), decay as f32)?;
        }
        self.backend.axpy(factor as f32, update[0].mat(), self.b.mat_mut())?;
        match &mut layer.branch {
            Some(branch) => self.backend.copy(self.b.mat(), branch.b.mat_mut()),
            None => Ok(()),
        }
    }

    fn state(&self, layer: &AdaptedLinear, out: &mut StateWriter) -> Result<()> {
        if let Some(branch) = &layer.branch {
            out.put("a", branch.a.mat())?;
        }
        out.put("b", self.b.mat())?;
        out.put("m", self.moments[0].mat())?;
        out.put("v", self.moments[1].mat())?;
        if let Some([_, last]) = &self.learning {
            out.put("last", last.mat())?;
        }
        if let Some(window) = &self.window {
            if let Some(probe) = window.probe() {
                out.put("window.probe", probe)?;
            }
            for (i, sum) in window.sums.iter().enumerate() {
                out.put(&format!("window.{i}"), sum.mat())?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, layer: &mut AdaptedLinear, from: &mut StateReader) -> Result<()> {
        self.attach(layer)?;
        self.refreshes = self.refreshes.max(1);
        from.get("b", self.b.mat_mut())?;
        from.get("m", self.moments[0].mat_mut())?;
        from.get("v", self.moments[1].mat_mut())?;
        if let Some(branch) = &mut layer.branch {
            from.get("a", branch.a.mat_mut())?;
            self.backend.copy(self.b.mat(), branch.b.mat_mut())?;
            if !matches!(self.options.bases, Bases::Complementary) {
                let total = self.streams.total();
                let mut overlap = self.backend.alloc(total, total, DType::F32)?;
                self.backend.matmul(
                    overlap.mat_mut(),
                    0.0,
                    1.0,
                    branch.a.mat(),
                    Op::N,
                    branch.a.mat(),
                    Op::T,
                )?;
                self.overlap = Some(overlap);
            }
        }
        if let Some([_, last]) = &mut self.learning {
            from.get("last", last.mat_mut())?;
        }
        Ok(())
    }
}

impl Subspaces {
    /// Sets what the counters were, and refills an open window: after [`Engine::restore`].
    pub fn resume(&mut self, refreshes: u64, seen: Option<Vec<bool>>, from: &StateReader) -> Result<()> {
        self.refreshes = refreshes;
        self.window = match seen {
            Some(seen) => Some(Window::restore(&self.backend, &self.streams, (self.m, self.n), seen, from)?),
            None => None,
        };
        Ok(())
    }
}
