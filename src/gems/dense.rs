//! Parameters trained whole beside the adapted layers: rows of item tokens, norms, biases.

use super::adam::{adamw, direction};
use super::engine::{Products, Scales, StateReader, StateWriter, Step, task_pairs};
use super::settings::Decay;
use crate::backend::{AdamBlock, AdamUpdate, Backend, DType, Mat, MatMut, Quantity, Tensor};
use crate::error::Result;
use std::ops::Range;
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
    /// Gradients side by side: one block of columns, or one a task.
    sums: Tensor,
    /// Blocks in `sums`.
    blocks: usize,
    /// The same scaled to each task's own mean loss (for the published gates' norms).
    scaled: Option<Tensor>,
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
            sums: backend.zeros(rows, blocks * cols, DType::F32)?,
            blocks,
            scaled: scaled.then(|| backend.zeros(rows, blocks * cols, DType::F32)).transpose()?,
        })
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        let mut all = std::iter::once(&mut self.sums).chain(&mut self.scaled);
        all.try_for_each(|s| self.backend.fill(s.mat_mut(), 0.0))
    }

    fn columns(&self, block: usize) -> Range<usize> {
        block * self.cols..(block + 1) * self.cols
    }

    /// Adds a micro-batch's gradient: blocks of rows, one a task where they are apart.
    pub(super) fn observe(&mut self, blocks: Mat, scales: &Scales) -> Result<()> {
        let rows = self.rows;
        let reshaped = blocks.reshape(self.blocks * rows, self.cols);
        for t in 0..self.blocks {
            let (block, columns) = (reshaped.row_range(t * rows..(t + 1) * rows), self.columns(t));
            self.backend.axpy(1.0, block, self.sums.mat_mut().col_range(columns.clone()))?;
            if let Some(scaled) = &mut self.scaled {
                self.backend.axpy(scales.tasks[t], block, scaled.mat_mut().col_range(columns))?;
            }
        }
        Ok(())
    }

    /// Whether the tasks' gradients are apart.
    pub(super) fn apart(&self) -> bool {
        self.blocks > 1
    }

    /// Inner products of the gradients at hand.
    pub(super) fn products(&self) -> Products<'_> {
        let (mut quantities, mut pairs) = (Vec::new(), Vec::new());
        for (i, j) in task_pairs(self.blocks) {
            quantities.push(if self.apart() { Quantity::Dense(i, j) } else { Quantity::Whole });
            pairs.push((
                self.sums.mat().col_range(self.columns(i)),
                self.sums.mat().col_range(self.columns(j)),
            ));
        }
        for t in (0..self.blocks).filter(|_| self.scaled.is_some()) {
            quantities.push(Quantity::Own(t));
            let own = self.scaled.as_ref().map(|scaled| scaled.mat().col_range(self.columns(t)));
            pairs.extend(own.map(|own| (own, own)));
        }
        Products { quantities, pairs }
    }

    /// One step; the change of table rows is kept off `protected` (columns `[D x k]`), where given.
    pub(super) fn step(
        &mut self,
        to: MatMut,
        lr: f64,
        step: &Step,
        protected: Option<&Tensor>,
    ) -> Result<()> {
        let be = Arc::clone(&self.backend);
        let (o, columns) = (step.optimizer, 0..self.cols);
        let keeps_off = protected.filter(|_| matches!(self.role, DenseRole::Rows { .. }));
        let block = match (keeps_off, o.decay) {
            (None, Decay::Weights) => adamw(o, columns, step.t, lr, 1.0),
            _ => direction(o, columns, step.t, lr, 1.0),
        };
        let blocks = vec![AdamBlock { terms: self.blocks, stride: self.cols, ..block }];
        let [m, v] = &mut self.moments;
        let (g, m, v) = (self.sums.mat(), m.mat_mut(), v.mat_mut());
        let (first, rows) = (self.role.first_row(), to.rows);
        let to = to.row_range(first..rows);
        let Some(k) = keeps_off else {
            // The parameter and its copy in the model, in one pass over the moments.
            let (x, copy) = (self.master.mat_mut(), Some((to, 1.0)));
            let update = AdamUpdate { x, g, m, v, blocks, copy, change: None };
            return be.adam(vec![update], Some(step.factors), None);
        };
        let mut change = be.zeros(self.rows, self.cols, DType::F32)?;
        let update = AdamUpdate { x: change.mat_mut(), g, m, v, blocks, copy: None, change: None };
        be.adam(vec![update], Some(step.factors), None)?;
        be.project_rows(change.mat_mut(), k.mat())?;
        be.axpy(1.0, change.mat(), self.master.mat_mut())?;
        be.copy(self.master.mat(), to)
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
