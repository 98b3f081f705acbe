//! The f32 values of a layer's weight, where every weight is trained.

use super::settings::{NullSide, NullSpaceSettings, Project};
use super::state::State;
use crate::backend::{AdaptedLinear, Backend, DType, Mat, MatMut, ProjectColumns, ProjectRows, Tensor};
use crate::error::Result;
use std::sync::Arc;

/// Holds them, unless the layer's own weight is f32.
pub(super) struct Master(Option<Tensor>);

impl Master {
    pub fn of(be: &dyn Backend, layer: &AdaptedLinear) -> Result<Self> {
        Ok(Self(match layer.weight.dtype() {
            DType::F32 => None,
            _ => Some(be.duplicate(layer.weight.mat(), DType::F32)?),
        }))
    }

    /// What is trained, and the copy of it that the model computes with.
    pub fn parts<'a>(&'a mut self, layer: &'a mut AdaptedLinear) -> (MatMut<'a>, Option<(MatMut<'a>, f32)>) {
        match &mut self.0 {
            Some(master) => (master.mat_mut(), Some((layer.weight.mat_mut(), 1.0))),
            None => (layer.weight.mat_mut(), None),
        }
    }

    /// What is trained, to read.
    pub fn values<'a>(&'a self, layer: &'a AdaptedLinear) -> Mat<'a> {
        self.0.as_ref().unwrap_or_else(|| layer.weight.whole()).mat()
    }

    /// Saves or restores the weight.
    pub fn state(&mut self, be: &dyn Backend, layer: &mut AdaptedLinear, state: &mut State) -> Result<()> {
        let (mut values, copy) = self.parts(layer);
        state.weight("w", values.reborrow())?;
        match copy {
            Some((copy, _)) if state.restores() => be.copy(values.as_mat(), copy),
            _ => Ok(()),
        }
    }
}

/// The null space of a whole weight matrix.
pub struct NullSpace {
    /// Protected directions as columns.
    columns: Option<Arc<Tensor>>,
    side: NullSide,
    project: Project,
}

impl NullSpace {
    /// `columns`: protected directions as columns of the side's space.
    pub fn new(settings: &NullSpaceSettings, columns: Option<Arc<Tensor>>) -> Self {
        Self { columns, side: settings.side, project: settings.project }
    }

    /// Whether it is taken out of the update.
    pub fn of_update(&self) -> bool {
        self.columns.is_some() && matches!(self.project, Project::Update | Project::Both)
    }

    /// Takes it out of a gradient, if that is asked for.
    pub fn project_gradient(&self, be: &dyn Backend, g: MatMut) -> Result<()> {
        if matches!(self.project, Project::Gradient | Project::Both) { self.take_out(be, g) } else { Ok(()) }
    }

    /// Takes it out of an update, if that is asked for.
    pub fn project_update(&self, be: &dyn Backend, x: MatMut) -> Result<()> {
        if self.of_update() { self.take_out(be, x) } else { Ok(()) }
    }

    fn take_out(&self, be: &dyn Backend, x: MatMut) -> Result<()> {
        let Some(k) = &self.columns else { return Ok(()) };
        match self.side {
            NullSide::Input => be.run(ProjectRows { x, k: k.mat() }),
            NullSide::Output => be.run(ProjectColumns { x, k: k.mat() }),
            NullSide::None | NullSide::Metric => Ok(()),
        }
    }
}
