//! What a run will need, before it is run: the run's largest step, on a backend that computes nothing.
//!
//! Nothing here knows a formula of what a model or a method holds: they are run, and memory is counted.

use super::{Averaging, Rehearsal, gradients, largest_knowledge, needs_basis, probe, rehearse};
use crate::backend::{Backend, Mat};
use crate::error::{Error, Result};
use crate::gems::{Knowledge, MethodSettings, Optimizer, StepInput};
use crate::layers::{LinearGradient, Tap, Want};
use crate::model::{Architecture, Batch, Model};
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
    /// What a GPU's allocator keeps beside, for tensors of other sizes.
    pub idle: usize,
}

/// What is planned.
pub struct PlannedRun<'a> {
    /// The model, with the vocabulary it will have.
    pub architecture: &'a Architecture,
    /// The method.
    pub settings: &'a MethodSettings,
    /// First row of new item tokens.
    pub new_rows: Option<usize>,
    /// The knowledge basis; without one that is needed, the largest there can be is counted.
    pub knowledge: Option<&'a Knowledge>,
    /// The micro-batches of the largest step.
    pub batches: &'a [Batch],
    /// Most tokens of a piece of general text.
    pub text_length: usize,
    /// Whether activations are computed again.
    pub checkpointing: bool,
    /// Leaves that a rank computes; 0 where a step is not cut into leaves.
    pub leaves: usize,
    /// Whether the last of them leaves while it is computed.
    pub overlaps: bool,
}

impl MemoryPlan {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.method + self.activations + self.workspace + self.idle
    }

    /// Runs what is planned on `counting`, a fresh backend that counts memory and computes nothing.
    pub fn of(run: &PlannedRun, counting: &Arc<dyn Backend>) -> Result<Self> {
        let live = || counting.memory().live;
        let mut model = Model::outline(run.architecture.clone(), Arc::clone(counting))?;
        let weights = live();
        let tasks = run.batches.first().map_or(0, |b| b.labels.segments.len());
        let mut settings = run.settings.clone();
        let protects = needs_basis(&settings.null_space, run.new_rows.is_some());
        let largest = match (protects, run.knowledge) {
            (true, None) => Some(largest_knowledge(&model, &settings.null_space)),
            _ => None,
        };
        // The second step ends with a refresh: everything that recurs in a run is in two steps.
        settings.gems.refresh_every = 1;
        let knowledge = run.knowledge.or(largest.as_ref());
        let old = run.new_rows.unwrap_or(run.architecture.vocabulary);
        let texts = vec![vec![0; run.text_length.max(2)]; settings.rehearsal.texts];
        let rehearsal = Rehearsal::new(&model, texts, old, &settings, 0)?;
        let mut tuner = Optimizer::for_model(settings, &mut model, run.new_rows, tasks, knowledge, 0)?;

        let mut activations = 0;
        for batch in run.batches {
            let before = live();
            let _forward = model.forward(batch, run.checkpointing, Some(&Nobody))?;
            activations = live().saturating_sub(before).max(activations);
        }
        let mut method = 0;
        let mut pass = |model: &Model, tuner: &mut Optimizer| {
            method = (live() - weights).max(method);
            let gradients = |tuner: &mut Optimizer| {
                gradients(model, tuner, run.batches, Averaging::Labels, run.checkpointing).map(drop)
            };
            match run.leaves {
                0 => gradients(tuner),
                leaves => in_leaves(tuner, (leaves, run.overlaps), tasks, gradients),
            }
        };
        probe(&mut model, &mut tuner, &mut pass)?;
        let input = StepInput { labels: vec![1; tasks], counts: vec![1.0; tasks], ..StepInput::default() };
        for step in 0..2 {
            tuner.begin_step()?;
            rehearse(rehearsal.as_ref(), &model, &mut tuner, step, run.checkpointing)?;
            pass(&model, &mut tuner)?;
            tuner.step(&mut model, &input)?;
        }
        let memory = counting.memory();
        let workspace = memory.peak.saturating_sub(weights + method + activations);
        Ok(Self { weights, method, activations, workspace, idle: memory.taken - memory.peak })
    }
}

/// The gradients of the last of some leaves, with the sums of those before it, and the sum over all ranks.
fn in_leaves(
    tuner: &mut Optimizer,
    (leaves, overlaps): (usize, bool),
    tasks: usize,
    gradients: impl FnOnce(&mut Optimizer) -> Result<()>,
) -> Result<()> {
    let before = tuner.begin_leaves(&vec![1; tasks])?;
    let _sums = (0..leaves.ilog2()).map(|_| tuner.take_leaf(&[])).collect::<Result<Vec<_>>>()?;
    let last_and_whole =
        |tuner: &mut Optimizer| Ok::<_, Error>((tuner.take_leaf(&[])?, tuner.take_leaf(&[])?));
    let early = if overlaps { Some(last_and_whole(tuner)?) } else { None };
    gradients(tuner)?;
    let (_last, whole) = early.map_or_else(|| last_and_whole(tuner), Ok)?;
    tuner.put_sum(whole.mat(), before.mat())
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
