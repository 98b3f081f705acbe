//! What follows from a step's losses and inner products before its update: clipping, surgery, gates.

use super::is_f32;
use crate::backend::work::{Work, bytes};
use crate::backend::{Indices, Mat, MatMut};

/// Works out a step's factors from the inner products of its gradients and its losses, where they are, so that nobody
/// waits for them.
///
/// The clipping factor is `min(1, clip_norm / (|Σ_t weight_t g_t| + 1e-6))` as in `torch.nn.utils.clip_grad_norm_`, and
/// NaN when a loss or a product is not finite: the step is then skipped. Weights are 1, or PCGrad's (Yu et al. 2020,
/// algorithm 1, tasks in order, from the Gram matrix alone). Gates follow [`GateRule`]. All arithmetic in f64.
pub struct StepFactors<'a> {
    /// *f32* `[1 x n]`: inner products of gradients.
    pub products: Mat<'a>,
    /// [`GramEntry::number`] of every product.
    pub entries: &'a Indices,
    /// *f32* `[1 x tasks]`: summed losses.
    pub losses: Mat<'a>,
    /// Labels of every task.
    pub labels: &'a [f32],
    /// Samples of every task.
    pub counts: &'a [f32],
    /// How gates are found.
    pub gates: GateRule<'a>,
    /// Whether weights are PCGrad's; else all are 1.
    pub pcgrad: bool,
    /// Most that the combined gradient's norm may be (0: anything).
    pub clip_norm: f64,
    /// *f32* `[1 x 1 + 2 tasks]`, written ([`factors`]).
    pub factors: MatMut<'a>,
}

/// The rule of the gates of the tasks' own subspaces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GateRule<'a> {
    /// All gates are this.
    Fixed(f32),
    /// A weighted sum of the tasks' shares of loss, gradient norm and samples, normalised (published).
    Shares([f64; 3]),
    /// In inverse proportion to the gradients' norms.
    InverseNorm,
    /// These, one a task: who learns them has worked them out.
    Given(&'a [f32]),
}

/// What an inner product of a step is of; `i <= j` are tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GramEntry {
    /// Two tasks' gradients of an adapted layer.
    Layer(usize, usize),
    /// The same where the whole gradient is not their sum.
    LayerApart(usize, usize),
    /// Two tasks' gradients of a dense parameter.
    Dense(usize, usize),
    /// A task's gradient as the gates see it, with itself.
    Own(usize),
    /// A whole gradient with itself.
    Whole,
    /// What is held beside the tasks' gradients, with itself, or its loss: it only has to be finite.
    Held,
    /// The whole gradient along a task's last update.
    Effect(usize),
}

impl GramEntry {
    /// How many numbers there are among `tasks` tasks.
    pub fn count(tasks: usize) -> usize {
        3 * tasks * tasks + 2 * tasks + 2
    }
    /// Its number among those of `tasks` tasks.
    pub fn number(self, tasks: usize) -> usize {
        let square = tasks * tasks;
        match self {
            GramEntry::Layer(i, j) => i * tasks + j,
            GramEntry::LayerApart(i, j) => square + i * tasks + j,
            GramEntry::Dense(i, j) => 2 * square + i * tasks + j,
            GramEntry::Own(t) => 3 * square + t,
            GramEntry::Whole => 3 * square + tasks,
            GramEntry::Held => 3 * square + tasks + 1,
            GramEntry::Effect(t) => 3 * square + tasks + 2 + t,
        }
    }
}

/// Where in a step's factors something lies: the clipping factor first, then every task's weight in the combined
/// gradient, then the gate of every task's own subspace. A clipping factor of NaN says: skip the step.
pub mod factors {
    /// How many there are.
    pub fn count(tasks: usize) -> usize {
        1 + 2 * tasks
    }
    /// Place of a task's weight in the combined gradient.
    pub fn weight(task: usize) -> usize {
        1 + task
    }
    /// Place of the gate of a task's own subspace.
    pub fn gate(tasks: usize, task: usize) -> usize {
        1 + tasks + task
    }
    /// Every value over their sum; equal shares when the sum does not exceed `floor`.
    pub fn shares(values: &[f64], floor: f64) -> Vec<f64> {
        let total: f64 = values.iter().sum();
        if total > floor {
            values.iter().map(|v| v / total).collect()
        } else {
            vec![1.0 / values.len().max(1) as f64; values.len()]
        }
    }
}

impl StepFactors<'_> {
    pub(in crate::backend) fn check(&self) {
        let tasks = self.labels.len();
        assert!(self.products.cols == self.entries.len() && self.counts.len() == tasks, "step_factors");
        assert!(self.losses.cols == tasks && self.factors.cols == factors::count(tasks), "step_factors");
        assert!(is_f32(self.products) && is_f32(self.losses), "step_factors");
        if let GateRule::Given(gates) = self.gates {
            assert_eq!(gates.len(), tasks, "step_factors: gates");
        }
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::new(2 * bytes(self.products), self.products.cols as u64)
    }
}
