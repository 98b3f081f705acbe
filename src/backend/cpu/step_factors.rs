//! [`crate::backend::StepFactors`]: clipping, surgery and gates, written to be read.

use super::rows::row;
use super::{host, host_mut};
use crate::backend::factors::{self, shares};
use crate::backend::{GateRule, GramEntry, StepFactors};

pub fn step_factors(op: StepFactors) {
    let StepFactors { products, entries, losses, labels, counts, gates, pcgrad, clip_norm, .. } = op;
    let tasks = labels.len();
    let sums = Sums::of(tasks, row(host(products), &products, 0), &entries.host);
    let losses = row(host(losses), &losses, 0);
    let weights = if pcgrad { pcgrad_weights(&sums.gram) } else { vec![1.0; tasks] };
    let clip = match sums.finite() && losses.iter().all(|l| l.is_finite()) {
        false => f64::NAN,
        true if clip_norm > 0.0 => (clip_norm / (sums.norm(&weights) + 1e-6)).min(1.0),
        true => 1.0,
    };
    let gates = match gates {
        GateRule::Fixed(gate) => vec![gate as f64; tasks],
        GateRule::Given(gates) => gates.iter().map(|g| *g as f64).collect(),
        GateRule::InverseNorm => {
            let inverse = |n: &f64| if *n > 0.0 { 1.0 / n } else { 0.0 };
            shares(&sums.norms().iter().map(inverse).collect::<Vec<_>>(), 0.0)
        }
        GateRule::Shares(of) => {
            let mean = |(sum, n): (&f32, &f32)| if *n > 0.0 { *sum as f64 / *n as f64 } else { 0.0 };
            let losses: Vec<f64> = losses.iter().zip(labels).map(mean).collect();
            let counts: Vec<f64> = counts.iter().map(|c| *c as f64).collect();
            let signals = [shares(&losses, 1e-8), shares(&sums.norms(), 1e-8), shares(&counts, 0.0)];
            let weighted = |t: usize| (0..3).map(|signal| of[signal] * signals[signal][t]).sum();
            shares(&(0..tasks).map(weighted).collect::<Vec<f64>>(), 0.0)
        }
    };
    let mut to = op.factors;
    let to = host_mut(&mut to);
    to[0] = clip as f32;
    for t in 0..tasks {
        to[factors::weight(t)] = weights[t] as f32;
        to[factors::gate(tasks, t)] = gates[t] as f32;
    }
}

/// Inner products summed over layers.
struct Sums {
    /// Of tasks, over everything whose task gradients are apart.
    gram: Vec<Vec<f64>>,
    /// The part of `gram` that sums to the whole gradient.
    additive: Vec<Vec<f64>>,
    /// Of every task's gradient with itself, as the gates see it.
    own: Vec<f64>,
    /// Of whole gradients with themselves.
    whole: f64,
    /// Of what is held beside them.
    held: f64,
}

impl Sums {
    fn of(tasks: usize, products: &[f32], entries: &[u32]) -> Self {
        let mut sums = vec![0f64; GramEntry::count(tasks)];
        for (product, entry) in products.iter().zip(entries) {
            sums[*entry as usize] += *product as f64;
        }
        let of = |entry: GramEntry| sums[entry.number(tasks)];
        let square = |f: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..tasks).map(|i| (0..tasks).map(|j| f(i.min(j), i.max(j))).collect()).collect()
        };
        let additive = |i, j| of(GramEntry::Layer(i, j)) + of(GramEntry::Dense(i, j));
        Self {
            gram: square(&|i, j| additive(i, j) + of(GramEntry::LayerApart(i, j))),
            additive: square(&additive),
            own: (0..tasks).map(|t| of(GramEntry::Own(t))).collect(),
            whole: of(GramEntry::Whole),
            held: of(GramEntry::Held),
        }
    }

    fn finite(&self) -> bool {
        let sums = [self.whole, self.held];
        sums.iter().chain(&self.own).chain(self.gram.iter().flatten()).all(|v| v.is_finite())
    }

    /// Norms of the tasks' gradients, as the gates see them.
    fn norms(&self) -> Vec<f64> {
        self.own.iter().map(|v| v.max(0.0).sqrt()).collect()
    }

    /// Norm of the combined gradient.
    fn norm(&self, weights: &[f64]) -> f64 {
        let row = |(w, products): (&f64, &Vec<f64>)| -> f64 {
            weights.iter().zip(products).map(|(v, product)| w * v * product).sum()
        };
        (weights.iter().zip(&self.additive).map(row).sum::<f64>() + self.whole).max(0.0).sqrt()
    }
}

/// PCGrad's weights (Yu et al. 2020, algorithm 1, tasks in order): with `gram[i][j] = <g_i, g_j>`, the combined gradient
/// is `Σ_t weights[t] g_t`. Each task's gradient loses its part along every other original gradient that it disagrees
/// with; all of that is linear in the gradients, so the Gram matrix is enough.
fn pcgrad_weights(gram: &[Vec<f64>]) -> Vec<f64> {
    let tasks = gram.len();
    let mut weights = vec![0.0; tasks];
    for i in 0..tasks {
        let mut c = vec![0.0; tasks];
        c[i] = 1.0;
        for j in (0..tasks).filter(|j| *j != i) {
            let along: f64 = (0..tasks).map(|k| c[k] * gram[k][j]).sum();
            if along < 0.0 && gram[j][j] > 0.0 {
                c[j] -= along / gram[j][j];
            }
        }
        weights.iter_mut().zip(c).for_each(|(w, c)| *w += c);
    }
    weights
}
