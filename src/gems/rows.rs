//! Parameters trained whole beside the adapted layers: rows of item tokens, norms, biases.

use super::adam::{adamw, direction};
use super::adapter::{Pass, Step, change_by_adam};
use super::pairs::{LayerGram, pairs_of_columns, task_pairs};
use super::settings::Decay;
use super::state::State;
use crate::backend::{
    Adam, AdamBlock, AdamUpdate, Backend, DType, GramEntry, Mat, MatMut, ProjectRows, Tensor,
};
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

impl DenseRole {
    /// First trained row.
    pub fn first_row(self) -> usize {
        match self {
            DenseRole::Rows { first_row } => first_row,
            DenseRole::Other => 0,
        }
    }
}

/// A trained dense parameter.
pub(super) struct DenseParameter {
    backend: Arc<dyn Backend>,
    pub role: DenseRole,
    rows: usize,
    cols: usize,
    /// f32 values of the trained rows.
    master: Tensor,
    m: Tensor,
    v: Tensor,
    /// Gradients side by side: one block of columns, or one a task.
    sums: Tensor,
    /// Blocks in `sums`.
    blocks: usize,
    /// The same scaled to each task's own mean loss (for the published gates' norms).
    scaled: Option<Tensor>,
    /// Nothing of this step is in them yet.
    fresh: bool,
}

impl DenseParameter {
    /// A parameter with the given current values; `tasks` gradients apart where they are needed apart.
    pub fn new(
        backend: &Arc<dyn Backend>,
        role: DenseRole,
        values: Mat,
        tasks: Option<usize>,
        scaled: bool,
    ) -> Result<Self> {
        let first = role.first_row();
        let (rows, cols) = (values.rows - first, values.cols);
        let zeros = |cols| backend.zeros(rows, cols, DType::F32);
        let blocks = tasks.unwrap_or(1);
        Ok(Self {
            backend: Arc::clone(backend),
            role,
            rows,
            cols,
            master: backend.duplicate(values.row_range(first..values.rows), DType::F32)?,
            m: zeros(cols)?,
            v: zeros(cols)?,
            sums: zeros(blocks * cols)?,
            blocks,
            scaled: scaled.then(|| zeros(blocks * cols)).transpose()?,
            fresh: true,
        })
    }

    /// Starts a step.
    pub fn begin(&mut self) {
        self.fresh = true;
    }

    /// Ends its passes: without any, gradients are zero.
    pub fn finish(&mut self) -> Result<()> {
        let fresh = std::mem::take(&mut self.fresh);
        let mut sums = std::iter::once(&mut self.sums).chain(&mut self.scaled).filter(|_| fresh);
        sums.try_for_each(|s| self.backend.fill(s.mat_mut(), 0.0))
    }

    fn columns(&self, block: usize) -> Range<usize> {
        block * self.cols..(block + 1) * self.cols
    }

    /// Adds a pass's gradient: blocks of rows, one a task where they are apart.
    pub fn observe(&mut self, blocks: Mat, pass: &Pass) -> Result<()> {
        let rows = self.rows;
        let reshaped = blocks.reshape(self.blocks * rows, self.cols);
        let be = Arc::clone(&self.backend);
        let add = |alpha: f32, from: Mat, mut to: MatMut| match self.fresh {
            false => be.axpy(alpha, from, to),
            true if alpha == 1.0 => be.copy(from, to),
            true => {
                be.copy(from, to.reborrow())?;
                be.scale(to, alpha)
            }
        };
        for t in 0..self.blocks {
            let (block, columns) = (reshaped.row_range(t * rows..(t + 1) * rows), self.columns(t));
            add(1.0, block, self.sums.mat_mut().col_range(columns.clone()))?;
            if let Some(scaled) = &mut self.scaled {
                add(pass.scales[t], block, scaled.mat_mut().col_range(columns))?;
            }
        }
        self.fresh = false;
        Ok(())
    }

    /// Whether the tasks' gradients are apart.
    pub fn apart(&self) -> bool {
        self.blocks > 1
    }

    /// The step's gradients.
    pub fn leaves(&mut self) -> Vec<MatMut<'_>> {
        std::iter::once(&mut self.sums).chain(&mut self.scaled).map(Tensor::mat_mut).collect()
    }

    /// Inner products of the gradients at hand.
    pub fn gram(&self) -> LayerGram<'_> {
        let entry = |(i, j)| if self.apart() { GramEntry::Dense(i, j) } else { GramEntry::Whole };
        let mut entries: Vec<GramEntry> = task_pairs(self.blocks).map(entry).collect();
        let mut pairs = pairs_of_columns(&self.sums, self.blocks, self.cols);
        if let Some(scaled) = &self.scaled {
            let own = |t| scaled.mat().col_range(self.columns(t));
            entries.extend((0..self.blocks).map(GramEntry::Own));
            pairs.extend((0..self.blocks).map(|t| (own(t), own(t))));
        }
        LayerGram { entries, pairs, fused: 0 }
    }

    /// One step; the change of table rows is kept off `protected` (columns `[D x k]`), where given.
    pub fn step(&mut self, to: MatMut, lr: f64, step: &Step, protected: Option<&Tensor>) -> Result<()> {
        let be = Arc::clone(&self.backend);
        let (o, columns) = (step.optimizer, 0..self.cols);
        let protected = protected.filter(|_| matches!(self.role, DenseRole::Rows { .. }));
        let block = match (protected, o.decay) {
            (None, Decay::Weights) => adamw(o, columns, step.t, lr),
            _ => direction(o, columns, step.t, lr),
        };
        let blocks = vec![AdamBlock { terms: self.blocks, stride: self.cols, ..block }];
        let (first, rows) = (self.role.first_row(), to.rows);
        let to = to.row_range(first..rows);
        let Some(k) = protected else {
            // The parameter and its copy in the model, in one pass over the moments.
            let (x, copy) = (self.master.mat_mut(), Some((to, 1.0)));
            let (g, m, v) = (self.sums.mat(), self.m.mat_mut(), self.v.mat_mut());
            let updates = vec![AdamUpdate { x, g, held: None, m, v, blocks, copy, change: None }];
            return be.run(Adam { updates, factors: Some(step.factors), squares: None });
        };
        let zeros = be.zeros(self.rows, self.cols, DType::F32)?;
        let (g, moments) = (self.sums.mat(), (&mut self.m, &mut self.v));
        let mut change = change_by_adam(&*be, zeros, (g, None), moments, blocks, step.factors)?;
        be.run(ProjectRows { x: change.mat_mut(), k: k.mat() })?;
        be.axpy(1.0, change.mat(), self.master.mat_mut())?;
        be.copy(self.master.mat(), to)
    }

    /// Saves or restores values and moments.
    pub fn state(&mut self, to: MatMut, state: &mut State) -> Result<()> {
        state.weight("x", self.master.mat_mut())?;
        state.optimizer("m", self.m.mat_mut())?;
        state.optimizer("v", self.v.mat_mut())?;
        if !state.restores() {
            return Ok(());
        }
        let (first, rows) = (self.role.first_row(), to.rows);
        self.backend.copy(self.master.mat(), to.row_range(first..rows))
    }
}
