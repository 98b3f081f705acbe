//! A step's gradients in leaves, to be summed over machines in an order that does not depend on how many there are.
//!
//! A leaf is one row of numbers on the device: gradients and losses, what open windows have summed, and numbers of the
//! caller's. Nothing of it passes through the host.

use super::Optimizer;
use super::rows::DenseParameter;
use crate::backend::{Backend, DType, Mat, MatMut, Tensor};
use crate::error::Result;
use std::sync::Arc;

impl Optimizer {
    /// Begins the passes of a step whose gradients come in leaves. `labels`: of the whole step, by task. Returns what open
    /// windows have summed before, which is kept apart from what is summed now.
    ///
    /// # Errors
    /// The device.
    pub fn begin_leaves(&mut self, labels: &[usize]) -> Result<Tensor> {
        let be = Arc::clone(&self.backend);
        // What a window has seen is of the whole step, and not of what this machine has of it.
        for (_, s) in self.subspaces() {
            if let Some(window) = &mut s.window {
                window.seen.iter_mut().zip(labels).for_each(|(seen, n)| *seen |= *n > 0);
            }
        }
        let windows = self.windows();
        let mut before = Row::of(&*be, windows.iter().map(numbers).sum())?;
        windows.into_iter().try_for_each(|window| before.take(&*be, window))?;
        Ok(before.values)
    }

    /// Begins a leaf.
    ///
    /// # Errors
    /// The device.
    pub fn begin_leaf(&mut self) -> Result<()> {
        self.passes = 0;
        self.dense.iter_mut().flatten().for_each(DenseParameter::begin);
        let losses = self.gram.losses();
        self.backend.fill(self.gram.values.mat_mut().col_range(losses), 0.0)
    }

    /// Ends a leaf: everything that its passes have added up, one after the other, and `beside` at the end, *f32*
    /// `[1 x n]`.
    ///
    /// # Errors
    /// The device.
    pub fn take_leaf(&mut self, beside: &[f32]) -> Result<Tensor> {
        let be = Arc::clone(&self.backend);
        let in_windows: usize = self.windows().iter().map(numbers).sum();
        let leaves = self.leaves()?;
        let own: usize = leaves.iter().map(numbers).sum();
        let mut row = Row::of(&*be, own + in_windows + beside.len())?;
        leaves.iter().try_for_each(|leaf| row.add(&*be, leaf.as_mat()))?;
        self.windows().into_iter().try_for_each(|window| row.take(&*be, window))?;
        be.upload(beside, row.next(1, beside.len()))?;
        Ok(row.values)
    }

    /// Ends the step's passes with the sum of all leaves, and what windows had summed before them.
    ///
    /// # Errors
    /// The device.
    pub fn put_sum(&mut self, sum: Mat, before: Mat) -> Result<()> {
        let be = Arc::clone(&self.backend);
        // Whatever was observed here, there are gradients now.
        self.passes = 1;
        let mut at = 0;
        for leaf in self.leaves()? {
            be.copy(part(sum, &mut at, &leaf), leaf)?;
        }
        let mut from = 0;
        for mut window in self.windows() {
            be.copy(part(before, &mut from, &window), window.reborrow())?;
            be.axpy(1.0, part(sum, &mut at, &window), window)?;
        }
        Ok(())
    }

    /// The sums of open windows.
    fn windows(&mut self) -> Vec<MatMut<'_>> {
        let open = self.subspaces().filter_map(|(_, s)| s.window.as_mut());
        open.flat_map(|window| &mut window.sums).map(Tensor::mat_mut).collect()
    }
}

fn numbers(m: &MatMut) -> usize {
    m.rows * m.cols
}

/// The numbers of `row` from `at` on, in the shape of `like`; the next ones are those behind.
fn part<'a>(row: Mat<'a>, at: &mut usize, like: &MatMut) -> Mat<'a> {
    let from = *at;
    *at += numbers(like);
    row.col_range(from..*at).reshape(like.rows, like.cols)
}

/// Matrices one after the other.
struct Row {
    values: Tensor,
    filled: usize,
}

impl Row {
    /// Room for `n` numbers.
    fn of(be: &dyn Backend, n: usize) -> Result<Self> {
        Ok(Self { values: be.alloc(1, n, DType::F32)?, filled: 0 })
    }

    /// The next numbers, as a matrix.
    fn next(&mut self, rows: usize, cols: usize) -> MatMut<'_> {
        let from = self.filled;
        self.filled += rows * cols;
        self.values.mat_mut().col_range(from..self.filled).reshape(rows, cols)
    }

    fn add(&mut self, be: &dyn Backend, m: Mat) -> Result<()> {
        be.copy(m, self.next(m.rows, m.cols))
    }

    /// Adds a matrix, which is zero afterwards.
    fn take(&mut self, be: &dyn Backend, m: MatMut) -> Result<()> {
        self.add(be, m.as_mat())?;
        be.fill(m, 0.0)
    }
}
