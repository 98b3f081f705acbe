//! LoRA (Hu et al. 2021): `W + (alpha / r) B A` with both factors trained by AdamW, as PEFT does it.

use super::adam::{adamw, bare};
use super::engine::{
    Engine, Products, Scales, StateReader, StateWriter, Step, Tapped, gram_of_columns, task_pairs,
};
use super::settings::{NullSide, NullSpaceSettings, Project};
use crate::backend::{
    AdamBlock, AdamUpdate, AdaptedLinear, Backend, Branch, ColumnPair, DType, Mat, MatMut, OuterPart,
    Quantity, Tensor,
};
use crate::error::Result;
use crate::random::{self, Purpose};
use rand::RngExt;
use std::sync::Arc;

pub(super) struct Lora {
    backend: Arc<dyn Backend>,
    scaling: f64,
    tasks: usize,
    /// Masters, f32: A `[R x N]`, B `[M x R]`.
    a: Tensor,
    b: Tensor,
    moments_a: [Tensor; 2],
    moments_b: [Tensor; 2],
    /// Gradients task by task: `[R x T N]` and `[M x T R]`.
    ga: Tensor,
    gb: Tensor,
    /// Nothing of this step is in `gb` yet.
    fresh: bool,
    protected_rows: Option<Arc<Tensor>>,
    protected_columns: Option<Arc<Tensor>>,
    project: Project,
}

impl Lora {
    /// A: uniform in ±1/sqrt(N) (PEFT's Kaiming initialisation with a = sqrt 5), inside the null space when there
    /// is one on the input side; B: zero.
    #[allow(clippy::too_many_arguments, reason = "the parts of one layer's adapter")]
    pub fn new(
        backend: &Arc<dyn Backend>,
        (m, n): (usize, usize),
        rank: usize,
        alpha: f64,
        tasks: usize,
        null: &NullSpaceSettings,
        protected: Option<Arc<Tensor>>,
        (seed, site): (u64, usize),
    ) -> Result<Self> {
        let mut rng = random::stream(seed, Purpose::Init, 60, site as u64);
        let bound = 1.0 / (n.max(1) as f32).sqrt();
        let values: Vec<f32> = (0..rank * n).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect();
        let zeros = |rows, cols| backend.zeros(rows, cols, DType::F32);
        let (protected_rows, protected_columns) = match null.side {
            NullSide::Input => (protected, None),
            _ => (None, protected),
        };
        let mut a = backend.tensor(&values, rank, n, DType::F32)?;
        if let Some(k) = &protected_rows {
            backend.project_rows(a.mat_mut(), k.mat())?;
        }
        Ok(Self {
            scaling: alpha / rank as f64,
            tasks,
            a,
            b: zeros(m, rank)?,
            moments_a: [zeros(rank, n)?, zeros(rank, n)?],
            moments_b: [zeros(m, rank)?, zeros(m, rank)?],
            ga: zeros(rank, tasks * n)?,
            gb: zeros(m, tasks * rank)?,
            fresh: true,
            protected_rows,
            protected_columns,
            project: null.project,
            backend: Arc::clone(backend),
        })
    }

    /// Puts the factors into the layer.
    pub fn attach(&self, layer: &mut AdaptedLinear) -> Result<()> {
        let be = &self.backend;
        let a = be.duplicate(self.a.mat(), be.compute_dtype())?;
        let mut b = be.duplicate(self.b.mat(), be.compute_dtype())?;
        be.scale(b.mat_mut(), self.scaling as f32)?;
        layer.branch = Some(Branch { a, b });
        Ok(())
    }

    fn combined(&self, blocks: &Tensor, width: usize, weights: &[f64]) -> Result<Tensor> {
        let mut sum = self.backend.alloc(blocks.rows(), width, DType::F32)?;
        for (t, weight) in weights.iter().map(|w| *w as f32).enumerate() {
            let block = blocks.mat().col_range(t * width..(t + 1) * width);
            match t {
                0 => self.backend.copy(block, sum.mat_mut())?,
                _ => self.backend.axpy(weight, block, sum.mat_mut())?,
            }
            if t == 0 && weight != 1.0 {
                self.backend.scale(sum.mat_mut(), weight)?;
            }
        }
        Ok(sum)
    }

    /// Whether the null space is taken out of the factors' gradients or updates.
    fn projects(&self) -> bool {
        self.protected_rows.is_some() || self.protected_columns.is_some()
    }
}

impl Engine for Lora {
    fn begin(&mut self) -> Result<()> {
        self.fresh = true;
        self.backend.fill(self.ga.mat_mut(), 0.0)
    }

    fn observe(&mut self, g: &Tapped, _: &Scales, products: MatMut) -> Result<()> {
        let (Some(h), Some(z)) = (g.h, g.z) else { return Ok(()) };
        let parts = |width: usize, scale: f32| -> Vec<OuterPart> {
            let busy = g.segments.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
            busy.map(|(t, rows)| OuterPart { rows: rows.clone(), columns: 0..width, to: t * width, scale })
                .collect()
        };
        let (r, scaling) = (h.cols, self.scaling as f32);
        let pair = |(i, j)| ColumnPair { a: i * r, b: j * r, width: r };
        let own = (0..self.tasks).map(|t| (t, t));
        let pairs: Vec<ColumnPair> = task_pairs(self.tasks).chain(own).map(pair).collect();
        let (products, to) = (products.col_range(0..pairs.len()), self.gb.mat_mut());
        self.backend.task_gradient(g.dy, h, &parts(r, scaling), to, self.fresh, &pairs, products)?;
        self.fresh = false;
        // z = dy B carries the scaling already: the layer's B is the scaled one.
        self.backend.outer(z, g.x, &parts(g.x.cols, 1.0), self.ga.mat_mut())
    }

    fn products(&self) -> Products<'_> {
        let mut quantities: Vec<Quantity> =
            task_pairs(self.tasks).map(|(i, j)| Quantity::Layer(i, j)).collect();
        quantities.extend((0..self.tasks).map(Quantity::Own));
        quantities.extend(quantities.clone());
        // Those of B are taken with its gradient.
        let n = self.a.cols();
        let own = |t: usize| self.ga.mat().col_range(t * n..(t + 1) * n);
        let mut pairs = gram_of_columns(&self.ga, self.tasks, n);
        pairs.extend((0..self.tasks).map(|t| (own(t), own(t))));
        Products { quantities, pairs }
    }

    fn direction(&mut self, step: &Step) -> Result<Vec<Tensor>> {
        let be = Arc::clone(&self.backend);
        let mut gb = self.combined(&self.gb, self.b.cols(), &step.known.weights)?;
        let mut ga = self.combined(&self.ga, self.a.cols(), &step.known.weights)?;
        if matches!(self.project, Project::Gradient | Project::Both) {
            if let Some(k) = &self.protected_columns {
                be.project_columns(gb.mat_mut(), k.mat())?;
            }
            if let Some(k) = &self.protected_rows {
                be.project_rows(ga.mat_mut(), k.mat())?;
            }
        }
        let mut updates = Vec::new();
        for (x, g, [m, v]) in [(&self.a, &ga, &mut self.moments_a), (&self.b, &gb, &mut self.moments_b)] {
            let mut new = be.duplicate(x.mat(), DType::F32)?;
            let block = adamw(step.optimizer, 0..x.cols(), step.t, step.rate, step.known.clip);
            be.adam(vec![bare(&mut new, g, (m, v), block)], None, None)?;
            be.axpy(-1.0, x.mat(), new.mat_mut())?;
            updates.push(new);
        }
        if matches!(self.project, Project::Update | Project::Both) {
            if let Some(k) = &self.protected_rows {
                be.project_rows(updates[0].mat_mut(), k.mat())?;
            }
            if let Some(k) = &self.protected_columns {
                be.project_columns(updates[1].mat_mut(), k.mat())?;
            }
        }
        Ok(updates)
    }

    fn at_once(&self) -> bool {
        !self.projects()
    }

    fn updates<'a>(&'a mut self, layer: &'a mut AdaptedLinear, step: &Step) -> Vec<AdamUpdate<'a>> {
        let (tasks, scaling) = (self.tasks, self.scaling as f32);
        let block = |width: usize| {
            let all = adamw(step.optimizer, 0..width, step.t, step.rate, 1.0);
            vec![AdamBlock { terms: tasks, stride: width, ..all }]
        };
        let (copy_a, copy_b) = match &mut layer.branch {
            Some(branch) => (Some((branch.a.mat_mut(), 1.0)), Some((branch.b.mat_mut(), scaling))),
            None => (None, None),
        };
        let [am, av] = &mut self.moments_a;
        let [bm, bv] = &mut self.moments_b;
        let (wide, narrow) = (block(self.a.cols()), block(self.b.cols()));
        vec![
            AdamUpdate { copy: copy_a, blocks: wide, ..adam_of(&mut self.a, &self.ga, am, av) },
            AdamUpdate { copy: copy_b, blocks: narrow, ..adam_of(&mut self.b, &self.gb, bm, bv) },
        ]
    }

    /// To first order `|dB A|² + |B dA|²`, up to the scaling: told by the factors' own changes instead, which is
    /// what step matching scales.
    fn change<'a>(&self, update: &'a [Tensor]) -> Vec<(Mat<'a>, Mat<'a>)> {
        update.iter().map(|u| (u.mat(), u.mat())).collect()
    }

    fn apply(&mut self, layer: &mut AdaptedLinear, update: Vec<Tensor>, factor: f64, _: &Step) -> Result<()> {
        self.backend.axpy(factor as f32, update[0].mat(), self.a.mat_mut())?;
        self.backend.axpy(factor as f32, update[1].mat(), self.b.mat_mut())?;
        let Some(branch) = &mut layer.branch else { return Ok(()) };
        self.backend.copy(self.a.mat(), branch.a.mat_mut())?;
        self.backend.copy(self.b.mat(), branch.b.mat_mut())?;
        self.backend.scale(branch.b.mat_mut(), self.scaling as f32)
    }

    fn state(&self, _: &AdaptedLinear, out: &mut StateWriter) -> Result<()> {
        out.put("a", self.a.mat())?;
        out.put("b", self.b.mat())?;
        for (name, tensor) in ["m.a", "v.a"].iter().zip(&self.moments_a) {
            out.put(name, tensor.mat())?;
        }
        for (name, tensor) in ["m.b", "v.b"].iter().zip(&self.moments_b) {
            out.put(name, tensor.mat())?;
        }
        Ok(())
    }

    fn restore(&mut self, layer: &mut AdaptedLinear, from: &mut StateReader) -> Result<()> {
        from.get("a", self.a.mat_mut())?;
        from.get("b", self.b.mat_mut())?;
        // A bare adapter (no moments) may be loaded too.
        if from.find("m.a").is_some() {
            from.get("m.a", self.moments_a[0].mat_mut())?;
            from.get("v.a", self.moments_a[1].mat_mut())?;
            from.get("m.b", self.moments_b[0].mat_mut())?;
            from.get("v.b", self.moments_b[1].mat_mut())?;
        }
        self.attach(layer)
    }
}

/// Adam on a factor, constants to follow.
fn adam_of<'a>(x: &'a mut Tensor, g: &'a Tensor, m: &'a mut Tensor, v: &'a mut Tensor) -> AdamUpdate<'a> {
    let (x, g, m, v) = (x.mat_mut(), g.mat(), m.mat_mut(), v.mat_mut());
    AdamUpdate { x, g, m, v, blocks: Vec::new(), copy: None, change: None }
}
