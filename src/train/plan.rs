//! What a run will need, before it is run: the run's largest step, on a backend that computes nothing.
//!
//! Nothing here knows a formula of what a model or a method holds: they are run, and memory is counted.

use super::{dense_roles, labels_per_task, largest_basis, micro_step, needs_basis, scales, site_shapes};
use crate::backend::{Backend, Mat};
use crate::error::Result;
use crate::gems::{KnowledgeBasis, StepInput, Tuner, TunerSettings};
use crate::model::{Architecture, Batch, LinearGradient, Model, Tap, Want};
use std::sync::Arc;

/// Bytes of tensors by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights and tables.
    pub weights: usize,
    /// The method's state at its largest: moments, coordinates, bases, protected directions, sketches or gradients
    /// of an open window.
    pub method: usize,
    /// Activations kept from the forward to the backward pass.
    pub activations: usize,
    /// Gradients and temporaries at the fullest moment.
    pub workspace: usize,
}

/// What is planned.
pub struct PlannedRun<'a> {
    /// The model, with the vocabulary it will have.
    pub architecture: &'a Architecture,
    /// The method.
    pub settings: &'a TunerSettings,
    /// First row of new item tokens.
    pub new_rows: Option<usize>,
    /// The knowledge basis; without one that is needed, the largest there can be is counted.
    pub knowledge: Option<&'a KnowledgeBasis>,
    /// The micro-batches of the largest step.
    pub batches: &'a [Batch],
    /// Whether activations are computed again.
    pub checkpointing: bool,
}

impl MemoryPlan {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.method + self.activations + self.workspace
    }

    /// Runs what is planned on `counting`, a fresh backend that counts memory and computes nothing.
    pub fn of(run: &PlannedRun, counting: &Arc<dyn Backend>) -> Result<Self> {
        let live = || counting.memory().live;
        let mut model = Model::outline(run.architecture.clone(), Arc::clone(counting))?;
        let weights = live();
        let tasks = run.batches.first().map_or(0, |b| b.labels.segments.len());
        let sites = site_shapes(&model);
        let mut settings = run.settings.clone();
        let protects = needs_basis(&settings.null_space, run.new_rows.is_some());
        let largest = match (protects, run.knowledge) {
            (true, None) => Some(largest_basis(&model, &sites, tasks, &settings)?),
            _ => None,
        };
        // The second step ends with a refresh: everything that recurs in a run is in two steps.
        settings.gems.refresh_every = 1;
        let roles = dense_roles(&model, &settings.optimizer, run.new_rows);
        let knowledge = run.knowledge.or(largest.as_ref());
        let mut tuner = Tuner::new(settings, &sites, &roles, tasks, knowledge, &mut model, counting, 0)?;

        let scales = scales(&labels_per_task(run.batches, tasks));
        let mut activations = 0;
        let pass = |model: &Model, tuner: &mut Tuner, activations: &mut usize| -> Result<()> {
            for batch in run.batches {
                let before = live();
                let forward = model.forward(batch, run.checkpointing, Some(&Nobody))?;
                *activations = live().saturating_sub(before).max(*activations);
                drop(forward);
                let nll = micro_step(model, tuner, batch, &scales, run.checkpointing)?;
                tuner.observe_losses(nll.mat(), &batch.labels.segments)?;
            }
            Ok(())
        };
        let mut method = 0;
        for round in 0..tuner.probe_rounds() {
            tuner.begin_probe(round)?;
            method = (live() - weights).max(method);
            pass(&model, &mut tuner, &mut activations)?;
        }
        tuner.finish_probe(&mut model)?;
        let input = StepInput { labels: vec![1; tasks], counts: vec![1.0; tasks], ..StepInput::default() };
        for _ in 0..2 {
            tuner.begin_step()?;
            method = (live() - weights).max(method);
            pass(&model, &mut tuner, &mut activations)?;
            tuner.finish_step(&mut model, &input)?;
        }
        let workspace = counting.memory().peak.saturating_sub(weights + method + activations);
        Ok(Self { weights, method, activations, workspace })
    }
}

/// Wants a backward pass, and nothing of it.
struct Nobody;

impl Tap for Nobody {
    fn linear(&mut self, _: usize, _: &LinearGradient) -> Result<()> {
        Ok(())
    }
    fn wants(&self, _: usize) -> Want {
        Want::Nothing
    }
    fn dense(&mut self, _: usize, _: Mat) -> Result<()> {
        Ok(())
    }
}
