//! The inner products of a step's gradients, from which surgery, clipping, gates and cosines follow.

use crate::backend::Quantity;

/// Inner products of a step, summed over layers.
pub(super) struct StepProducts {
    /// Of tasks over everything whose task gradients are apart; decides surgery.
    pub gram: Vec<Vec<f64>>,
    /// Of tasks over the adapted layers; tells the cosine.
    layers: Vec<Vec<f64>>,
    /// The part of `gram` that sums to the whole gradient.
    additive: Vec<Vec<f64>>,
    own: Vec<f64>,
    whole: f64,
    pub effect: Vec<f64>,
}

impl StepProducts {
    /// Sums what was multiplied.
    pub fn gather(tasks: usize, quantities: &[Quantity], values: &[f32]) -> Self {
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
        for (quantity, v) in quantities.iter().zip(values) {
            let v = *v as f64;
            match *quantity {
                Quantity::Layer(i, j) => {
                    add(&mut p.gram, i, j, v);
                    add(&mut p.layers, i, j, v);
                    add(&mut p.additive, i, j, v);
                }
                Quantity::LayerApart(i, j) => {
                    add(&mut p.gram, i, j, v);
                    add(&mut p.layers, i, j, v);
                }
                Quantity::Dense(i, j) => {
                    add(&mut p.gram, i, j, v);
                    add(&mut p.additive, i, j, v);
                }
                Quantity::Own(t) => p.own[t] += v,
                Quantity::Whole => p.whole += v,
                Quantity::Effect(t) => p.effect[t] += v,
            }
        }
        p
    }

    pub fn finite(&self) -> bool {
        self.whole.is_finite() && self.own.iter().chain(self.gram.iter().flatten()).all(|v| v.is_finite())
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
