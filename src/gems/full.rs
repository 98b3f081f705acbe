//! Every weight trained by AdamW: the upper bound to compare with, and pretraining.

use super::adam::{bare, direction};
use super::engine::{Engine, Products, Scales, StateReader, StateWriter, Step, Tapped, gram_of, task_pairs};
use super::settings::{Decay, NullSide, NullSpaceSettings, Project};
use crate::backend::{AdaptedLinear, Backend, DType, MatMut, OuterPart, Quantity, Tensor};
use crate::error::Result;
use std::sync::Arc;

pub(super) struct Full {
    backend: Arc<dyn Backend>,
    /// f32 weights, where the layer's are not.
    master: Option<Tensor>,
    /// The weights the run started from, towards which a delta decays.
    start: Option<Tensor>,
    moments: [Tensor; 2],
    /// Gradients, task by task.
    sums: Vec<Tensor>,
    side: NullSide,
    project: Project,
    protected: Option<Arc<Tensor>>,
}

impl Full {
    pub fn new(
        backend: &Arc<dyn Backend>,
        layer: &AdaptedLinear,
        tasks: usize,
        null: &NullSpaceSettings,
        protected: Option<Arc<Tensor>>,
        decays_delta: bool,
    ) -> Result<Self> {
        let (m, n) = layer.weight.shape();
        let zeros = || backend.zeros(m, n, DType::F32);
        let copy = || backend.duplicate(layer.weight.mat(), DType::F32);
        Ok(Self {
            master: if layer.weight.dtype() == DType::F32 { None } else { Some(copy()?) },
            start: if decays_delta { Some(copy()?) } else { None },
            moments: [zeros()?, zeros()?],
            sums: (0..tasks).map(|_| zeros()).collect::<Result<_>>()?,
            side: null.side,
            project: null.project,
            protected,
            backend: Arc::clone(backend),
        })
    }

    fn project(&self, x: &mut Tensor) -> Result<()> {
        match (&self.protected, self.side) {
            (Some(k), NullSide::Input) => self.backend.project_rows(x.mat_mut(), k.mat()),
            (Some(k), NullSide::Output) => self.backend.project_columns(x.mat_mut(), k.mat()),
            _ => Ok(()),
        }
    }
}

impl Engine for Full {
    fn begin(&mut self) -> Result<()> {
        self.sums.iter_mut().try_for_each(|s| self.backend.fill(s.mat_mut(), 0.0))
    }

    fn observe(&mut self, g: &Tapped, _: &Scales, _: MatMut) -> Result<()> {
        for (sum, rows) in self.sums.iter_mut().zip(g.segments).filter(|(_, rows)| !rows.is_empty()) {
            let part = OuterPart { rows: rows.clone(), columns: 0..g.x.cols, to: 0, scale: 1.0 };
            self.backend.outer(g.dy, g.x, &[part], sum.mat_mut())?;
        }
        Ok(())
    }

    fn products(&self) -> Products<'_> {
        let tasks = self.sums.len();
        let mut quantities: Vec<Quantity> = task_pairs(tasks).map(|(i, j)| Quantity::Layer(i, j)).collect();
        quantities.extend((0..tasks).map(Quantity::Own));
        let mut pairs = gram_of(&self.sums);
        pairs.extend(self.sums.iter().map(|s| (s.mat(), s.mat())));
        Products { quantities, pairs }
    }

    fn direction(&mut self, step: &Step) -> Result<Vec<Tensor>> {
        let be = Arc::clone(&self.backend);
        let (m, n) = self.moments[0].shape();
        let mut g = be.zeros(m, n, DType::F32)?;
        for (sum, weight) in self.sums.iter().zip(&step.known.weights) {
            be.axpy(*weight as f32, sum.mat(), g.mat_mut())?;
        }
        if matches!(self.project, Project::Gradient | Project::Both) {
            self.project(&mut g)?;
        }
        let mut d = be.zeros(m, n, DType::F32)?;
        let block = direction(step.optimizer, 0..n, step.t, step.rate, step.known.clip);
        let [first, second] = &mut self.moments;
        be.adam(vec![bare(&mut d, &g, (first, second), block)], None, None)?;
        if matches!(self.project, Project::Update | Project::Both) {
            self.project(&mut d)?;
        }
        Ok(vec![d])
    }

    fn apply(
        &mut self,
        layer: &mut AdaptedLinear,
        update: Vec<Tensor>,
        factor: f64,
        step: &Step,
    ) -> Result<()> {
        let be = &self.backend;
        let decay = (step.lr * step.optimizer.weight_decay) as f32;
        let mut w = match &mut self.master {
            Some(master) => master.mat_mut(),
            None => layer.weight.mat_mut(),
        };
        let after = step.optimizer.eps_before_correction;
        let pull = |w: &mut crate::backend::MatMut| -> Result<()> {
            if decay != 0.0 {
                be.scale(w.reborrow(), 1.0 - decay)?;
                if let (Decay::Delta, Some(start)) = (step.optimizer.decay, &self.start) {
                    be.axpy(decay, start.mat(), w.reborrow())?;
                }
            }
            Ok(())
        };
        if !after {
            pull(&mut w)?;
        }
        be.axpy(factor as f32, update[0].mat(), w.reborrow())?;
        if after {
            pull(&mut w)?;
        }
        match &self.master {
            Some(master) => be.copy(master.mat(), layer.weight.mat_mut()),
            None => Ok(()),
        }
    }

    fn state(&self, layer: &AdaptedLinear, out: &mut StateWriter) -> Result<()> {
        out.put("w", self.master.as_ref().unwrap_or(&layer.weight).mat())?;
        out.put("m", self.moments[0].mat())?;
        out.put("v", self.moments[1].mat())
    }

    fn restore(&mut self, layer: &mut AdaptedLinear, from: &mut StateReader) -> Result<()> {
        match &mut self.master {
            Some(master) => {
                from.get("w", master.mat_mut())?;
                self.backend.copy(master.mat(), layer.weight.mat_mut())?;
            }
            None => from.get("w", layer.weight.mat_mut())?,
        }
        from.get("m", self.moments[0].mat_mut())?;
        from.get("v", self.moments[1].mat_mut())
    }
}
