//! What the ways of tuning one linear layer have in common.

use super::pairs::LayerGram;
use super::settings::OptimizerSettings;
use super::state::State;
use crate::backend::{
    Adam, AdamBlock, AdamUpdate, AdaptedLinear, Backend, DType, Dots, Mat, MatMut, Tensor, Write,
};
use crate::error::Result;
use crate::layers::LinearGradient;

/// Factors that turn a task's share of a pass's gradient into the gradient of its own mean loss.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scales {
    /// One a task: labels of all tasks over labels of the task; 0 when it has none.
    pub tasks: Vec<f32>,
}

impl Scales {
    /// From the labels of every task that the loss is the mean over.
    pub fn of(labels: &[usize]) -> Self {
        let all: usize = labels.iter().sum();
        let scale = |n: &usize| if *n > 0 { all as f32 / *n as f32 } else { 0.0 };
        Self { tasks: labels.iter().map(scale).collect() }
    }
}

/// One forward and backward pass of a step.
#[derive(Default)]
pub(super) struct Pass {
    pub scales: Vec<f32>,
    /// Whether it is the step's first: gradients are then replaced, not added to.
    pub first: bool,
}

impl Pass {
    /// What becomes of the gradients at hand.
    pub fn write(&self) -> Write {
        if self.first { Write::Replace } else { Write::Add }
    }
}

/// What an update needs to know about the step.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub optimizer: &'a OptimizerSettings,
    /// Learning rate times the method's scale.
    pub rate: f64,
    /// Learning rate.
    pub lr: f64,
    /// Clipping, surgery weights and gates, on the device ([`crate::backend::factors`]).
    pub factors: Mat<'a>,
    /// The gates, where the host has learned them.
    pub gates: Option<&'a [f32]>,
    /// Which tasks had labels.
    pub active: &'a [bool],
    /// The factor on what rehearsal holds, and on that in every task's own stream.
    pub held: (f32, &'a [f32]),
    /// Number of this update, from 1.
    pub t: u64,
    /// The same, counted for each task.
    pub t_tasks: &'a [u64],
    /// The change is measured, and scaled, before it is applied.
    pub measured_first: bool,
}

/// A layer's step.
pub(super) enum Update<'a> {
    /// Adam in place: nothing comes between.
    InPlace(Vec<AdamUpdate<'a>>),
    /// Changes that are whole before they are applied: something comes between Adam and the weights.
    Deltas(Vec<Delta<'a>>),
}

/// The change of one matrix, decay included.
pub(super) struct Delta<'a> {
    /// *f32*.
    pub change: Tensor,
    /// `M` where the squared norm of the change of W is `<change, change M>` and not `<change, change>`.
    pub overlap: Option<&'a Tensor>,
    /// *f32*, added to.
    pub to: MatMut<'a>,
    /// Receives this factor times what was added to, in compute type.
    pub copy: Option<(MatMut<'a>, f32)>,
}

/// One linear layer under one method of tuning.
pub(super) trait Adapter: Send {
    /// Adds a pass's gradient; `products [1 x n]` may receive the fused ones of [`Adapter::gram`] as they are now.
    fn observe(&mut self, g: &LinearGradient, pass: &Pass, products: MatMut) -> Result<()>;
    /// The step's gradients, all that the update depends on: between the last observation and the update they may be
    /// summed over machines.
    fn leaves(&mut self) -> Vec<MatMut<'_>>;
    /// Holds a pass's gradient of the rehearsal, which enters every update until the next one. Whoever has no place for
    /// it leaves it.
    fn hold(&mut self, _: &LinearGradient, _: &Pass) -> Result<()> {
        Ok(())
    }
    /// The last of them was held.
    fn finish_hold(&mut self) -> Result<()> {
        Ok(())
    }
    /// What is held.
    fn held(&mut self) -> Vec<MatMut<'_>> {
        Vec::new()
    }
    /// Inner products of the gradients at hand.
    fn gram(&self) -> LayerGram<'_>;
    /// Draws what was learned back towards the base model, by the schedule's `strength`, where no fold does it.
    fn pull(&mut self, _: &mut AdaptedLinear, _strength: f64) -> Result<()> {
        Ok(())
    }
    /// The step.
    fn update<'a>(&'a mut self, layer: &'a mut AdaptedLinear, step: &Step) -> Result<Update<'a>>;
    /// Saves or restores everything that a resumed run needs.
    fn state(&mut self, layer: &mut AdaptedLinear, state: &mut State) -> Result<()>;
}

/// The change that Adam makes of `x0`: of zeros, or of what decays. Zero when the step is to be skipped.
pub(super) fn change_by_adam(
    be: &dyn Backend,
    mut x0: Tensor,
    (g, held): (Mat, Option<Mat>),
    (m, v): (&mut Tensor, &mut Tensor),
    blocks: Vec<AdamBlock>,
    factors: Mat,
) -> Result<Tensor> {
    let mut change = be.alloc(x0.rows(), x0.cols(), DType::F32)?;
    let (x, m, v) = (x0.mat_mut(), m.mat_mut(), v.mat_mut());
    let update = AdamUpdate { x, g, held, m, v, blocks, copy: None, change: Some(change.mat_mut()) };
    be.run(Adam { updates: vec![update], factors: Some(factors), squares: None })?;
    Ok(change)
}

/// Applies the layers' updates: what is in place in few launches, then the rest. *f32* `squares [1 x n]` receives the
/// squared norms of the changes of W. Where a norm is to be met, all changes are scaled to it; that waits. Returns the site
/// of every square.
pub(super) fn apply(
    be: &dyn Backend,
    updates: Vec<(usize, Update)>,
    factors: Mat,
    mut squares: MatMut,
    norm: Option<f64>,
) -> Result<Vec<usize>> {
    let (mut in_place, mut deltas) = (Vec::new(), Vec::new());
    let (mut sites, mut sites_of_deltas) = (Vec::new(), Vec::new());
    for (site, update) in updates {
        match update {
            Update::InPlace(all) => {
                sites.extend(all.iter().map(|_| site));
                in_place.extend(all);
            }
            Update::Deltas(all) => {
                sites_of_deltas.extend(all.iter().map(|_| site));
                deltas.extend(all);
            }
        }
    }
    sites.extend(sites_of_deltas);
    let (own, others) = (in_place.len(), deltas.len());
    if own > 0 {
        let squares = Some(squares.reborrow().col_range(0..own));
        be.run(Adam { updates: in_place, factors: Some(factors), squares })?;
    }
    let mut squares = squares.col_range(own..own + others);
    measure(be, &deltas, squares.reborrow())?;
    let mut factor = 1.0;
    if let Some(norm) = norm {
        let now: f64 = be.download(squares.as_mat())?.iter().map(|v| f64::from(*v)).sum();
        factor = if now > 0.0 { norm / now.sqrt() } else { 1.0 };
        be.scale(squares, (factor * factor) as f32)?;
    }
    for Delta { change, mut to, copy, .. } in deltas {
        be.axpy(factor as f32, change.mat(), to.reborrow())?;
        if let Some((mut copy, scale)) = copy {
            be.copy(to.as_mat(), copy.reborrow())?;
            if scale != 1.0 {
                be.scale(copy, scale)?;
            }
        }
    }
    Ok(sites)
}

/// Squared norms of the changes of W.
fn measure(be: &dyn Backend, deltas: &[Delta], squares: MatMut) -> Result<()> {
    let through = |delta: &Delta| -> Result<Option<Tensor>> {
        let Some(overlap) = delta.overlap else { return Ok(None) };
        let (rows, cols) = delta.change.shape();
        let mut through = be.alloc(rows, cols, DType::F32)?;
        be.product(through.mat_mut(), 0.0, 1.0, delta.change.mat().n(), overlap.mat().n())?;
        Ok(Some(through))
    };
    let through = deltas.iter().map(through).collect::<Result<Vec<_>>>()?;
    let pairs: Vec<(Mat, Mat)> = (deltas.iter().zip(&through))
        .map(|(delta, through)| (delta.change.mat(), through.as_ref().unwrap_or(&delta.change).mat()))
        .collect();
    if pairs.is_empty() { Ok(()) } else { be.run(Dots { pairs, out: squares }) }
}
