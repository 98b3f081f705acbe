//! LoRA (Hu et al. 2021): `W + (alpha / r) B A` with both factors trained by AdamW, as PEFT does it.

use super::adam::adamw;
use super::adapter::{Adapter, Delta, Pass, Step, Update, change_by_adam};
use super::pairs::{LayerGram, pairs_of_columns, task_pairs};
use super::pull::Pull;
use super::settings::{NullSide, NullSpaceSettings, Project};
use super::state::State;
use crate::backend::{
    AdamBlock, AdamUpdate, AdaptedLinear, Backend, Branch, ColumnPair, DType, GradBlock, Gram, GramEntry,
    Mat, MatMut, ProjectColumns, ProjectRows, Tensor, WeightGrad,
};
use crate::error::Result;
use crate::layers::LinearGradient;
use crate::random::{self, Purpose};
use rand::RngExt;
use std::sync::Arc;

pub(super) struct Lora {
    backend: Arc<dyn Backend>,
    scaling: f64,
    tasks: usize,
    /// A `[R x N]`, with gradients `[R x T N]`.
    a: Factor,
    /// B `[M x R]`, with gradients `[M x T R]`.
    b: Factor,
    protected_rows: Option<Arc<Tensor>>,
    protected_columns: Option<Arc<Tensor>>,
    project: Project,
    pull: Option<Pull>,
}

/// One of the two factors, f32.
struct Factor {
    x: Tensor,
    m: Tensor,
    v: Tensor,
    /// Gradients side by side, task by task.
    g: Tensor,
    /// The rehearsal's gradient.
    held: Option<Tensor>,
}

impl Factor {
    fn new(be: &dyn Backend, x: Tensor, (tasks, rehearses): (usize, bool)) -> Result<Self> {
        let zeros = |cols| be.zeros(x.rows(), cols, DType::F32);
        let held = rehearses.then(|| zeros(x.cols())).transpose()?;
        Ok(Self { m: zeros(x.cols())?, v: zeros(x.cols())?, g: zeros(tasks * x.cols())?, held, x })
    }

    fn of_task(&mut self, t: usize) -> MatMut<'_> {
        let width = self.x.cols();
        self.g.mat_mut().col_range(t * width..(t + 1) * width)
    }

    fn block(&self, tasks: usize, step: &Step) -> Vec<AdamBlock> {
        let all = adamw(step.optimizer, 0..self.x.cols(), step.t, step.rate);
        vec![AdamBlock { terms: tasks, stride: self.x.cols(), held: step.held.0, ..all }]
    }

    /// Adam in place.
    fn in_place<'a>(
        &'a mut self,
        copy: Option<(MatMut<'a>, f32)>,
        tasks: usize,
        step: &Step,
    ) -> AdamUpdate<'a> {
        let blocks = self.block(tasks, step);
        let (g, held) = (self.g.mat(), self.held.as_ref().map(Tensor::mat));
        let (x, m, v) = (self.x.mat_mut(), self.m.mat_mut(), self.v.mat_mut());
        AdamUpdate { x, g, held, m, v, blocks, copy, change: None }
    }

    /// The change that Adam makes.
    fn change(&mut self, be: &dyn Backend, tasks: usize, step: &Step) -> Result<Tensor> {
        let (blocks, x0) = (self.block(tasks, step), be.duplicate(self.x.mat(), DType::F32)?);
        let g = (self.g.mat(), self.held.as_ref().map(Tensor::mat));
        change_by_adam(be, x0, g, (&mut self.m, &mut self.v), blocks, step.factors)
    }
}

impl Lora {
    /// A: uniform in ±1/sqrt(N) (PEFT's Kaiming initialisation with a = sqrt 5), inside the null space when there
    /// is one on the input side; B: zero.
    pub fn new(
        backend: &Arc<dyn Backend>,
        (m, n): (usize, usize),
        (rank, alpha): (usize, f64),
        (tasks, rehearses): (usize, bool),
        null: &NullSpaceSettings,
        (protected, pull): (Option<Arc<Tensor>>, Option<Pull>),
        (seed, site): (u64, usize),
    ) -> Result<Self> {
        let mut rng = random::stream(seed, Purpose::Init, 60, site as u64);
        let bound = 1.0 / (n.max(1) as f32).sqrt();
        let values: Vec<f32> = (0..rank * n).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect();
        let (protected_rows, protected_columns) = match null.side {
            NullSide::Input => (protected, None),
            _ => (None, protected),
        };
        let mut a = backend.tensor(&values, rank, n, DType::F32)?;
        if let Some(k) = &protected_rows {
            backend.run(ProjectRows { x: a.mat_mut(), k: k.mat() })?;
        }
        let b = backend.zeros(m, rank, DType::F32)?;
        Ok(Self {
            scaling: alpha / rank as f64,
            tasks,
            a: Factor::new(&**backend, a, (tasks, rehearses))?,
            b: Factor::new(&**backend, b, (tasks, rehearses))?,
            protected_rows,
            protected_columns,
            project: null.project,
            pull,
            backend: Arc::clone(backend),
        })
    }

    /// Puts the factors into the layer.
    pub fn attach(&self, layer: &mut AdaptedLinear) -> Result<()> {
        let be = &self.backend;
        let a = be.duplicate(self.a.x.mat(), be.compute_dtype())?;
        let mut b = be.duplicate(self.b.x.mat(), be.compute_dtype())?;
        be.scale(b.mat_mut(), self.scaling as f32)?;
        layer.branch = Some(Branch { a, b });
        Ok(())
    }

    /// Takes the null space out of what belongs to A and to B.
    fn take_out(&self, be: &dyn Backend, a: MatMut, b: MatMut) -> Result<()> {
        if let Some(k) = &self.protected_rows {
            be.run(ProjectRows { x: a, k: k.mat() })?;
        }
        if let Some(k) = &self.protected_columns {
            be.run(ProjectColumns { x: b, k: k.mat() })?;
        }
        Ok(())
    }

    /// Whether the null space is taken out of gradients, and of updates.
    fn projects(&self) -> (bool, bool) {
        let any = self.protected_rows.is_some() || self.protected_columns.is_some();
        let when = |wanted: [Project; 2]| any && wanted.contains(&self.project);
        (when([Project::Gradient, Project::Both]), when([Project::Update, Project::Both]))
    }
}

impl Adapter for Lora {
    fn observe(&mut self, g: &LinearGradient, pass: &Pass, products: MatMut) -> Result<()> {
        let (Some(h), Some(z)) = (g.h, g.z) else { return Ok(()) };
        let blocks = |width: usize, scale: f32| -> Vec<GradBlock> {
            let busy = g.segments.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
            busy.map(|(t, rows)| GradBlock { rows: rows.clone(), columns: 0..width, to: t * width, scale })
                .collect()
        };
        let (r, write) = (h.cols, pass.write());
        let pair = |(i, j)| ColumnPair { a: i * r, b: j * r, width: r };
        let own = (0..self.tasks).map(|t| (t, t));
        let pairs: Vec<ColumnPair> = task_pairs(self.tasks).chain(own).map(pair).collect();
        let products = products.col_range(0..pairs.len());
        self.backend.run(WeightGrad {
            dy: g.dy,
            x: h,
            blocks: &blocks(r, self.scaling as f32),
            out: self.b.g.mat_mut(),
            write,
            gram: Some(Gram { pairs: &pairs, products }),
        })?;
        // z = dy B carries the scaling already: the layer's B is the scaled one.
        let (blocks, out) = (blocks(g.x.cols, 1.0), self.a.g.mat_mut());
        self.backend.run(WeightGrad { dy: z, x: g.x, blocks: &blocks, out, write, gram: None })
    }

    fn leaves(&mut self) -> Vec<MatMut<'_>> {
        vec![self.b.g.mat_mut(), self.a.g.mat_mut()]
    }

    fn hold(&mut self, g: &LinearGradient, pass: &Pass) -> Result<()> {
        let (Some(h), Some(z)) = (g.h, g.z) else { return Ok(()) };
        let (rows, write) = (0..g.x.rows, pass.write());
        for (dy, x, scale, held) in
            [(g.dy, h, self.scaling as f32, &mut self.b.held), (z, g.x, 1.0, &mut self.a.held)]
        {
            let Some(held) = held else { continue };
            let blocks = &[GradBlock { scale, ..GradBlock::whole(rows.clone(), x.cols) }];
            self.backend.run(WeightGrad { dy, x, blocks, out: held.mat_mut(), write, gram: None })?;
        }
        Ok(())
    }

    fn held(&mut self) -> Vec<MatMut<'_>> {
        [&mut self.b, &mut self.a].into_iter().filter_map(|f| Some(f.held.as_mut()?.mat_mut())).collect()
    }

    fn gram(&self) -> LayerGram<'_> {
        let tasks = self.tasks;
        let one: Vec<GramEntry> = task_pairs(tasks)
            .map(|(i, j)| GramEntry::Layer(i, j))
            .chain((0..tasks).map(GramEntry::Own))
            .collect();
        let mut pairs = factor_pairs(&self.b, tasks);
        let fused = pairs.len();
        pairs.extend(factor_pairs(&self.a, tasks));
        LayerGram { entries: [one.clone(), one].concat(), pairs, fused }
    }

    /// The norm of the change is to first order `|dB A|² + |B dA|²`, up to the scaling; it is told by the factors' own
    /// changes instead, which is what step matching scales.
    fn update<'a>(&'a mut self, layer: &'a mut AdaptedLinear, step: &Step) -> Result<Update<'a>> {
        let (be, tasks, scaling) = (Arc::clone(&self.backend), self.tasks, self.scaling as f32);
        let (gradient, update) = self.projects();
        if gradient {
            for t in 0..tasks {
                if let Some(k) = &self.protected_rows {
                    be.run(ProjectRows { x: self.a.of_task(t), k: k.mat() })?;
                }
                if let Some(k) = &self.protected_columns {
                    be.run(ProjectColumns { x: self.b.of_task(t), k: k.mat() })?;
                }
            }
        }
        let (copy_a, copy_b) = match &mut layer.branch {
            Some(branch) => (Some((branch.a.mat_mut(), 1.0)), Some((branch.b.mat_mut(), scaling))),
            None => (None, None),
        };
        if !update && !step.measured_first {
            let (a, b) = (self.a.in_place(copy_a, tasks, step), self.b.in_place(copy_b, tasks, step));
            return Ok(Update::InPlace(vec![a, b]));
        }
        let mut a = self.a.change(&*be, tasks, step)?;
        let mut b = self.b.change(&*be, tasks, step)?;
        if update {
            self.take_out(&*be, a.mat_mut(), b.mat_mut())?;
        }
        Ok(Update::Deltas(vec![
            Delta { change: a, overlap: None, to: self.a.x.mat_mut(), copy: copy_a },
            Delta { change: b, overlap: None, to: self.b.x.mat_mut(), copy: copy_b },
        ]))
    }

    fn pull(&mut self, layer: &mut AdaptedLinear, strength: f64) -> Result<()> {
        let Some(pull) = &self.pull else { return Ok(()) };
        pull.factor(&*self.backend, self.b.x.mat_mut(), self.a.x.mat(), strength)?;
        let Some(branch) = &mut layer.branch else { return Ok(()) };
        self.backend.copy(self.b.x.mat(), branch.b.mat_mut())?;
        self.backend.scale(branch.b.mat_mut(), self.scaling as f32)
    }

    fn state(&mut self, layer: &mut AdaptedLinear, state: &mut State) -> Result<()> {
        state.weight("a", self.a.x.mat_mut())?;
        state.weight("b", self.b.x.mat_mut())?;
        // A bare adapter (no moments) may be loaded too.
        if !state.restores() || state.shape("m.a").is_some() {
            state.optimizer("m.a", self.a.m.mat_mut())?;
            state.optimizer("v.a", self.a.v.mat_mut())?;
            state.optimizer("m.b", self.b.m.mat_mut())?;
            state.optimizer("v.b", self.b.v.mat_mut())?;
            for (name, factor) in [("held.a", &mut self.a), ("held.b", &mut self.b)] {
                let held = factor.held.iter_mut();
                held.map(Tensor::mat_mut).try_for_each(|held| state.optimizer(name, held))?;
            }
        }
        if state.restores() { self.attach(layer) } else { Ok(()) }
    }
}

/// Every pair of tasks' gradients of a factor, then every task's with itself.
fn factor_pairs(f: &Factor, tasks: usize) -> Vec<(Mat<'_>, Mat<'_>)> {
    let width = f.x.cols();
    let own = |t: usize| f.g.mat().col_range(t * width..(t + 1) * width);
    let mut pairs = pairs_of_columns(&f.g, tasks, width);
    pairs.extend((0..tasks).map(|t| (own(t), own(t))));
    pairs
}
