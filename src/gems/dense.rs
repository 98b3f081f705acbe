//! Parameters trained whole beside the adapted layers: rows of item tokens, norms, biases.

use super::adam::{adamw, direction};
use super::engine::{Scales, StateReader, StateWriter, Step};
use super::settings::Decay;
use crate::backend::{Backend, DType, Mat, MatMut, Tensor};
use crate::error::Result;
use std::sync::Arc;

/// What a dense parameter is to the optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseRole {
    /// Rows from `first_row` of an embedding table or head.
    Rows {
        /// First trained row.
        first_row: usize,
    },
    /// A norm, bias or relative position table: all of it.
    Other,
}

/// A trained dense parameter.
pub struct DenseParameter {
    backend: Arc<dyn Backend>,
    pub(super) role: DenseRole,
    rows: usize,
    cols: usize,
    /// f32 values of the trained rows.
    master: Tensor,
    moments: [Tensor; 2],
    /// Gradients: one block, or one a task.
    sums: Vec<Tensor>,
    /// The same scaled to each task's own mean loss (for the published gates' norms).
    scaled: Vec<Tensor>,
}

impl DenseParameter {
    /// A parameter with the given current values; `tasks` gradients apart where they are needed apart.
    pub(super) fn new(
        backend: &Arc<dyn Backend>,
        role: DenseRole,
        values: Mat,
        tasks: Option<usize>,
        scaled: bool,
    ) -> Result<Self> {
        let first = role.first_row();
        let (rows, cols) = (values.rows - first, values.cols);
        let zeros = || backend.zeros(rows, cols, DType::F32);
        let blocks = tasks.unwrap_or(1);
        Ok(Self {
            backend: Arc::clone(backend),
            role,
            rows,
            cols,
            master: backend.duplicate(values.row_range(first..values.rows), DType::F32)?,
            moments: [zeros()?, zeros()?],
            sums: (0..blocks).map(|_| zeros()).collect::<Result<_>>()?,
            scaled: if scaled { (0..blocks).map(|_| zeros()).collect::<Result<_>>()? } else { Vec::new() },
        })
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        self.sums.iter_mut().chain(&mut self.scaled).try_for_each(|s| self.backend.fill(s.mat_mut(), 0.0))
    }

    /// Adds a micro-batch's gradient: blocks of rows, one a task where they are apart.
    pub(super) fn observe(&mut self, blocks: Mat, scales: &Scales) -> Result<()> {
        let rows = self.rows;
        let reshaped = blocks.reshape(self.sums.len() * rows, self.cols);
        for t in 0..self.sums.len() {
            let block = reshaped.row_range(t * rows..(t + 1) * rows);
            self.backend.axpy(1.0, block, self.sums[t].mat_mut())?;
            if let Some(scaled) = self.scaled.get_mut(t) {
                self.backend.axpy(scales.tasks[t], block, scaled.mat_mut())?;
            }
        }
        Ok(())
    }

    /// Gradients, one or one a task.
    pub(super) fn gradients(&self) -> &[Tensor] {
        &self.sums
    }
    /// Gradients of every task's own mean loss, where kept.
    pub(super) fn own(&self) -> &[Tensor] {
        &self.scaled
    }

    /// One step; the change of table rows is kept off `protected` (columns `[D x k]`), where given.
    pub(super) fn step(
        &mut self,
        to: MatMut,
        lr: f64,
        step: &Step,
        protected: Option<&Tensor>,
    ) -> Result<()> {
        let be = &self.backend;
        let mut g = be.zeros(self.rows, self.cols, DType::F32)?;
        for (t, sum) in self.sums.iter().enumerate() {
            let weight = if self.sums.len() == 1 { 1.0 } else { step.weights[t] };
            be.axpy(weight as f32, sum.mat(), g.mat_mut())?;
        }
        let [m, v] = &mut self.moments;
        let x = self.master.mat_mut();
        let columns = 0..self.cols;
        match (protected, self.role) {
            (Some(k), DenseRole::Rows { .. }) => {
                let block = direction(step.optimizer, columns, step.t, lr, step.clip);
                let mut change = be.zeros(self.rows, self.cols, DType::F32)?;
                be.adam(change.mat_mut(), g.mat(), m.mat_mut(), v.mat_mut(), &[block], None, None)?;
                be.project_rows(change.mat_mut(), k.mat())?;
                be.axpy(1.0, change.mat(), x)?;
            }
            _ => {
                let block = match step.optimizer.decay {
                    Decay::Weights => adamw(step.optimizer, columns, step.t, lr, step.clip),
                    Decay::Delta => direction(step.optimizer, columns, step.t, lr, step.clip),
                };
                be.adam(x, g.mat(), m.mat_mut(), v.mat_mut(), &[block], None, None)?;
            }
        }
        self.write(to)
    }

    fn write(&self, to: MatMut) -> Result<()> {
        let (first, rows) = (self.role.first_row(), to.rows);
        self.backend.copy(self.master.mat(), to.row_range(first..rows))
    }

    pub(super) fn state(&self, out: &mut StateWriter) -> Result<()> {
        out.put("x", self.master.mat())?;
        out.put("m", self.moments[0].mat())?;
        out.put("v", self.moments[1].mat())
    }

    pub(super) fn restore(&mut self, to: MatMut, from: &mut StateReader) -> Result<()> {
        from.get("x", self.master.mat_mut())?;
        from.get("m", self.moments[0].mat_mut())?;
        from.get("v", self.moments[1].mat_mut())?;
        self.write(to)
    }
}

impl DenseRole {
    /// First trained row.
    pub fn first_row(self) -> usize {
        match self {
            DenseRole::Rows { first_row } => first_row,
            DenseRole::Other => 0,
        }
    }
}
