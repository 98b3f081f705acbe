//! The end of a step: what its gradients decide, and the update of everything that is trained.

use super::adam::clip_factor;
use super::dense::DenseRole;
use super::engine::{Factors, Parameters, Products, Step};
use super::gates::TaskSignals;
use super::readout::Readings;
use super::settings::{GateKind, Method, Surgery};
use super::surgery::pcgrad_weights;
use super::tuner::{Layer, StepInput, StepReport, Tuner};
use crate::backend::{AdamUpdate, Backend, DType, Decision, GateRule, Mat, MatMut, trace};
use crate::error::Result;

impl Tuner {
    /// Ends a step: applies its update. Nothing is changed when a loss or gradient is not finite. Waits once, at the
    /// end, where the device can decide and Adam is all there is to an update; once more, before it, elsewhere.
    pub fn finish_step(&mut self, parameters: &mut dyn Parameters, input: &StepInput) -> Result<StepReport> {
        self.observing = false;
        let _span = trace::span("optimizer");
        self.multiply()?;
        // Decay is for all of B, Adam for the subspaces of the tasks that the step has.
        let decays_alone =
            self.settings.optimizer.weight_decay != 0.0 && input.counts.iter().any(|samples| *samples <= 0.0);
        let at_once = input.target_norm.is_none()
            && !decays_alone
            && !self.gates.learns()
            && self.layers.iter().flatten().all(|l| l.shared().at_once());
        let known = match at_once && self.decide_on_device(input)? {
            true => None,
            false => {
                let readings = self.readout.read(&*self.backend, self.tasks)?;
                if !readings.finite() {
                    return self.skip(readings);
                }
                let known = self.decide_on_host(&readings, input);
                self.backend.upload(&known.as_row(), self.readout.factors.mat_mut())?;
                Some(known)
            }
        };
        let measured = self.update(parameters, input, known.as_ref().filter(|_| !at_once))?;
        let readings = self.readout.read(&*self.backend, self.tasks)?;
        if !readings.finite() {
            return self.skip(readings);
        }
        let known = known.unwrap_or_else(|| self.decide_on_host(&readings, input));
        (self.step, self.task_steps) = self.next_steps(input);
        let every = self.settings.gems.refresh_every;
        let refresh = match self.step.is_multiple_of(every) && !input.last {
            true if self.subspaces().next().is_some() => Some(self.refresh(parameters)?),
            _ => None,
        };
        Ok(StepReport {
            finite: true,
            gradient_norm: readings.products.norm(&known.weights),
            clip: known.clip,
            update_norm: measured.unwrap_or(readings.update_norm),
            gates: known.gates,
            task_norms: readings.products.task_norms(),
            cosines: readings.products.cosines(),
            losses: readings.losses,
            refresh,
        })
    }

    /// A step that changes nothing.
    fn skip(&mut self, readings: Readings) -> Result<StepReport> {
        for (_, s) in self.subspaces() {
            if let Some(window) = &mut s.window {
                window.clear()?;
            }
        }
        Ok(StepReport { gradient_norm: f64::NAN, losses: readings.losses, ..StepReport::default() })
    }

    /// The number of this step, over all and for every task.
    fn next_steps(&self, input: &StepInput) -> (u64, Vec<u64>) {
        let tasks = self.task_steps.iter().zip(&input.counts);
        (self.step + 1, tasks.map(|(steps, samples)| steps + u64::from(*samples > 0.0)).collect())
    }

    /// The inner products that were not taken with the gradients.
    fn multiply(&mut self) -> Result<()> {
        let Self { readout, layers, dense, backend, .. } = self;
        let layers = layers.iter().zip(&readout.sites).filter_map(|(l, place)| Some((l.as_ref()?, place)));
        let dense = dense.iter().zip(&readout.dense).filter_map(|(p, place)| Some((p.as_ref()?, place)));
        let mut wanted: Vec<(Products, usize)> =
            layers.map(|(l, at)| (l.shared().products(), at.end)).collect();
        wanted.extend(dense.map(|(p, at)| (p.products(), at.end)));
        // Pairs whose places follow each other are multiplied together.
        let (mut pairs, mut first) = (Vec::new(), 0);
        let mut flush = |pairs: &mut Vec<(Mat, Mat)>, first: usize| {
            let to = readout.values.mat_mut().col_range(first..first + pairs.len());
            let done = if pairs.is_empty() { Ok(()) } else { backend.dots(pairs, to) };
            pairs.clear();
            done
        };
        for (products, end) in wanted {
            let start = end - products.pairs.len();
            if start != first + pairs.len() {
                flush(&mut pairs, first)?;
                first = start;
            }
            pairs.extend(products.pairs);
        }
        flush(&mut pairs, first)
    }

    /// Lets the device work out the factors; false when it leaves that to the host.
    fn decide_on_device(&mut self, input: &StepInput) -> Result<bool> {
        let (g, o) = (&self.settings.gems, &self.settings.optimizer);
        let gates = match g.gates.kind {
            GateKind::Fixed => GateRule::Fixed(g.gates.fixed as f32),
            GateKind::Heuristic => GateRule::Shares(g.gates.shares.map(|s| s as f32)),
            GateKind::InverseNorm => GateRule::InverseNorm,
            GateKind::Learned => return Ok(false),
        };
        let labels: Vec<f32> = input.labels.iter().map(|n| *n as f32).collect();
        let counts: Vec<f32> = input.counts.iter().map(|n| *n as f32).collect();
        let decision = Decision {
            quantities: &self.readout.numbers,
            gates,
            pcgrad: g.surgery == Surgery::Pcgrad,
            clip_norm: o.clip_norm as f32,
            labels: &labels,
            counts: &counts,
        };
        let values = self.readout.values.mat();
        let products = values.col_range(0..self.readout.quantities.len());
        let losses = values.col_range(self.readout.losses(self.tasks));
        self.backend.decide(&decision, products, losses, self.readout.factors.mat_mut())
    }

    /// The factors of a step whose gradients and losses are finite.
    fn decide_on_host(&mut self, readings: &Readings, input: &StepInput) -> Factors {
        let weights = match self.settings.gems.surgery {
            Surgery::None => vec![1.0; self.tasks],
            Surgery::Pcgrad => pcgrad_weights(&readings.products.gram),
        };
        let most = self.settings.optimizer.clip_norm;
        let clip = if most > 0.0 { clip_factor(readings.products.norm(&weights), most) } else { 1.0 };
        let mean = |(sum, labels): (&f64, &usize)| if *labels > 0 { sum / *labels as f64 } else { 0.0 };
        let signals = TaskSignals {
            losses: readings.losses.iter().zip(&input.labels).map(mean).collect(),
            norms: readings.products.task_norms(),
            counts: input.counts.clone(),
        };
        let effect = self.gates.learns().then_some(readings.products.effect.as_slice());
        let gates = self.gates.step(&signals, effect);
        Factors { clip, weights, gates }
    }

    /// The step's update of everything that is trained: Adam alone, or with what `known` decides in between. Returns
    /// the norm of the change of the layers where the device does not tell it.
    fn update(
        &mut self,
        parameters: &mut dyn Parameters,
        input: &StepInput,
        known: Option<&Factors>,
    ) -> Result<Option<f64>> {
        let g = &self.settings.gems;
        let scale = if matches!(g.method, Method::Gems | Method::Galore) { g.scale } else { 1.0 };
        let (t, t_tasks) = self.next_steps(input);
        let active: Vec<bool> = input.counts.iter().map(|c| *c > 0.0).collect();
        let nothing = Factors::default();
        let step = Step {
            optimizer: &self.settings.optimizer,
            rate: input.lr * scale,
            lr: input.lr,
            factors: self.readout.factors.mat(),
            known: known.unwrap_or(&nothing),
            active: &active,
            t,
            t_tasks: &t_tasks,
        };
        let values = &mut self.readout.values;
        let first = self.readout.quantities.len() + self.tasks;
        let squares = values.mat_mut().col_range(first..first + 2 * self.layers.len());
        let measured = match known {
            Some(_) => apply_directions(&*self.backend, &mut self.layers, parameters, input, &step)?,
            None => {
                adam_at_once(&*self.backend, &mut self.layers, parameters, &step, squares)?;
                None
            }
        };
        for (i, p) in self.dense.iter_mut().enumerate() {
            let Some(p) = p else { continue };
            let lr = if matches!(p.role, DenseRole::Rows { .. }) { input.lr_rows } else { input.lr };
            p.step(parameters.dense(i), lr, &step, self.protected_rows.as_ref())?;
        }
        Ok(measured)
    }
}

/// Every layer's step as Adam alone, in few launches.
fn adam_at_once(
    be: &dyn Backend,
    layers: &mut [Option<Layer>],
    parameters: &mut dyn Parameters,
    step: &Step,
    squares: MatMut,
) -> Result<()> {
    let layers =
        layers.iter_mut().zip(parameters.linears()).filter_map(|(l, linear)| Some((l.as_mut()?, linear)));
    let updates: Vec<AdamUpdate> =
        layers.flat_map(|(layer, linear)| layer.engine().updates(linear, step)).collect();
    let squares = squares.col_range(0..updates.len());
    if updates.is_empty() { Ok(()) } else { be.adam(updates, Some(step.factors), Some(squares)) }
}

/// Every layer's direction, and its application; returns the norm of all.
fn apply_directions(
    be: &dyn Backend,
    layers: &mut [Option<Layer>],
    parameters: &mut dyn Parameters,
    input: &StepInput,
    step: &Step,
) -> Result<Option<f64>> {
    let mut norms = be.zeros(1, (2 * layers.len()).max(1), DType::F32)?;
    let (mut slot, mut held) = (0, Vec::new());
    for (site, layer) in layers.iter_mut().enumerate() {
        let Some(layer) = layer else { continue };
        let update = layer.engine().direction(step)?;
        let pairs = layer.shared().change(&update);
        be.dots(&pairs, norms.mat_mut().col_range(slot..slot + pairs.len()))?;
        slot += pairs.len();
        drop(pairs);
        match input.target_norm {
            None => layer.engine().apply(parameters.linear(site), update, 1.0, step)?,
            Some(_) => held.push((site, update)),
        }
    }
    let squares = be.download(norms.mat())?;
    let mut norm = squares.iter().map(|v| *v as f64).sum::<f64>().max(0.0).sqrt();
    if let Some(target) = input.target_norm {
        let factor = if norm > 0.0 { target / norm } else { 1.0 };
        norm *= factor;
        for (site, update) in held {
            if let Some(layer) = &mut layers[site] {
                layer.engine().apply(parameters.linear(site), update, factor, step)?;
            }
        }
    }
    Ok(Some(norm))
}
