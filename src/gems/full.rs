//! Every weight trained by AdamW: the upper bound to compare with, and pretraining.

use super::adam::adamw;
use super::adapter::{Adapter, Delta, Pass, Step, Update, change_by_adam};
use super::master::{Master, NullSpace};
use super::pairs::{LayerGram, pairs_of_columns, task_pairs};
use super::pull::{LastInputs, Pull};
use super::settings::Decay;
use super::state::State;
use crate::backend::{
    AdamBlock, AdamUpdate, AdaptedLinear, Backend, DType, GradBlock, GramEntry, Mat, MatMut, Rounding,
    Tensor, WeightGrad,
};
use crate::error::Result;
use crate::layers::LinearGradient;
use std::sync::Arc;

pub(super) struct Full {
    backend: Arc<dyn Backend>,
    tasks: usize,
    master: Master,
    /// The weights the run started from, towards which a delta decays.
    start: Option<Tensor>,
    m: Tensor,
    v: Tensor,
    /// Gradients side by side, task by task, `[M x T N]`.
    sums: Tensor,
    /// The rehearsal's gradient, `[M x N]`.
    held: Option<Tensor>,
    null_space: NullSpace,
    pull: Option<Pull>,
}

impl Full {
    pub fn new(
        backend: &Arc<dyn Backend>,
        layer: &AdaptedLinear,
        tasks: usize,
        null_space: NullSpace,
        pull: Option<Pull>,
        (decays_delta, rehearses): (bool, bool),
    ) -> Result<Self> {
        let (m, n) = layer.weight.shape();
        let zeros = |cols| backend.zeros(m, cols, DType::F32);
        let start = || backend.duplicate(layer.weight.mat(), DType::F32);
        Ok(Self {
            master: Master::of(&**backend, layer)?,
            start: decays_delta.then(start).transpose()?,
            m: zeros(n)?,
            v: zeros(n)?,
            sums: zeros(tasks * n)?,
            held: rehearses.then(|| zeros(n)).transpose()?,
            tasks,
            null_space,
            pull,
            backend: Arc::clone(backend),
        })
    }

    /// What of the weights decays.
    fn decaying(&self, w: Mat, step: &Step) -> Result<Tensor> {
        let be = &self.backend;
        let mut x0 = match step.optimizer.weight_decay == 0.0 {
            true => be.zeros(w.rows, w.cols, DType::F32)?,
            false => be.duplicate(w, DType::F32)?,
        };
        if let Some(start) = &self.start {
            be.axpy(-1.0, start.mat(), x0.mat_mut())?;
        }
        Ok(x0)
    }
}

impl Adapter for Full {
    fn observe(&mut self, g: &LinearGradient, pass: &Pass, _: MatMut) -> Result<()> {
        let n = g.x.cols;
        let busy = g.segments.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        let block = |(t, rows): (usize, &std::ops::Range<usize>)| GradBlock {
            to: t * n,
            ..GradBlock::whole(rows.clone(), n)
        };
        let blocks: Vec<GradBlock> = busy.map(block).collect();
        let (out, write) = (self.sums.mat_mut(), pass.write());
        self.backend.run(WeightGrad { dy: g.dy, x: g.x, blocks: &blocks, out, write, gram: None })
    }

    fn leaves(&mut self) -> Vec<MatMut<'_>> {
        vec![self.sums.mat_mut()]
    }

    fn hold(&mut self, g: &LinearGradient, pass: &Pass) -> Result<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let blocks = &[GradBlock::whole(0..g.x.rows, g.x.cols)];
        let (out, write) = (held.mat_mut(), pass.write());
        self.backend.run(WeightGrad { dy: g.dy, x: g.x, blocks, out, write, gram: None })
    }

    fn held(&mut self) -> Vec<MatMut<'_>> {
        self.held.iter_mut().map(Tensor::mat_mut).collect()
    }

    fn gram(&self) -> LayerGram<'_> {
        let (tasks, n) = (self.tasks, self.m.cols());
        let mut entries: Vec<GramEntry> = task_pairs(tasks).map(|(i, j)| GramEntry::Layer(i, j)).collect();
        entries.extend((0..tasks).map(GramEntry::Own));
        let own = |t: usize| self.sums.mat().col_range(t * n..(t + 1) * n);
        let mut pairs = pairs_of_columns(&self.sums, tasks, n);
        pairs.extend((0..tasks).map(|t| (own(t), own(t))));
        LayerGram { entries, pairs, fused: 0 }
    }

    fn update<'a>(&'a mut self, layer: &'a mut AdaptedLinear, step: &Step) -> Result<Update<'a>> {
        let (be, n) = (Arc::clone(&self.backend), self.m.cols());
        for t in 0..self.tasks {
            self.null_space.project_gradient(&*be, self.sums.mat_mut().col_range(t * n..(t + 1) * n))?;
        }
        let all = adamw(step.optimizer, 0..n, step.t, step.rate);
        let blocks = vec![AdamBlock { terms: self.tasks, stride: n, held: step.held.0, ..all }];
        let pulls = step.optimizer.decay == Decay::Delta && self.start.is_some();
        let between = self.null_space.of_update() || pulls || step.measured_first;
        let x0 = match between {
            true => Some(self.decaying(self.master.values(layer), step)?),
            false => None,
        };
        let (to, copy) = self.master.parts(layer);
        let Some(x0) = x0 else {
            let (g, m, v) = (self.sums.mat(), self.m.mat_mut(), self.v.mat_mut());
            let held = self.held.as_ref().map(Tensor::mat);
            return Ok(Update::InPlace(vec![AdamUpdate {
                x: to,
                g,
                held,
                m,
                v,
                blocks,
                copy,
                change: None,
            }]));
        };
        let g = (self.sums.mat(), self.held.as_ref().map(Tensor::mat));
        let moments = (&mut self.m, &mut self.v);
        let mut change = change_by_adam(&*be, x0, g, moments, blocks, step.factors)?;
        self.null_space.project_update(&*be, change.mat_mut())?;
        Ok(Update::Deltas(vec![Delta { change, overlap: None, to, copy }]))
    }

    fn pull(&mut self, layer: &mut AdaptedLinear, strength: f64) -> Result<()> {
        let Some(pull) = &self.pull else { return Ok(()) };
        let (mut values, copy) = self.master.parts(layer);
        let mut inputs = LastInputs::default();
        pull.fold(&*self.backend, values.reborrow(), None, (strength, &mut inputs), Rounding::Nearest)?;
        copy.map_or(Ok(()), |(copy, _)| self.backend.copy(values.as_mat(), copy))
    }

    fn state(&mut self, layer: &mut AdaptedLinear, state: &mut State) -> Result<()> {
        self.master.state(&*self.backend, layer, state)?;
        state.optimizer("m", self.m.mat_mut())?;
        state.optimizer("v", self.v.mat_mut())?;
        self.held.iter_mut().try_for_each(|held| state.optimizer("held", held.mat_mut()))
    }
}
