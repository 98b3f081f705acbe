//! A step's gradients in leaves, to be summed over machines in an order that does not depend on how many there are.
//!
//! A leaf is one row of numbers on the device: of each layer its gradient and what its open window has summed, then losses,
//! dense parameters and numbers of the caller's. Nothing of it passes through the host. What a layer has added is final when
//! the last pass has gone backward through it, so it can be taken then ([`Optimizer::take_layer`]).

use super::Optimizer;
use super::rows::DenseParameter;
use super::subspaces::Subspaces;
use crate::backend::{Backend, DType, Mat, MatMut, Tensor};
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;

/// Where the numbers of a leaf are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafLayout {
    /// Those of each layer, one after the other; none of a layer that is not adapted.
    pub layers: Vec<Range<usize>>,
    /// Everything else, behind them.
    pub rest: Range<usize>,
}

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
        let windows: Vec<MatMut> = self.subspaces().flat_map(|(_, s)| open_window(s)).collect();
        let mut before = be.alloc(1, windows.iter().map(numbers).sum(), DType::F32)?;
        let mut row = Row { values: before.mat_mut(), filled: 0 };
        windows.into_iter().try_for_each(|window| row.take(&*be, window))?;
        Ok(before)
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

    /// Where a leaf's numbers are, with `beside` of the caller's at the end.
    pub fn leaf_layout(&mut self, beside: usize) -> LeafLayout {
        let mut at = 0;
        let mut layers = Vec::new();
        for layer in 0..self.adapters.len() {
            let (leaves, windows) =
                (self.layer(layer).iter().map(numbers).sum::<usize>(), self.window(layer));
            let from = at;
            at += leaves + windows.iter().map(numbers).sum::<usize>();
            layers.push(from..at);
        }
        let rest: usize = self.rest().iter().map(numbers).sum();
        LeafLayout { layers, rest: at..at + rest + beside }
    }

    /// Ends a leaf: everything that its passes have added up, in the order of [`Optimizer::leaf_layout`], *f32* `[1 x n]`.
    ///
    /// # Errors
    /// The device.
    pub fn take_leaf(&mut self, beside: &[f32]) -> Result<Tensor> {
        let LeafLayout { layers, rest } = self.leaf_layout(beside.len());
        let mut leaf = self.backend.alloc(1, rest.end, DType::F32)?;
        for (layer, columns) in layers.into_iter().enumerate() {
            self.take_layer(layer, leaf.mat_mut().col_range(columns))?;
        }
        self.take_rest(beside, leaf.mat_mut().col_range(rest))?;
        Ok(leaf)
    }

    /// What the passes of a leaf have added up in one layer, into its columns of the leaf.
    ///
    /// # Errors
    /// The device.
    pub fn take_layer(&mut self, layer: usize, to: MatMut) -> Result<()> {
        let (be, seen) = (Arc::clone(&self.backend), self.passes > 0);
        self.taken = true;
        let mut row = Row { values: to, filled: 0 };
        for leaf in self.layer(layer) {
            // Without a pass what is there is of the step before.
            if seen { row.add(&*be, leaf.as_mat())? } else { be.fill(row.next(leaf.rows, leaf.cols), 0.0)? }
        }
        self.window(layer).into_iter().try_for_each(|window| row.take(&*be, window))
    }

    /// What is not of a layer, and `beside`, into the last columns of the leaf.
    ///
    /// # Errors
    /// The device.
    pub fn take_rest(&mut self, beside: &[f32], to: MatMut) -> Result<()> {
        let be = Arc::clone(&self.backend);
        self.dense.iter_mut().flatten().try_for_each(DenseParameter::finish)?;
        let mut row = Row { values: to, filled: 0 };
        self.rest().iter().try_for_each(|part| row.add(&*be, part.as_mat()))?;
        be.upload(beside, row.next(1, beside.len()))
    }

    /// Ends the step's passes with the sum of all leaves, and what windows had summed before them.
    ///
    /// # Errors
    /// The device.
    pub fn put_sum(&mut self, sum: Mat, before: Mat) -> Result<()> {
        let be = Arc::clone(&self.backend);
        // Whatever was observed here, there are gradients now.
        self.passes = 1;
        let (mut at, mut from) = (0, 0);
        for layer in 0..self.adapters.len() {
            for leaf in self.layer(layer) {
                be.copy(part(sum, &mut at, &leaf), leaf)?;
            }
            for mut window in self.window(layer) {
                be.copy(part(before, &mut from, &window), window.reborrow())?;
                be.axpy(1.0, part(sum, &mut at, &window), window)?;
            }
        }
        for leaf in self.rest() {
            be.copy(part(sum, &mut at, &leaf), leaf)?;
        }
        Ok(())
    }

    /// The gradients of a layer.
    fn layer(&mut self, layer: usize) -> Vec<MatMut<'_>> {
        self.adapters[layer].iter_mut().flat_map(|adapter| adapter.leaves()).collect()
    }

    /// The sums of a layer's open window.
    fn window(&mut self, layer: usize) -> Vec<MatMut<'_>> {
        let subspaces = self.adapters[layer].as_mut().and_then(|adapter| adapter.subspaces());
        subspaces.map_or_else(Vec::new, open_window)
    }

    /// Losses, and the gradients of dense parameters.
    fn rest(&mut self) -> Vec<MatMut<'_>> {
        let losses = self.gram.losses();
        let mut rest = vec![self.gram.values.mat_mut().col_range(losses)];
        rest.extend(self.dense.iter_mut().flatten().flat_map(DenseParameter::leaves));
        rest
    }
}

/// What an open window has summed.
fn open_window(s: &mut Subspaces) -> Vec<MatMut<'_>> {
    s.window.iter_mut().flat_map(|window| &mut window.sums).map(Tensor::mat_mut).collect()
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
struct Row<'a> {
    values: MatMut<'a>,
    filled: usize,
}

impl Row<'_> {
    /// The next numbers, as a matrix.
    fn next(&mut self, rows: usize, cols: usize) -> MatMut<'_> {
        let from = self.filled;
        self.filled += rows * cols;
        self.values.reborrow().col_range(from..self.filled).reshape(rows, cols)
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
