//! One optimizer step up to its gradients: where a model meets the method.
//!
//! The protocol of a run is [`probe`], then for every step [`Optimizer::begin_step`], [`rehearse`], [`gradients`],
//! [`Optimizer::step`].

use super::batches::{Averaging, StepData};
use super::departing::Departing;
use super::rehearsal::Rehearsal;
use crate::backend::{Backend, DType, Dots, Mat, Tensor};
use crate::distributed::{RunningSum, Tree, World};
use crate::error::Result;
use crate::gems::{
    DenseRole, Embeddings, Knowledge, MethodSettings, Optimizer, OptimizerSettings, RefreshReport, Scales,
};
use crate::model::{Batch, DenseKind, Model};
use std::sync::Arc;

/// Numbers whose squares are added up together.
const SQUARED: usize = 1 << 20;

impl Optimizer {
    /// The method over `model`, to whose layers it attaches its branches. `new_rows` is the first row of new item
    /// tokens (`None`: there are none).
    ///
    /// # Errors
    /// Settings that do not go together, or do not fit the model; the device.
    pub fn for_model(
        settings: MethodSettings,
        model: &mut Model,
        new_rows: Option<usize>,
        tasks: usize,
        knowledge: Option<&Knowledge>,
        seed: u64,
    ) -> Result<Self> {
        let roles = dense_roles(model, &settings.optimizer, new_rows);
        let (sites, backend) = (model.layout.sites.clone(), Arc::clone(&model.backend));
        Self::new(settings, &sites, &roles, tasks, knowledge, model, &backend, seed)
    }
}

/// Which dense parameters are trained.
fn dense_roles(
    model: &Model,
    settings: &OptimizerSettings,
    new_rows: Option<usize>,
) -> Vec<Option<DenseRole>> {
    let rows = match (settings.embeddings, new_rows) {
        (Embeddings::All, _) => Some(DenseRole::Rows { first_row: 0 }),
        (Embeddings::New, Some(first_row)) => Some(DenseRole::Rows { first_row }),
        _ => None,
    };
    let role = |kind| match kind {
        DenseKind::Embedding | DenseKind::Head => rows,
        DenseKind::Norm => settings.norms.then_some(DenseRole::Other),
        DenseKind::Bias(_) | DenseKind::RelativeBias => settings.biases.then_some(DenseRole::Other),
    };
    model.layout.dense.iter().map(|d| role(d.kind)).collect()
}

/// Finds the first bases, if the method has any: `pass` takes the gradients of all probe batches, as often as
/// they are needed. `None`: nothing had to be found.
///
/// # Errors
/// The device, or `pass`.
pub fn probe(
    model: &mut Model,
    tuner: &mut Optimizer,
    mut pass: impl FnMut(&Model, &mut Optimizer) -> Result<()>,
) -> Result<Option<RefreshReport>> {
    let rounds = tuner.probe_rounds();
    for round in 0..rounds {
        tuner.begin_probe(round)?;
        pass(model, tuner)?;
    }
    if rounds == 0 { Ok(None) } else { tuner.finish_probe(model).map(Some) }
}

/// Rehearses general text, if there is some and it is due in step `step` (from 0).
///
/// # Errors
/// The device.
pub fn rehearse(
    rehearsal: Option<&Rehearsal>,
    model: &Model,
    tuner: &mut Optimizer,
    step: u64,
    checkpointing: bool,
) -> Result<()> {
    match rehearsal.filter(|_| tuner.rehearsal_is_due()) {
        Some(rehearsal) => rehearsal.run(model, tuner, step, checkpointing),
        None => Ok(()),
    }
}

/// Forward and backward passes of a whole step, whose gradients and losses go to the tuner; returns the
/// labels of every task. `checkpointing` computes activations again. Nothing here waits for the device.
///
/// # Errors
/// The device.
pub fn gradients(
    model: &Model,
    tuner: &mut Optimizer,
    batches: &[Batch],
    averaging: Averaging,
    checkpointing: bool,
) -> Result<Vec<usize>> {
    let mut labels = vec![0; tuner.tasks()];
    for batch in batches {
        labels.iter_mut().zip(batch.labels.per_task()).for_each(|(sum, n)| *sum += n);
    }
    for batch in batches {
        let scales = match averaging {
            Averaging::Labels => Scales::of(&labels),
            Averaging::Passes => Scales::of(&batch.labels.per_task()),
        };
        let nll = micro_step(model, tuner, batch, scales, checkpointing)?;
        tuner.observe_losses(nll.mat(), &batch.labels.segments)?;
    }
    Ok(labels)
}

/// The same of a step that is cut into `shards` leaves, of which this rank has those in `data`: gradients and losses are
/// then those of all leaves on all ranks. Rows and shortened examples of the whole step are counted in `data`.
///
/// # Errors
/// The device; ranks that do something else, or are silent.
pub fn gradients_in_leaves(
    model: &Model,
    tuner: &mut Optimizer,
    data: &mut StepData,
    (averaging, checkpointing): (Averaging, bool),
    (world, shards): (&World, usize),
) -> Result<Leaves> {
    let be = Arc::clone(&model.backend);
    let overlaps = world.overlaps(&*be)?;
    let before = tuner.begin_leaves(&data.labels)?;
    let passes = Passes { model, whole: Scales::of(&data.labels), averaging, checkpointing };
    let own = world.leaves(shards);
    let (mut tree, mut start, mut finite) = (Tree::new(&be), 0, Vec::new());
    let mut running = None;
    for (leaf, end) in own.clone().zip(&data.leaves) {
        tuner.begin_leaf()?;
        let batches = &data.batches[std::mem::replace(&mut start, *end)..*end];
        // Counts below 2^24 are exact.
        let counted = if leaf == own.start { [data.tokens, data.shortened] } else { [0, 0] };
        let beside = counted.map(|n| n as f32);
        if overlaps && leaf + 1 == own.end {
            let tree = std::mem::replace(&mut tree, Tree::new(&be));
            let (sum, squares) = passes.departing(tuner, batches, &beside, tree, (world, shards))?;
            finite.push(squares);
            running = Some(sum);
            continue;
        }
        batches.iter().try_for_each(|batch| passes.run(tuner, batch))?;
        let values = tuner.take_leaf(&beside)?;
        finite.push(squares(&*be, values.mat())?);
        tree.push(leaf, values)?;
    }
    let sum = running.map_or_else(|| world.sum(shards, tree), RunningSum::finish)?;
    tuner.put_sum(sum.mat(), before.mat())?;
    let counted = be.download(sum.mat().col_range(sum.cols() - 2..sum.cols()))?;
    (data.tokens, data.shortened) = (counted[0] as usize, counted[1] as usize);
    let finite = finite.iter().map(|s| be.download(s.mat())).collect::<Result<Vec<_>>>()?.concat();
    Ok(Leaves { labels: data.labels.clone(), finite: finite.iter().all(|s| s.is_finite()) })
}

/// Passes of a step.
struct Passes<'a> {
    model: &'a Model,
    /// Of the whole step.
    whole: Scales,
    averaging: Averaging,
    checkpointing: bool,
}

impl Passes<'_> {
    fn scales(&self, batch: &Batch) -> Scales {
        match self.averaging {
            Averaging::Labels => self.whole.clone(),
            Averaging::Passes => Scales::of(&batch.labels.per_task()),
        }
    }

    fn run(&self, tuner: &mut Optimizer, batch: &Batch) -> Result<()> {
        let nll = micro_step(self.model, tuner, batch, self.scales(batch), self.checkpointing)?;
        tuner.observe_losses(nll.mat(), &batch.labels.segments)
    }

    /// The passes of this rank's last leaf, whose gradients leave during the last of them; the sum that they have left for,
    /// and the squares of the leaf.
    fn departing<'w>(
        &self,
        tuner: &mut Optimizer,
        batches: &[Batch],
        beside: &[f32],
        mut tree: Tree,
        (world, shards): (&'w World, usize),
    ) -> Result<(RunningSum<'w>, Tensor)> {
        let (model, be) = (self.model, &*self.model.backend);
        let (last, before) =
            batches.split_last().map_or((None, batches), |(last, before)| (Some(last), before));
        before.iter().try_for_each(|batch| self.run(tuner, batch))?;
        let forward = last.map(|batch| {
            tuner.begin_pass(self.scales(batch));
            model.forward(batch, self.checkpointing, Some(&*tuner))
        });
        let forward = forward.transpose()?;
        let layout = tuner.leaf_layout(beside.len());
        tree.push_open(world.leaves(shards).end - 1, be.alloc(1, layout.rest.end, DType::F32)?);
        let mut departing = Departing::new(tuner, world.begin_sum(shards, tree)?, layout);
        let backward = |departing: &mut Departing| {
            if let (Some(batch), Some(forward)) = (last, forward) {
                let nll = model.backward(forward, departing)?;
                departing.tuner().observe_losses(nll.mat(), &batch.labels.segments)?;
            }
            departing.finish(beside)
        };
        if let Err(error) = backward(&mut departing) {
            departing.abandon();
            return Err(error);
        }
        let mut sum = departing.sum();
        let squares = squares(be, sum.last()?.as_mat())?;
        Ok((sum, squares))
    }
}

/// The squared norms of a leaf's numbers, a million at a time: finite where they are.
fn squares(be: &dyn Backend, leaf: Mat) -> Result<Tensor> {
    let some = |from: usize| leaf.col_range(from..(from + SQUARED).min(leaf.cols));
    let pairs: Vec<(Mat, Mat)> =
        (0..leaf.cols).step_by(SQUARED).map(some).map(|numbers| (numbers, numbers)).collect();
    let mut out = be.alloc(1, pairs.len(), DType::F32)?;
    be.run(Dots { pairs, out: out.mat_mut() })?;
    Ok(out)
}

/// What a rank knows of a step's leaves.
pub struct Leaves {
    /// Labels of every task, of the whole step.
    pub labels: Vec<usize>,
    /// Whether what this rank has added was finite, and its squares too.
    pub finite: bool,
}

/// Runs one micro-batch forward and backward and hands its gradients to the tuner; returns the negative
/// log-likelihood of every label, `[labels x 1]` on the device: nothing here waits for it.
///
/// # Errors
/// The device.
pub fn micro_step(
    model: &Model,
    tuner: &mut Optimizer,
    batch: &Batch,
    scales: Scales,
    checkpointing: bool,
) -> Result<Tensor> {
    tuner.begin_pass(scales);
    let forward = model.forward(batch, checkpointing, Some(&*tuner))?;
    model.backward(forward, tuner)
}
