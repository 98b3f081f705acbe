//! One optimizer step: where the model's gradients meet the method.

use crate::backend::{AdaptedLinear, Mat, MatMut, Tensor};
use crate::error::Result;
use crate::gems::{DenseRole, Embeddings, OptimizerSettings, Parameters, Scales, SiteShape, Tapped, Tuner};
use crate::model::{Batch, DenseKind, LinearGradient, Model, Tap, Want};

impl Parameters for Model {
    fn linears(&mut self) -> &mut [AdaptedLinear] {
        &mut self.linears
    }
    fn dense(&mut self, index: usize) -> MatMut<'_> {
        self.parameter_mut(index)
    }
}

/// The linear layers of a model, as the method sees them.
pub fn site_shapes(model: &Model) -> Vec<SiteShape> {
    model
        .layout
        .sites
        .iter()
        .map(|s| SiteShape {
            name: s.name.clone(),
            projection: s.kind.name(),
            outputs: s.outputs,
            inputs: s.inputs,
        })
        .collect()
}

/// Which dense parameters are trained; `new_rows` is the first row of new item tokens (`None`: there are none).
pub fn dense_roles(
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

/// Labels of every task in some micro-batches.
pub fn labels_per_task<'a>(batches: impl IntoIterator<Item = &'a Batch>, tasks: usize) -> Vec<usize> {
    let mut counts = vec![0; tasks];
    for batch in batches {
        for (count, rows) in counts.iter_mut().zip(&batch.labels.segments) {
            *count += rows.len();
        }
    }
    counts
}

/// Factors from a task's share of the whole gradient to the gradient of its own mean loss.
pub fn scales(labels: &[usize]) -> Scales {
    let all: usize = labels.iter().sum();
    Scales { tasks: labels.iter().map(|n| if *n > 0 { all as f32 / *n as f32 } else { 0.0 }).collect() }
}

struct GradientTap<'a> {
    tuner: &'a mut Tuner,
    scales: &'a Scales,
}

impl Tap for GradientTap<'_> {
    fn linear(&mut self, site: usize, g: &LinearGradient) -> Result<()> {
        let tapped = Tapped { x: g.x, dy: g.dy, h: g.h, z: g.z, segments: g.segments };
        self.tuner.observe_linear(site, &tapped, self.scales)
    }
    fn wants(&self, index: usize) -> Want {
        match self.tuner.trains(index) {
            Some((first_row, per_task)) => Want::Rows { first_row, per_task },
            None => Want::Nothing,
        }
    }
    fn dense(&mut self, index: usize, blocks: Mat) -> Result<()> {
        self.tuner.observe_dense(index, blocks, self.scales)
    }
}

/// Runs one micro-batch forward and backward and hands its gradients to the tuner; returns the negative
/// log-likelihood of every label, `[labels x 1]` on the device: nothing here waits for it.
pub fn micro_step(
    model: &Model,
    tuner: &mut Tuner,
    batch: &Batch,
    scales: &Scales,
    checkpointing: bool,
) -> Result<Tensor> {
    let mut tap = GradientTap { tuner, scales };
    let forward = model.forward(batch, checkpointing, Some(&tap))?;
    model.backward(forward, &mut tap)
}
