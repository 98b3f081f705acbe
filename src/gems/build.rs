//! The optimizer of a run, built: which layers are adapted, and how.

use super::adapter::Pass;
use super::costs::Costs;
use super::full::Full;
use super::gates::Gates;
use super::gram::StepGram;
use super::knowledge::{Knowledge, Protection, Space};
use super::linalg::transpose;
use super::lora::Lora;
use super::master::NullSpace;
use super::method::MethodSettings;
use super::published::Published;
use super::refresh::window::Ranks;
use super::rows::{DenseParameter, DenseRole};
use super::settings::{Decay, Method, NullSide, Refresh, Side, Surgery};
use super::subspaces::{SubspaceOptions, Subspaces};
use super::tuned::Tuned;
use super::{Observing, Optimizer};
use crate::backend::{Backend, DType, Tensor};
use crate::error::Result;
use crate::layers::{Layers, Site};
use std::collections::HashMap;
use std::sync::Arc;

impl Optimizer {
    /// The optimizer of a model's layers (`sites`) and dense parameters (`None`: not trained), which it may read and attach
    /// branches to. `knowledge` must be of the model; what is
    /// protected is cut from it.
    #[allow(clippy::too_many_arguments, reason = "everything an optimizer is made of, once")]
    pub fn new(
        settings: MethodSettings,
        sites: &[Site],
        dense: &[Option<DenseRole>],
        tasks: usize,
        knowledge: Option<&Knowledge>,
        layers: &mut dyn Layers,
        backend: &Arc<dyn Backend>,
        seed: u64,
    ) -> Result<Self> {
        settings.validate()?;
        let adapted = settings.adapted(sites)?;
        let rooms = settings.rooms(sites, tasks)?;
        let cut = |k| Protection::of(k, &settings.null_space, sites, &rooms, (&**backend, seed));
        let protection = knowledge.map(cut).transpose()?.unwrap_or_default();
        let protected = Protected { backend, protection: &protection, held: HashMap::new() };
        let costs = Costs::of(&settings.null_space, sites, &adapted, knowledge)?;
        let step_factors = costs.step_factors.clone();
        let mut build = Build { settings: &settings, tasks, backend, seed, protected, costs };
        let mut adapters = Vec::new();
        for (i, site) in sites.iter().enumerate() {
            adapters.push(if adapted[i] { Some(build.adapter(i, site, layers)?) } else { None });
        }
        let dense = dense.iter().enumerate().map(|(i, role)| build.dense(layers, i, *role));
        let dense = dense.collect::<Result<Vec<_>>>()?;
        let protected_rows = protection.item_rows.as_ref().filter(|space| space.kept() > 0);
        let protected_rows = protected_rows.map(|space| columns_of(backend, space)).transpose()?;
        Ok(Self {
            gram: StepGram::new(&**backend, tasks, &mut adapters, &dense)?,
            gates: Gates::new(&settings.gems.gates, tasks, seed),
            backend: Arc::clone(backend),
            settings,
            tasks,
            adapters,
            step_factors,
            dense,
            protected_rows,
            step: 0,
            task_steps: vec![0; tasks],
            observing: Observing::Nothing,
            rehearsed: 0,
            taken: false,
            pass: Pass::default(),
            passes: 0,
        })
    }
}

/// What adapters are made of.
struct Build<'a> {
    settings: &'a MethodSettings,
    tasks: usize,
    backend: &'a Arc<dyn Backend>,
    seed: u64,
    protected: Protected<'a>,
    costs: Costs,
}

impl<'a> Build<'a> {
    /// The adapter of a layer, which may get a branch.
    fn adapter(&mut self, index: usize, site: &Site, layers: &mut dyn Layers) -> Result<Tuned> {
        let (g, null, be) = (&self.settings.gems, &self.settings.null_space, self.backend);
        let space = self.protected.protection.space(index).filter(|s| s.kept() > 0);
        let columns = |protected: &mut Protected<'a>| -> Result<Option<Arc<Tensor>>> {
            space.map(|s| protected.columns(s)).transpose()
        };
        let (ranks, layer) = (self.settings.ranks(site, self.tasks), layers.linear(index));
        if layer.weight.quantised().is_some() {
            self.settings.leaves_weights(&site.name)?;
        }
        if g.method == Method::Gems && g.side == Side::Published {
            let null_space = NullSpace::new(null, columns(&mut self.protected)?);
            let made = Published::new(be, layer, &ranks, g.refresh_every, null_space)?;
            return Ok(Tuned::Other(Box::new(made)));
        }
        if g.method == Method::Full {
            let null_space = NullSpace::new(null, columns(&mut self.protected)?);
            let o = &self.settings.optimizer;
            let pulls = o.decay == Decay::Delta && o.weight_decay > 0.0;
            let pull = self.costs.pull(&**be, index, layer)?;
            let made = Full::new(be, layer, self.tasks, null_space, pull, (pulls, self.rehearses()))?;
            return Ok(Tuned::Other(Box::new(made)));
        }
        self.fits(site, space)?;
        let shape = (site.outputs, site.inputs);
        if g.method == Method::Lora {
            let (alpha, protected) = (g.lora_alpha.unwrap_or(g.rank as f64), columns(&mut self.protected)?);
            let (rank, tasks) = ((g.rank, alpha), (self.tasks, self.rehearses()));
            let keeps = (protected, self.costs.pull(&**be, index, layer)?);
            let lora = Lora::new(be, shape, rank, tasks, null, keeps, (self.seed, index))?;
            lora.attach(layer)?;
            return Ok(Tuned::Other(Box::new(lora)));
        }
        let exact = match g.refresh {
            Refresh::Exact => true,
            Refresh::Sketch => false,
            Refresh::Auto => site.outputs * site.inputs <= 1 << 16,
        };
        let (rows, columns) = match (null.side, space) {
            (NullSide::Input, Some(s)) => (Some(self.protected.rows(s)?), None),
            (NullSide::Output, Some(s)) => (None, Some(self.protected.columns(s)?)),
            _ => (None, None),
        };
        let ranks = Ranks { tasks: self.tasks, each: ranks };
        let rank = || g.remainder_rank.unwrap_or(ranks.total()).min(site.outputs.min(site.inputs));
        let remainder = layer.weight.quantised().map(|_| rank());
        let options = SubspaceOptions::new(g, null, (exact, self.rehearses()), self.seed, index);
        let options = SubspaceOptions { remainder, ..options };
        let (sides, pull) = (self.costs.metric(&**be, index, null)?, self.costs.pull(&**be, index, layer)?);
        let made = Subspaces::new(be, options, ranks, shape, (rows, columns), (sides, pull))?;
        made.attach(layer)?;
        Ok(Tuned::Subspaces(Box::new(made)))
    }

    fn rehearses(&self) -> bool {
        self.settings.rehearsal.every > 0
    }

    /// Whether the subspaces fit beside the protected directions.
    fn fits(&self, site: &Site, space: Option<&Space>) -> Result<()> {
        let input_side = self.settings.null_space.side == NullSide::Input;
        let taken = if input_side { space.map_or(0, Space::kept) } else { 0 };
        self.settings.fits_beside(site, self.tasks, taken)
    }

    /// A dense parameter that is trained.
    fn dense(
        &self,
        layers: &mut dyn Layers,
        index: usize,
        role: Option<DenseRole>,
    ) -> Result<Option<DenseParameter>> {
        let Some(role) = role else { return Ok(None) };
        let g = &self.settings.gems;
        let apart = g.surgery != Surgery::None || g.gates.full_norms;
        let (values, tasks) = (layers.dense(index), apart.then_some(self.tasks));
        DenseParameter::new(self.backend, role, values.as_mat(), tasks, g.gates.full_norms).map(Some)
    }
}

/// Protected directions on the device, once a space: layers with the same input share one.
struct Protected<'a> {
    backend: &'a Arc<dyn Backend>,
    protection: &'a Protection<'a>,
    held: HashMap<*const Space<'a>, Arc<Tensor>>,
}

impl<'a> Protected<'a> {
    /// As rows `[k x dim]`.
    fn rows(&mut self, space: &Space<'a>) -> Result<Arc<Tensor>> {
        let make =
            |be: &Arc<dyn Backend>| be.tensor(&space.directions, space.kept(), space.dim(), DType::F32);
        self.held(space, make)
    }

    /// As columns `[dim x k]`.
    fn columns(&mut self, space: &Space<'a>) -> Result<Arc<Tensor>> {
        self.held(space, |be| columns_of(be, space))
    }

    /// A run has all its layers' spaces as rows, or all as columns.
    fn held(
        &mut self,
        space: &Space<'a>,
        make: impl FnOnce(&Arc<dyn Backend>) -> Result<Tensor>,
    ) -> Result<Arc<Tensor>> {
        if let Some(held) = self.held.get(&std::ptr::from_ref(space)) {
            return Ok(Arc::clone(held));
        }
        let made = Arc::new(make(self.backend)?);
        self.held.insert(space, Arc::clone(&made));
        Ok(made)
    }
}

/// Protected directions as columns `[dim x k]`.
fn columns_of(backend: &Arc<dyn Backend>, space: &Space) -> Result<Tensor> {
    let k = space.kept();
    backend.tensor(&transpose(&space.directions, k, space.dim()), space.dim(), k, DType::F32)
}
