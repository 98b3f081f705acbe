//! The inner products of a step's gradients, from which surgery, clipping, gates and cosines follow.

use super::dense::DenseParameter;
use super::engine::Engine;
use crate::backend::{Backend, DType, Mat};
use crate::error::Result;

#[derive(Clone, Copy)]
enum Slot {
    /// Tasks i <= j of an adapted layer; whether the whole gradient is the sum of the tasks'.
    Gram(usize, usize, bool),
    /// Tasks i <= j of a dense parameter.
    Dense(usize, usize),
    Own(usize),
    Whole,
    Effect(usize),
}

/// Inner products of a step, summed over layers.
pub(super) struct StepProducts {
    /// Of tasks over everything whose task gradients are apart; decides surgery.
    pub gram: Vec<Vec<f64>>,
    /// Of tasks over the adapted layers; tells the cosine.
    layers: Vec<Vec<f64>>,
    /// The part of `gram` that sums to the whole gradient.
    additive: Vec<Vec<f64>>,
    pub own: Vec<f64>,
    whole: f64,
    pub effect: Vec<f64>,
}

impl StepProducts {
    /// Collects what engines and dense parameters want multiplied, multiplies it at once, and waits.
    pub fn of<'a>(
        backend: &dyn Backend,
        tasks: usize,
        engines: impl Iterator<Item = &'a dyn Engine>,
        dense: impl Iterator<Item = &'a DenseParameter>,
    ) -> Result<Self> {
        let mut pairs: Vec<(Mat, Mat)> = Vec::new();
        let mut slots: Vec<Slot> = Vec::new();
        let triangle = || (0..tasks).flat_map(|i| (i..tasks).map(move |j| (i, j)));
        for engine in engines {
            let p = engine.products();
            for (pair, (i, j)) in p.gram.into_iter().zip(triangle().cycle()) {
                pairs.push(pair);
                slots.push(Slot::Gram(i, j, p.whole.is_none()));
            }
            let apart = !p.own.is_empty();
            for (t, pair) in p.own.into_iter().enumerate() {
                pairs.push(pair);
                slots.push(Slot::Own(t));
            }
            if !apart {
                let last = slots.len();
                let diagonal: Vec<(usize, usize)> = (0..last)
                    .rev()
                    .take_while(|s| matches!(slots[*s], Slot::Gram(..)))
                    .filter_map(|s| match slots[s] {
                        Slot::Gram(i, j, _) if i == j => Some((s, i)),
                        _ => None,
                    })
                    .collect();
                for (s, t) in diagonal {
                    pairs.push(pairs[s]);
                    slots.push(Slot::Own(t));
                }
            }
            if let Some(pair) = p.whole {
                pairs.push(pair);
                slots.push(Slot::Whole);
            }
            for (t, pair) in p.effect.into_iter().enumerate() {
                pairs.push(pair);
                slots.push(Slot::Effect(t));
            }
        }
        for p in dense {
            let sums = p.gradients();
            if sums.len() == 1 {
                pairs.push((sums[0].mat(), sums[0].mat()));
                slots.push(Slot::Whole);
            } else {
                for (i, j) in triangle() {
                    pairs.push((sums[i].mat(), sums[j].mat()));
                    slots.push(Slot::Dense(i, j));
                }
            }
            for (t, own) in p.own().iter().enumerate() {
                pairs.push((own.mat(), own.mat()));
                slots.push(Slot::Own(t));
            }
        }
        let mut out = backend.alloc(1, pairs.len().max(1), DType::F32)?;
        backend.dots(&pairs, out.mat_mut())?;
        let values = backend.download(out.mat())?;
        Ok(Self::gather(tasks, &slots, &values))
    }

    fn gather(tasks: usize, slots: &[Slot], values: &[f32]) -> Self {
        let square = || vec![vec![0.0; tasks]; tasks];
        let mut p = Self {
            gram: square(),
            layers: square(),
            additive: square(),
            own: vec![0.0; tasks],
            whole: 0.0,
            effect: vec![0.0; tasks],
        };
        let add = |m: &mut Vec<Vec<f64>>, i: usize, j: usize, v: f64| {
            m[i][j] += v;
            if i != j {
                m[j][i] += v;
            }
        };
        for (slot, v) in slots.iter().zip(values) {
            let v = *v as f64;
            match *slot {
                Slot::Gram(i, j, additive) => {
                    add(&mut p.gram, i, j, v);
                    add(&mut p.layers, i, j, v);
                    if additive {
                        add(&mut p.additive, i, j, v);
                    }
                }
                Slot::Dense(i, j) => {
                    add(&mut p.gram, i, j, v);
                    add(&mut p.additive, i, j, v);
                }
                Slot::Own(t) => p.own[t] += v,
                Slot::Whole => p.whole += v,
                Slot::Effect(t) => p.effect[t] += v,
            }
        }
        p
    }

    pub fn finite(&self) -> bool {
        self.whole.is_finite() && self.own.iter().chain(self.gram.iter().flatten()).all(|v| v.is_finite())
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

    pub fn cosines(&self) -> Vec<(usize, usize, f64)> {
        let n = self.layers.len();
        let mut all = Vec::new();
        for i in 0..n {
            for j in i + 1..n {
                let size = (self.layers[i][i] * self.layers[j][j]).sqrt();
                if size > 0.0 {
                    all.push((i, j, self.layers[i][j] / size));
                }
            }
        }
        all
    }
}
