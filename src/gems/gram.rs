//! The inner products of a step's gradients and its losses: on the device until they are read, once.

use super::pairs::task_pairs;
use super::rows::DenseParameter;
use super::tuned::Tuned;
use crate::backend::{Backend, DType, Dots, GramEntry, Indices, Mat, Tensor, factors};
use crate::error::Result;
use std::ops::Range;

/// A step's numbers, as one row on the device: inner products, summed losses, squared norms of the changes, and the
/// factors that were worked out from the former and applied to the latter.
pub(super) struct StepGram {
    tasks: usize,
    /// What every inner product is of; those of a layer, or of a dense parameter, follow each other.
    entries: Vec<GramEntry>,
    /// Their numbers.
    pub numbers: Indices,
    /// Where the products of every layer stand.
    pub sites: Vec<Range<usize>>,
    /// Whether all of a layer's are fused into its gradient kernels.
    fused: Vec<bool>,
    dense: Vec<Range<usize>>,
    /// Where the rehearsal's loss stands, and the squares of what is held of it after that; empty without a rehearsal.
    pub held: Range<usize>,
    /// The site of every squared norm of a change.
    pub changed: Vec<usize>,
    /// `[1 x n]`.
    pub values: Tensor,
    /// `[1 x 1 + 2 tasks]`, see [`factors`].
    pub factors: Tensor,
}

impl StepGram {
    pub fn new(
        be: &dyn Backend,
        tasks: usize,
        adapters: &mut [Option<Tuned>],
        dense: &[Option<DenseParameter>],
    ) -> Result<Self> {
        let mut entries = Vec::new();
        let mut place = |found: Option<Vec<GramEntry>>| {
            let first = entries.len();
            entries.extend(found.unwrap_or_default());
            first..entries.len()
        };
        let grams: Vec<_> = adapters.iter().map(|a| a.as_ref().map(|a| a.gram())).collect();
        let fused = grams.iter().map(|g| g.as_ref().is_none_or(|g| g.fused == g.pairs.len())).collect();
        let sites = grams.into_iter().map(|g| place(g.map(|g| g.entries))).collect();
        let dense = dense.iter().map(|p| place(p.as_ref().map(|p| p.gram().entries))).collect();
        let held: usize = adapters.iter_mut().flatten().map(|a| a.held().len()).sum();
        let held = place((held > 0).then(|| vec![GramEntry::Held; 1 + held]));
        let numbers: Vec<u32> = entries.iter().map(|e| e.number(tasks) as u32).collect();
        let count = entries.len() + tasks + 2 * adapters.len() + factors::count(tasks);
        Ok(Self {
            tasks,
            numbers: be.indices(&numbers)?,
            entries,
            sites,
            fused,
            dense,
            held,
            changed: Vec::new(),
            values: be.zeros(1, count, DType::F32)?,
            factors: be.zeros(1, factors::count(tasks), DType::F32)?,
        })
    }

    /// Where the inner products stand.
    pub fn products(&self) -> Range<usize> {
        0..self.entries.len()
    }
    /// Where the tasks' losses stand.
    pub fn losses(&self) -> Range<usize> {
        self.entries.len()..self.entries.len() + self.tasks
    }
    /// Where the squared norms of the changes stand.
    pub fn squares(&self) -> Range<usize> {
        self.losses().end..self.applied().start
    }
    /// Where the factors that were applied stand.
    fn applied(&self) -> Range<usize> {
        self.values.cols() - factors::count(self.tasks)..self.values.cols()
    }

    /// The inner products that were not fused into the gradient kernels; all of them when gradients were `summed` since.
    pub fn finish(
        &mut self,
        be: &dyn Backend,
        adapters: &[Option<Tuned>],
        dense: &[Option<DenseParameter>],
        summed: bool,
    ) -> Result<()> {
        let wanted =
            self.sites.iter().zip(&self.fused).map(|(at, fused)| (summed || !fused).then_some(at.start));
        let layers = adapters.iter().zip(wanted).filter_map(|(a, at)| Some((a.as_ref()?, at?)));
        let layers = layers.map(|(a, at)| (a.gram(), at));
        let dense = dense.iter().zip(&self.dense).filter_map(|(p, at)| Some((p.as_ref()?.gram(), at.start)));
        // Pairs whose places follow each other are multiplied together.
        let mut runs: Vec<(usize, Vec<(Mat, Mat)>)> = Vec::new();
        for (gram, start) in layers.chain(dense) {
            let done = if summed { 0 } else { gram.fused };
            let first = start + done;
            match runs.last_mut() {
                Some((at, pairs)) if *at + pairs.len() == first => pairs.extend(&gram.pairs[done..]),
                _ => runs.push((first, gram.pairs[done..].to_vec())),
            }
        }
        for (first, pairs) in runs.into_iter().filter(|(_, pairs)| !pairs.is_empty()) {
            let out = self.values.mat_mut().col_range(first..first + pairs.len());
            be.run(Dots { pairs, out })?;
        }
        Ok(())
    }

    /// All of it. Waits.
    pub fn read(&mut self, be: &dyn Backend) -> Result<Reading> {
        let applied = self.applied();
        be.copy(self.factors.mat(), self.values.mat_mut().col_range(applied.clone()))?;
        let values = be.download(self.values.mat())?;
        let doubles = |range: Range<usize>| values[range].iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let of_layer =
            |at: &Range<usize>| Sums::of(self.tasks, &self.entries[at.clone()], &values[at.clone()]);
        let adapted = self.sites.iter().enumerate().filter(|(_, at)| !at.is_empty());
        let squares = doubles(self.squares());
        let mut changes = vec![0.0; self.sites.len()];
        self.changed.iter().zip(&squares).for_each(|(site, square)| changes[*site] += square);
        let layer = |(site, at): (usize, &Range<usize>)| LayerReport {
            site,
            competition: of_layer(at).competition(),
            change: changes[site].max(0.0).sqrt(),
        };
        let squares: f64 = squares.iter().sum();
        Ok(Reading {
            sums: Sums::of(self.tasks, &self.entries, &values),
            layers: adapted.map(layer).collect(),
            rehearsed: values[self.held.clone()].first().map_or(0.0, |v| f64::from(*v)),
            losses: doubles(self.losses()),
            update_norm: squares.max(0.0).sqrt(),
            factors: doubles(applied),
        })
    }
}

/// How the tasks' gradients lie to each other, and to the sum that the step goes along.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Competition {
    /// Cosine between the gradients of tasks i < j; no entry where one of them is zero.
    pub cosines: Vec<(usize, usize, f64)>,
    /// Cosine between each task's gradient and the sum of all: 1 where the step is the task's own, 0 where nothing of it
    /// is. NaN where the task has no gradient.
    pub alignments: Vec<f64>,
}

/// What a step was in one adapted layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerReport {
    /// Which layer.
    pub site: usize,
    /// How the tasks compete in it.
    pub competition: Competition,
    /// Norm of its change: of W, of both factors together for LoRA.
    pub change: f64,
}

/// A [`StepGram`], read back.
pub(super) struct Reading {
    pub sums: Sums,
    /// The adapted layers one by one.
    pub layers: Vec<LayerReport>,
    pub losses: Vec<f64>,
    /// Summed divergence of the step's rehearsal.
    pub rehearsed: f64,
    /// Norm of the change of the adapted layers.
    pub update_norm: f64,
    factors: Vec<f64>,
}

impl Reading {
    /// Whether losses and gradients are finite.
    pub fn finite(&self) -> bool {
        self.sums.finite() && self.losses.iter().all(|l| l.is_finite())
    }
    /// The clipping factor that was applied.
    pub fn clip(&self) -> f64 {
        self.factors[0]
    }
    /// The tasks' weights in the combined gradient that was applied.
    pub fn weights(&self) -> &[f64] {
        &self.factors[factors::weight(0)..factors::gate(self.losses.len(), 0)]
    }
    /// The gates that were applied.
    pub fn gates(&self) -> &[f64] {
        &self.factors[factors::gate(self.losses.len(), 0)..]
    }
}

/// Inner products of a step's gradients, summed over layers ([`GramEntry`]).
pub(super) struct Sums {
    /// Of tasks over the adapted layers; tells the cosine.
    layers: Vec<Vec<f64>>,
    /// Of tasks over everything whose task gradients sum to the whole.
    additive: Vec<Vec<f64>>,
    own: Vec<f64>,
    whole: f64,
    held: f64,
    /// Of the whole gradient with every task's last update.
    pub effect: Vec<f64>,
}

impl Sums {
    fn of(tasks: usize, entries: &[GramEntry], values: &[f32]) -> Self {
        let square = || vec![vec![0.0; tasks]; tasks];
        let (own, effect) = (vec![0.0; tasks], vec![0.0; tasks]);
        let mut sums = Self { layers: square(), additive: square(), own, whole: 0.0, held: 0.0, effect };
        let add = |m: &mut Vec<Vec<f64>>, (i, j): (usize, usize), v: f64| {
            m[i][j] += v;
            if i != j {
                m[j][i] += v;
            }
        };
        for (entry, v) in entries.iter().zip(values) {
            let v = f64::from(*v);
            match *entry {
                GramEntry::Layer(i, j) => {
                    add(&mut sums.layers, (i, j), v);
                    add(&mut sums.additive, (i, j), v);
                }
                GramEntry::LayerApart(i, j) => add(&mut sums.layers, (i, j), v),
                GramEntry::Dense(i, j) => add(&mut sums.additive, (i, j), v),
                GramEntry::Own(t) => sums.own[t] += v,
                GramEntry::Whole => sums.whole += v,
                GramEntry::Held => sums.held += v,
                GramEntry::Effect(t) => sums.effect[t] += v,
            }
        }
        sums
    }

    fn finite(&self) -> bool {
        let all = self.layers.iter().chain(&self.additive).flatten().chain(&self.own);
        self.whole.is_finite() && self.held.is_finite() && all.into_iter().all(|v| v.is_finite())
    }

    /// Norms of the tasks' gradients, as the gates see them.
    pub fn task_norms(&self) -> Vec<f64> {
        self.own.iter().map(|v| v.max(0.0).sqrt()).collect()
    }

    /// Norm of the combined gradient.
    pub fn norm(&self, weights: &[f64]) -> f64 {
        let n = weights.len();
        let sum: f64 = (0..n)
            .flat_map(|i| (0..n).map(move |j| (i, j)))
            .map(|(i, j)| weights[i] * weights[j] * self.additive[i][j])
            .sum();
        (sum + self.whole).max(0.0).sqrt()
    }

    /// How the tasks' gradients of the adapted layers lie to each other and to their sum.
    pub fn competition(&self) -> Competition {
        let (g, n) = (&self.layers, self.layers.len());
        let cosine = |product: f64, squares: f64| (squares > 0.0).then(|| product / squares.sqrt());
        let apart = task_pairs(n).filter(|(i, j)| i < j);
        let along: Vec<f64> = g.iter().map(|row| row.iter().sum()).collect();
        let whole: f64 = along.iter().sum();
        Competition {
            cosines: apart.filter_map(|(i, j)| Some((i, j, cosine(g[i][j], g[i][i] * g[j][j])?))).collect(),
            alignments: (0..n).map(|t| cosine(along[t], g[t][t] * whole).unwrap_or(f64::NAN)).collect(),
        }
    }
}
