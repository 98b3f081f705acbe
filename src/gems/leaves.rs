//! A step's gradients in leaves, to be summed over machines in an order that does not depend on how many there are.

use super::Optimizer;
use super::rows::DenseParameter;
use crate::backend::{Backend, MatMut, Tensor};
use crate::error::Result;
use std::sync::Arc;

impl Optimizer {
    /// Begins the passes of a step whose gradients come in leaves. `labels`: of the whole step, by task. Returns what open
    /// windows have summed before, which is kept apart from what is summed now.
    ///
    /// # Errors
    /// The device.
    pub fn begin_leaves(&mut self, labels: &[usize]) -> Result<Vec<f32>> {
        let be = Arc::clone(&self.backend);
        // What a window has seen is of the whole step, and not of what this machine has of it.
        for (_, s) in self.subspaces() {
            if let Some(window) = &mut s.window {
                window.seen.iter_mut().zip(labels).for_each(|(seen, n)| *seen |= *n > 0);
            }
        }
        take(&*be, self.windows())
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

    /// Ends a leaf: everything that its passes have added up, one after the other. Waits.
    ///
    /// # Errors
    /// The device.
    pub fn take_leaf(&mut self) -> Result<Vec<f32>> {
        let be = Arc::clone(&self.backend);
        let mut values = Vec::new();
        for leaf in self.leaves()? {
            values.extend(be.download(leaf.as_mat())?);
        }
        values.extend(take(&*be, self.windows())?);
        Ok(values)
    }

    /// Ends the step's passes with the sum of all leaves, and what windows had summed before them.
    ///
    /// # Errors
    /// The device.
    pub fn put_sum(&mut self, sum: &[f32], before: &[f32]) -> Result<()> {
        let (be, mut rest) = (Arc::clone(&self.backend), sum);
        // Whatever was observed here, there are gradients now.
        self.passes = 1;
        for leaf in self.leaves()? {
            let (own, after) = rest.split_at(leaf.rows * leaf.cols);
            (rest, _) = (after, be.upload(own, leaf)?);
        }
        let windows: Vec<f32> = before.iter().zip(rest).map(|(before, now)| before + now).collect();
        let mut rest = &windows[..];
        for window in self.windows() {
            let (own, after) = rest.split_at(window.rows * window.cols);
            (rest, _) = (after, be.upload(own, window)?);
        }
        Ok(())
    }

    /// The sums of open windows.
    fn windows(&mut self) -> Vec<MatMut<'_>> {
        let open = self.subspaces().filter_map(|(_, s)| s.window.as_mut());
        open.flat_map(|window| &mut window.sums).map(Tensor::mat_mut).collect()
    }
}

/// The values of matrices, which are zero afterwards.
fn take(be: &dyn Backend, all: Vec<MatMut>) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for mut m in all {
        values.extend(be.download(m.as_mat())?);
        be.fill(m.reborrow(), 0.0)?;
    }
    Ok(values)
}
