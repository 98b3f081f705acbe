//! What the ways of adapting one linear layer have in common.

use super::settings::OptimizerSettings;
use crate::backend::{AdamUpdate, AdaptedLinear, Backend, Mat, MatMut, Quantity, Tensor};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// One layer's live gradient material: the gradient is `dyᵀ x`.
pub struct Tapped<'a> {
    /// Input, `[T x N]`.
    pub x: Mat<'a>,
    /// Output gradient, `[T x M]`.
    pub dy: Mat<'a>,
    /// `x Aᵀ [T x R]`, when the layer has a branch.
    pub h: Option<Mat<'a>>,
    /// `dy B [T x R]`, when the layer has a branch.
    pub z: Option<Mat<'a>>,
    /// Rows of each task.
    pub segments: &'a [Range<usize>],
}

/// Factors that turn a task's share of a micro-batch's gradient into the gradient of its own mean loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// One a task: labels of all tasks over labels of the task; 0 when it has none.
    pub tasks: Vec<f32>,
}

/// What an update may write to.
pub trait Parameters {
    /// All linear layers, in order.
    fn linears(&mut self) -> &mut [AdaptedLinear];
    /// A linear layer.
    fn linear(&mut self, site: usize) -> &mut AdaptedLinear {
        &mut self.linears()[site]
    }
    /// A dense parameter (table, norm, bias), compute dtype.
    fn dense(&mut self, index: usize) -> MatMut<'_>;
}

/// A tensor of the optimizer's state, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor {
    /// Unique name.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Values, row by row.
    pub values: Vec<f32>,
}

/// What an update needs to know about the step.
pub(super) struct Step<'a> {
    pub optimizer: &'a OptimizerSettings,
    /// Learning rate times the method's scale.
    pub rate: f64,
    /// Learning rate.
    pub lr: f64,
    /// Clipping, weights and gates, where the device has them ([`crate::backend::factors`]).
    pub factors: Mat<'a>,
    /// The same as the host knows them: only by the time of [`Engine::direction`].
    pub known: &'a Factors,
    /// Which tasks had labels.
    pub active: &'a [bool],
    /// Number of this update, from 1.
    pub t: u64,
    /// The same, counted for each task.
    pub t_tasks: &'a [u64],
}

/// What is decided from the gradients of a step before its update.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Factors {
    /// On all gradients.
    pub clip: f64,
    /// Weight of every task's gradient in the whole (surgery); all 1 without.
    pub weights: Vec<f64>,
    /// Weight of every task's own subspace.
    pub gates: Vec<f64>,
}

impl Factors {
    /// As they stand on the device ([`crate::backend::factors`]).
    pub fn as_row(&self) -> Vec<f32> {
        [self.clip].iter().chain(&self.weights).chain(&self.gates).map(|v| *v as f32).collect()
    }
}

/// Inner products an engine wants of a step, in order: what they are, and the pairs of matrices of the last of them;
/// those before are written by [`Engine::observe`].
pub(super) struct Products<'a> {
    pub quantities: Vec<Quantity>,
    pub pairs: Vec<(Mat<'a>, Mat<'a>)>,
}

/// Pairs of tasks i <= j, in the order in which their products stand.
pub(super) fn task_pairs(tasks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tasks).flat_map(move |i| (i..tasks).map(move |j| (i, j)))
}

/// One adapted layer under one method.
pub(super) trait Engine: Send {
    /// Starts a step: gradients are zero.
    fn begin(&mut self) -> Result<()>;
    /// Adds a micro-batch's gradient; `products [1 x n]` may receive the first of [`Engine::products`] as they are now.
    fn observe(&mut self, g: &Tapped, scales: &Scales, products: MatMut) -> Result<()>;
    /// Inner products of the gradients at hand.
    fn products(&self) -> Products<'_>;
    /// The step's update; its Frobenius norm is that of the change of W.
    fn direction(&mut self, step: &Step) -> Result<Vec<Tensor>>;
    /// Pairs whose inner products sum to the squared norm of the change of W.
    fn change<'a>(&self, update: &'a [Tensor]) -> Vec<(Mat<'a>, Mat<'a>)> {
        update.iter().map(|u| (u.mat(), u.mat())).collect()
    }
    /// Whether [`Engine::updates`] are the whole step: nothing comes between Adam and its application.
    fn at_once(&self) -> bool {
        false
    }
    /// The step as Adam on parameters, which reads the step's factors where they are: [`Step::known`] is not known.
    fn updates<'a>(&'a mut self, _layer: &'a mut AdaptedLinear, _step: &Step) -> Vec<AdamUpdate<'a>> {
        Vec::new()
    }
    /// Applies `factor` times an update.
    fn apply(
        &mut self,
        layer: &mut AdaptedLinear,
        update: Vec<Tensor>,
        factor: f64,
        step: &Step,
    ) -> Result<()>;
    /// Everything a resumed run needs.
    fn state(&self, layer: &AdaptedLinear, out: &mut StateWriter) -> Result<()>;
    /// Puts [`Engine::state`] back.
    fn restore(&mut self, layer: &mut AdaptedLinear, from: &mut StateReader) -> Result<()>;
}

/// Pairs of all tasks i <= j among blocks of columns of one matrix.
pub(super) fn gram_of_columns(m: &Tensor, tasks: usize, width: usize) -> Vec<(Mat<'_>, Mat<'_>)> {
    let block = |t: usize| m.mat().col_range(t * width..(t + 1) * width);
    (0..tasks).flat_map(|i| (i..tasks).map(move |j| (block(i), block(j)))).collect()
}

/// Pairs of all tasks i <= j among matrices.
pub(super) fn gram_of<'a>(all: &'a [Tensor]) -> Vec<(Mat<'a>, Mat<'a>)> {
    (0..all.len()).flat_map(|i| (i..all.len()).map(move |j| (all[i].mat(), all[j].mat()))).collect()
}

/// Collects state tensors under a prefix.
pub(super) struct StateWriter<'a> {
    pub backend: &'a Arc<dyn Backend>,
    pub prefix: String,
    pub tensors: &'a mut Vec<StateTensor>,
}

impl StateWriter<'_> {
    pub fn put(&mut self, name: &str, tensor: Mat) -> Result<()> {
        let values = self.backend.download(tensor)?;
        self.tensors.push(StateTensor {
            name: format!("{}.{name}", self.prefix),
            rows: tensor.rows,
            cols: tensor.cols,
            values,
        });
        Ok(())
    }
}

/// Finds state tensors under a prefix.
pub(super) struct StateReader<'a> {
    pub backend: &'a Arc<dyn Backend>,
    pub prefix: String,
    pub tensors: &'a HashMap<&'a str, &'a StateTensor>,
}

impl StateReader<'_> {
    pub fn find(&self, name: &str) -> Option<&StateTensor> {
        self.tensors.get(format!("{}.{name}", self.prefix).as_str()).copied()
    }
    /// Fills a matrix of the same shape.
    pub fn get(&self, name: &str, to: MatMut) -> Result<()> {
        let bad = |what: &str| {
            Error::usage(format!("the checkpoint's {}.{name} {what}", self.prefix))
                .remedy("resume with the settings the run was started with")
        };
        let found = self.find(name).ok_or_else(|| bad("is missing"))?;
        if (found.rows, found.cols) != to.shape() {
            return Err(bad(&format!("is {}x{}, not {}x{}", found.rows, found.cols, to.rows, to.cols)));
        }
        self.backend.upload(&found.values, to)
    }
}
