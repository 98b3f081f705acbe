//! How much each task's own subspace counts.

use super::settings::{GateKind, GateSettings};
use crate::backend::GateRule;
use crate::backend::factors::shares;
use crate::random::{Purpose, normal};

/// What a step says about each task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskSignals {
    /// Summed losses.
    pub losses: Vec<f64>,
    /// Norms of the task gradients.
    pub norms: Vec<f64>,
    /// Samples.
    pub counts: Vec<f64>,
}

impl TaskSignals {
    /// Loss, norm and count shares, one group after the other (the gate network's input).
    pub fn features(&self) -> Vec<f64> {
        let mut all = shares(&self.losses, 1e-8);
        all.extend(shares(&self.norms, 1e-8));
        all.extend(shares(&self.counts, 0.0));
        all
    }
}

/// `softmax(W3 relu(W2 relu(W1 x + b1) + b2) + b3) / temperature)`: the gate network.
#[derive(Debug, Clone, PartialEq)]
pub struct GateNetwork {
    /// Layers: (weights `[out x in]` row by row, biases, inputs).
    pub layers: Vec<(Vec<f64>, Vec<f64>, usize)>,
    /// Softmax temperature.
    pub temperature: f64,
}

/// Gradients of a [`GateNetwork`].
pub struct GateGradients {
    /// As the layers: weights, biases.
    pub layers: Vec<(Vec<f64>, Vec<f64>)>,
    /// Of the temperature.
    pub temperature: f64,
}

impl GateNetwork {
    /// A network for `tasks` tasks that starts with equal gates (its last layer is zero).
    pub fn new(tasks: usize, temperature: f64, seed: u64) -> Self {
        let sizes = [3 * tasks, 32, 16, tasks];
        let layers = sizes
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let spread = if i == 2 { 0.0 } else { (2.0 / pair[0] as f64).sqrt() };
                let weights = normal(seed, Purpose::Init, 90, i as u64, pair[0] * pair[1]);
                (weights.iter().map(|w| *w as f64 * spread).collect(), vec![0.0; pair[1]], pair[0])
            })
            .collect();
        Self { layers, temperature }
    }

    /// Activations of every layer, the input first; the last are the logits.
    fn run(&self, input: &[f64]) -> Vec<Vec<f64>> {
        let mut all = vec![input.to_vec()];
        for (i, (weights, biases, inputs)) in self.layers.iter().enumerate() {
            let x = &all[i];
            let last = i + 1 == self.layers.len();
            let out = biases
                .iter()
                .enumerate()
                .map(|(o, b)| {
                    let sum: f64 =
                        weights[o * inputs..(o + 1) * inputs].iter().zip(x).map(|(w, x)| w * x).sum();
                    if last { sum + b } else { (sum + b).max(0.0) }
                })
                .collect();
            all.push(out);
        }
        all
    }

    fn softmax(&self, logits: &[f64]) -> Vec<f64> {
        let most = logits.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = logits.iter().map(|l| ((l - most) / self.temperature).exp()).collect();
        let total: f64 = e.iter().sum();
        e.iter().map(|v| v / total).collect()
    }

    /// The gates for these features.
    pub fn gates(&self, features: &[f64]) -> Vec<f64> {
        let all = self.run(features);
        self.softmax(&all[all.len() - 1])
    }

    /// Gradients of `<upstream, gates(features)>`.
    pub fn backward(&self, features: &[f64], upstream: &[f64]) -> GateGradients {
        let all = self.run(features);
        let logits = &all[all.len() - 1];
        let p = self.softmax(logits);
        let mean: f64 = p.iter().zip(upstream).map(|(p, u)| p * u).sum();
        let scaled: Vec<f64> = p.iter().zip(upstream).map(|(p, u)| p * (u - mean)).collect();
        let temperature = -scaled.iter().zip(logits).map(|(d, l)| d * l).sum::<f64>()
            / (self.temperature * self.temperature);
        let mut delta: Vec<f64> = scaled.iter().map(|d| d / self.temperature).collect();
        let mut gradients = Vec::new();
        for (i, (weights, _, inputs)) in self.layers.iter().enumerate().rev() {
            let x = &all[i];
            let dw = delta.iter().flat_map(|d| x.iter().map(move |x| d * x)).collect();
            gradients.push((dw, delta.clone()));
            if i > 0 {
                delta = (0..*inputs)
                    .map(|j| {
                        let sum: f64 =
                            delta.iter().enumerate().map(|(o, d)| d * weights[o * inputs + j]).sum();
                        if x[j] > 0.0 { sum } else { 0.0 }
                    })
                    .collect();
            }
        }
        gradients.reverse();
        GateGradients { layers: gradients, temperature }
    }

    /// A step against the gradients.
    pub fn descend(&mut self, gradients: &GateGradients, lr: f64) {
        for ((weights, biases, _), (dw, db)) in self.layers.iter_mut().zip(&gradients.layers) {
            weights.iter_mut().zip(dw).for_each(|(w, d)| *w -= lr * d);
            biases.iter_mut().zip(db).for_each(|(b, d)| *b -= lr * d);
        }
    }

    /// All numbers, for a checkpoint.
    pub fn flatten(&self) -> Vec<f64> {
        self.layers
            .iter()
            .flat_map(|(w, b, _)| w.iter().chain(b))
            .copied()
            .chain([self.temperature])
            .collect()
    }

    /// Puts [`GateNetwork::flatten`]'s numbers back; false when there are not as many.
    pub fn restore(&mut self, values: &[f64]) -> bool {
        if values.len() != self.flatten().len() {
            return false;
        }
        let mut values = values.iter();
        for (w, b, _) in &mut self.layers {
            w.iter_mut().chain(b).zip(&mut values).for_each(|(x, v)| *x = *v);
        }
        self.temperature = values.next().copied().unwrap_or(self.temperature);
        true
    }
}

/// The gates of a run.
pub struct Gates {
    settings: GateSettings,
    network: Option<GateNetwork>,
    /// Features of the last step, whose effect the next step's gradient tells.
    last: Option<Vec<f64>>,
}

impl Gates {
    /// Gates for `tasks` tasks.
    pub fn new(settings: &GateSettings, tasks: usize, seed: u64) -> Self {
        let network =
            (settings.kind == GateKind::Learned).then(|| GateNetwork::new(tasks, settings.temperature, seed));
        Self { settings: settings.clone(), network, last: None }
    }

    /// The learned gates of a step. `effect[t]` is the change of the loss per unit of task t's gate at the last step,
    /// `-lr <R_next, N_t>`, from the gradient at hand: the gates descend along it first. `None` where nothing is learned.
    pub fn learn(&mut self, signals: &TaskSignals, effect: &[f64]) -> Option<Vec<f32>> {
        let network = self.network.as_mut()?;
        if let Some(last) = &self.last {
            // Only directions matter, so the effect is taken relative to its size.
            let size = effect.iter().map(|e| e * e).sum::<f64>().sqrt();
            if size > 0.0 && size.is_finite() {
                let upstream: Vec<f64> = effect.iter().map(|e| e / size).collect();
                let gradients = network.backward(last, &upstream);
                network.descend(&gradients, self.settings.lr);
            }
        }
        let features = signals.features();
        let gates = network.gates(&features).iter().map(|g| *g as f32).collect();
        self.last = Some(features);
        Some(gates)
    }

    /// How a step's gates are found; `learned` are those of [`Gates::learn`].
    pub fn rule<'a>(&self, learned: Option<&'a [f32]>) -> GateRule<'a> {
        match (self.settings.kind, learned) {
            (GateKind::Learned, Some(gates)) => GateRule::Given(gates),
            (GateKind::Heuristic, _) => GateRule::Shares(self.settings.shares),
            (GateKind::InverseNorm, _) => GateRule::InverseNorm,
            (GateKind::Fixed | GateKind::Learned, _) => GateRule::Fixed(self.settings.fixed as f32),
        }
    }

    /// Whether gates are learned: the effect of the last ones is then wanted.
    pub fn learns(&self) -> bool {
        self.network.is_some()
    }

    /// Numbers to save, empty when nothing is learned.
    pub fn state(&self) -> (Vec<f64>, Option<Vec<f64>>) {
        (self.network.as_ref().map(GateNetwork::flatten).unwrap_or_default(), self.last.clone())
    }

    /// Puts [`Gates::state`] back.
    pub fn restore(&mut self, numbers: &[f64], last: Option<Vec<f64>>) -> bool {
        self.last = last;
        self.network.as_mut().is_none_or(|n| n.restore(numbers))
    }
}
