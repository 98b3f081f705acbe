//! The method over a whole model: gradients in, updates out.

use super::dense::{DenseParameter, DenseRole};
use super::engine::{Engine, Parameters, Scales, Tapped};
use super::full::Full;
use super::gates::Gates;
use super::knowledge::{KnowledgeBasis, Space};
use super::linalg::transpose;
use super::lora::Lora;
use super::published::Published;
use super::readout::Readout;
use super::refresh;
use super::settings::{
    Decay, GateKind, GemsSettings, Method, NullSide, NullSpaceSettings, OptimizerSettings, Refresh, Side,
    Surgery,
};
use super::subspaces::{SubspaceOptions, Subspaces};
use super::window::Streams;
use crate::backend::{Backend, DType, Mat, Tensor, trace};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Sections `[gems]`, `[null_space]` and `[optimizer]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TunerSettings {
    /// What is tuned, and how.
    pub gems: GemsSettings,
    /// What is left alone.
    pub null_space: NullSpaceSettings,
    /// Adam.
    pub optimizer: OptimizerSettings,
}

/// A linear layer as the method sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteShape {
    /// Module name.
    pub name: String,
    /// Projection: q, k, v, o, gate, up or down.
    pub projection: &'static str,
    /// M.
    pub outputs: usize,
    /// N.
    pub inputs: usize,
}

/// What a finished step's batch was.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepInput {
    /// Labels of every task.
    pub labels: Vec<usize>,
    /// Samples of every task.
    pub counts: Vec<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Learning rate of table rows.
    pub lr_rows: f64,
    /// Scale the update of the adapted layers to this norm.
    pub target_norm: Option<f64>,
    /// No step follows: do not refresh.
    pub last: bool,
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Whether loss and gradient were finite; when not, nothing was changed.
    pub finite: bool,
    /// Summed loss of every task's labels.
    pub losses: Vec<f64>,
    /// Norm of all gradients (of the adapted layers in their subspaces), before clipping.
    pub gradient_norm: f64,
    /// Factor from clipping.
    pub clip: f64,
    /// Norm of the change of the adapted layers.
    pub update_norm: f64,
    /// Gates.
    pub gates: Vec<f64>,
    /// Norms of the tasks' gradients, as the gates see them.
    pub task_norms: Vec<f64>,
    /// Cosine between the gradients of tasks i < j over all adapted layers (in the shared subspace).
    pub cosines: Vec<(usize, usize, f64)>,
    /// Set when the bases were renewed after this step.
    pub refresh: Option<RefreshReport>,
}

/// What a refresh found, as means over layers weighted alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RefreshReport {
    /// Share of each subspace's gradient energy in its basis; shared first, then tasks.
    pub energy: Vec<f64>,
    /// Share of the gradient energy the null space leaves.
    pub room: f64,
    /// The same per adapted layer: (site, room).
    pub rooms: Vec<(usize, f64)>,
}

pub(super) enum Layer {
    Subspaces(Box<Subspaces>),
    Other(Box<dyn Engine>),
}

impl Layer {
    pub(super) fn engine(&mut self) -> &mut dyn Engine {
        match self {
            Layer::Subspaces(s) => &mut **s,
            Layer::Other(e) => &mut **e,
        }
    }
    pub(super) fn shared(&self) -> &dyn Engine {
        match self {
            Layer::Subspaces(s) => &**s,
            Layer::Other(e) => &**e,
        }
    }
}

/// The optimizer of a run.
pub struct Tuner {
    pub(super) settings: TunerSettings,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) tasks: usize,
    pub(super) layers: Vec<Option<Layer>>,
    pub(super) dense: Vec<Option<DenseParameter>>,
    pub(super) readout: Readout,
    pub(super) protected_rows: Option<Tensor>,
    pub(super) gates: Gates,
    pub(super) step: u64,
    pub(super) task_steps: Vec<u64>,
    pub(super) observing: bool,
}

impl TunerSettings {
    /// Rejects settings that cannot be meant together.
    pub fn validate(&self) -> Result<()> {
        let usage = |what: &str, remedy: &str| Err(Error::usage(what.to_string()).remedy(remedy.to_string()));
        let (g, o, n) = (&self.gems, &self.optimizer, &self.null_space);
        if g.rank == 0 {
            return usage("gems.rank is 0", "give at least 1");
        }
        if g.refresh_every == 0 || g.refresh_window == 0 {
            return usage("gems.refresh_every and gems.refresh_window count steps", "give at least 1");
        }
        if !(0.0..1.0).contains(&o.beta1) || !(0.0..1.0).contains(&o.beta2) || o.eps.is_nan() || o.eps <= 0.0
        {
            return usage("optimizer.beta1 and beta2 lie in [0, 1), eps above 0", "correct them");
        }
        let low_rank = matches!(g.method, Method::Gems | Method::Galore) && g.side == Side::Right;
        if o.decay == Decay::Weights && o.weight_decay > 0.0 && low_rank {
            return usage(
                "optimizer.decay = \"weights\" needs weights that change every step",
                "use optimizer.decay = \"delta\", or gems.method = \"full\", or gems.side = \"published\"",
            );
        }
        if g.side == Side::Published && g.surgery != Surgery::None {
            return usage(
                "gems.surgery has no place in the published optimizer",
                "use gems.side = \"right\"",
            );
        }
        if g.gates.kind == GateKind::Learned && (g.method != Method::Gems || g.side == Side::Published) {
            return usage(
                "learned gates weigh task subspaces on the input side",
                "use gems.method = \"gems\" with gems.side = \"right\"",
            );
        }
        if n.side != NullSide::None && (n.value.is_nan() || n.value < 0.0) {
            return usage("null_space.value is negative", "an energy lies between 0 and 1");
        }
        if !(0.0..=1.0).contains(&n.item_rows) {
            return usage("null_space.item_rows is a share of energy", "give a number between 0 and 1");
        }
        Ok(())
    }

    /// The adapted layers among `sites`.
    pub fn adapted(&self, sites: &[SiteShape]) -> Result<Vec<bool>> {
        let matches = |site: &SiteShape, t: &String| {
            site.projection == t || (t.len() > 4 && site.name.contains(t.as_str()))
        };
        // A projection that only other families have (T5 v1.0 has no up) is no mistake.
        let known = |t: &String| ["q", "k", "v", "o", "gate", "up", "down"].contains(&t.as_str());
        let strange = self.gems.targets.iter().find(|t| !known(t) && !sites.iter().any(|s| matches(s, t)));
        let nothing = !sites.iter().any(|s| self.gems.targets.iter().any(|t| matches(s, t)));
        if strange.is_some() || nothing {
            let named = strange.map_or(format!("{:?}", self.gems.targets), |t| format!("{t:?}"));
            return Err(Error::usage(format!("gems.targets: no layer is a {named}"))
                .remedy("name projections (q, k, v, o, gate, up, down) or parts of module names"));
        }
        let on = self.gems.method != Method::Rows;
        Ok(sites.iter().map(|s| on && self.gems.targets.iter().any(|t| matches(s, t))).collect())
    }

    /// Ranks of a layer's subspaces: shared, then one a task for GEMS.
    pub fn ranks(&self, site: &SiteShape, tasks: usize) -> Vec<usize> {
        let most = site.outputs.min(site.inputs);
        let mut ranks = vec![self.gems.rank.min(most)];
        if self.gems.method == Method::Gems {
            let own = self.gems.task_rank.unwrap_or((self.gems.rank / 2).max(1)).min(most);
            ranks.extend(vec![own; tasks]);
        }
        ranks
    }
}

impl Tuner {
    /// A tuner for a model's layers (`sites`) and dense parameters (`None`: not trained), whose parameters it may
    /// read and attach branches to. `knowledge` must be of the model.
    #[allow(clippy::too_many_arguments, reason = "everything a tuner is made of, once")]
    pub fn new(
        settings: TunerSettings,
        sites: &[SiteShape],
        dense: &[Option<DenseRole>],
        tasks: usize,
        knowledge: Option<&KnowledgeBasis>,
        parameters: &mut dyn Parameters,
        backend: &Arc<dyn Backend>,
        seed: u64,
    ) -> Result<Self> {
        settings.validate()?;
        let adapted = settings.adapted(sites)?;
        let mut layers = Vec::new();
        let mut protected = Protected { backend, knowledge, held: HashMap::new() };
        for (i, site) in sites.iter().enumerate() {
            let made = match adapted[i] {
                true => {
                    Some(Self::layer(&settings, site, i, tasks, &mut protected, parameters, backend, seed)?)
                }
                false => None,
            };
            layers.push(made);
        }
        let apart = settings.gems.surgery != Surgery::None || settings.gems.gates.full_norms;
        let dense = dense
            .iter()
            .enumerate()
            .map(|(i, role)| {
                let Some(role) = role else { return Ok(None) };
                let values = parameters.dense(i);
                let scaled = settings.gems.gates.full_norms;
                let made =
                    DenseParameter::new(backend, *role, values.as_mat(), apart.then_some(tasks), scaled)?;
                Ok(Some(made))
            })
            .collect::<Result<Vec<_>>>()?;
        let protected_rows = match knowledge.and_then(|k| k.final_hidden.as_ref()) {
            Some(space) if settings.null_space.item_rows > 0.0 && space.kept() > 0 => {
                Some(columns_of(backend, space)?)
            }
            _ => None,
        };
        Ok(Self {
            readout: Readout::new(backend, tasks, &layers, &dense)?,
            gates: Gates::new(&settings.gems.gates, tasks, seed),
            backend: Arc::clone(backend),
            settings,
            tasks,
            layers,
            dense,
            protected_rows,
            step: 0,
            task_steps: vec![0; tasks],
            observing: false,
        })
    }

    #[allow(clippy::too_many_arguments, reason = "everything a layer is made of, once")]
    fn layer(
        settings: &TunerSettings,
        site: &SiteShape,
        index: usize,
        tasks: usize,
        protected: &mut Protected,
        parameters: &mut dyn Parameters,
        be: &Arc<dyn Backend>,
        seed: u64,
    ) -> Result<Layer> {
        let (g, null) = (&settings.gems, &settings.null_space);
        let shape = (site.outputs, site.inputs);
        let space = match null.side {
            NullSide::None => None,
            _ => protected.knowledge.and_then(|k| k.space(index)).filter(|s| s.kept() > 0),
        };
        if let Some(space) = space {
            let dim = if null.side == NullSide::Input { site.inputs } else { site.outputs };
            if space.dim != dim {
                return Err(Error::usage(format!(
                    "the knowledge basis has {} dimensions, not {dim}",
                    space.dim
                ))
                .at(&site.name)
                .remedy("make a basis for this model and side with `gems-engine basis`"));
            }
        }
        let ranks = settings.ranks(site, tasks);
        let layer = parameters.linear(index);
        if g.method == Method::Gems && g.side == Side::Published {
            let protected = space.map(|s| protected.columns(s)).transpose()?;
            let made = Published::new(be, layer, &ranks, g.refresh_every, null, protected)?;
            return Ok(Layer::Other(Box::new(made)));
        }
        if g.method == Method::Full {
            let protected = space.map(|s| protected.columns(s)).transpose()?;
            let pulls = settings.optimizer.decay == Decay::Delta && settings.optimizer.weight_decay > 0.0;
            return Ok(Layer::Other(Box::new(Full::new(be, layer, tasks, null, protected, pulls)?)));
        }
        let total: usize = if g.method == Method::Lora { g.rank } else { ranks.iter().sum() };
        let taken = if null.side == NullSide::Input { space.map_or(0, Space::kept) } else { 0 };
        if total > site.inputs - taken.min(site.inputs) {
            let left = site.inputs - taken.min(site.inputs);
            return Err(Error::usage(format!(
                "subspaces of {total} directions do not fit: {} inputs less {taken} protected leave {left}",
                site.inputs
            ))
            .at(&site.name)
            .remedy("lower gems.rank or gems.task_rank, or protect fewer directions (null_space.value)"));
        }
        if g.method == Method::Lora {
            let alpha = g.lora_alpha.unwrap_or(g.rank as f64);
            let protected = space.map(|s| protected.columns(s)).transpose()?;
            let lora = Lora::new(be, shape, g.rank, alpha, tasks, null, protected, (seed, index))?;
            lora.attach(layer)?;
            return Ok(Layer::Other(Box::new(lora)));
        }
        let exact = match g.refresh {
            Refresh::Exact => true,
            Refresh::Sketch => false,
            Refresh::Auto => site.outputs * site.inputs <= 1 << 16,
        };
        let (rows, columns) = match (null.side, space) {
            (NullSide::Input, Some(s)) => (Some(protected.rows(s)?), None),
            (NullSide::Output, Some(s)) => (None, Some(protected.columns(s)?)),
            _ => (None, None),
        };
        let options = SubspaceOptions::new(g, null, exact, seed, index);
        let made = Subspaces::new(be, options, Streams { tasks, ranks }, shape, rows, columns)?;
        made.attach(layer)?;
        Ok(Layer::Subspaces(Box::new(made)))
    }

    pub(super) fn subspaces(&mut self) -> impl Iterator<Item = (usize, &mut Subspaces)> {
        self.layers.iter_mut().enumerate().filter_map(|(i, l)| match l {
            Some(Layer::Subspaces(s)) => Some((i, &mut **s)),
            _ => None,
        })
    }

    // ---- a step -----------------------------------------------------------------------------

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Passes over the probe batches that must come before the first step: for each round
    /// [`Tuner::begin_probe`], gradients of all probe batches, and at the end [`Tuner::finish_probe`].
    pub fn probe_rounds(&mut self) -> u64 {
        if self.step > 0 {
            return 0;
        }
        self.subspaces().filter(|(_, s)| s.refreshes() == 0).map(|(_, s)| s.probe_rounds()).max().unwrap_or(0)
    }

    /// Starts probe round `round` (from 0).
    pub fn begin_probe(&mut self, round: u64) -> Result<()> {
        self.observing = true;
        let be = Arc::clone(&self.backend);
        let layers = self.subspaces().map(|(_, s)| s).filter(|s| round < s.probe_rounds()).collect();
        refresh::open_probe(&*be, layers, round)
    }

    /// Finds the first bases.
    pub fn finish_probe(&mut self, parameters: &mut dyn Parameters) -> Result<RefreshReport> {
        self.observing = false;
        self.refresh(parameters)
    }

    /// Starts a step: gradients are zero; a window opens when a refresh is near.
    pub fn begin_step(&mut self) -> Result<()> {
        self.observing = true;
        let every = self.settings.gems.refresh_every;
        let window = self.settings.gems.refresh_window.min(every);
        if self.step % every == every - window {
            let _span = trace::span("window");
            let be = Arc::clone(&self.backend);
            refresh::open_windows(&*be, self.subspaces().map(|(_, s)| s).collect())?;
        }
        for layer in self.layers.iter_mut().flatten() {
            layer.engine().begin()?;
        }
        self.backend.fill(self.readout.values.mat_mut(), 0.0)?;
        self.dense.iter_mut().flatten().try_for_each(DenseParameter::begin)
    }

    /// Adds a micro-batch's losses: nll *f32* `[labels x 1]`, and the labels of every task.
    pub fn observe_losses(&mut self, nll: Mat, segments: &[Range<usize>]) -> Result<()> {
        let losses = self.readout.losses(self.tasks);
        let to = self.readout.values.mat_mut().col_range(losses).reshape(self.tasks, 1);
        self.backend.column_sums(nll, segments, to)
    }

    /// The gradient of linear layer `site` in one micro-batch.
    pub fn observe_linear(&mut self, site: usize, g: &Tapped, scales: &Scales) -> Result<()> {
        match self.layers.get_mut(site) {
            Some(Some(layer)) if self.observing => {
                let products = self.readout.values.mat_mut().col_range(self.readout.sites[site].clone());
                layer.engine().observe(g, scales, products)
            }
            _ => Ok(()),
        }
    }

    /// Whether layer `site` is adapted.
    pub fn adapts(&self, site: usize) -> bool {
        self.layers.get(site).is_some_and(Option::is_some)
    }

    /// What is trained of dense parameter `index`: (first row, gradients of tasks apart).
    pub fn trains(&self, index: usize) -> Option<(usize, bool)> {
        let p = self.dense.get(index)?.as_ref()?;
        Some((p.role.first_row(), p.apart()))
    }

    /// The gradient of dense parameter `index` in one micro-batch.
    pub fn observe_dense(&mut self, index: usize, blocks: Mat, scales: &Scales) -> Result<()> {
        match self.dense.get_mut(index) {
            Some(Some(p)) => p.observe(blocks, scales),
            _ => Ok(()),
        }
    }

    pub(super) fn refresh(&mut self, parameters: &mut dyn Parameters) -> Result<RefreshReport> {
        let _span = trace::span("refresh");
        let mut report = RefreshReport::default();
        let be = Arc::clone(&self.backend);
        let (mut energies, mut rooms) = (Vec::<Vec<f64>>::new(), Vec::new());
        for (site, found) in refresh::renew(&*be, self.subspaces(), parameters)? {
            energies.push(found.energy);
            rooms.push((site, found.room));
        }
        let streams = energies.first().map_or(0, Vec::len);
        report.energy = (0..streams)
            .map(|s| {
                let known: Vec<f64> = energies.iter().map(|e| e[s]).filter(|v| v.is_finite()).collect();
                known.iter().sum::<f64>() / known.len().max(1) as f64
            })
            .collect();
        report.room = rooms.iter().map(|r| r.1).sum::<f64>() / rooms.len().max(1) as f64;
        report.rooms = rooms;
        Ok(report)
    }
}

/// Protected directions on the device, once a space: layers with the same input share one.
struct Protected<'a> {
    backend: &'a Arc<dyn Backend>,
    knowledge: Option<&'a KnowledgeBasis>,
    held: HashMap<*const Space, Arc<Tensor>>,
}

impl Protected<'_> {
    /// As rows `[k x dim]`.
    fn rows(&mut self, space: &Space) -> Result<Arc<Tensor>> {
        let make = |be: &Arc<dyn Backend>| be.tensor(&space.directions, space.kept(), space.dim, DType::F32);
        self.held(space, make)
    }

    /// As columns `[dim x k]`.
    fn columns(&mut self, space: &Space) -> Result<Arc<Tensor>> {
        self.held(space, |be| columns_of(be, space))
    }

    /// A run has all its layers' spaces as rows, or all as columns.
    fn held(
        &mut self,
        space: &Space,
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
    backend.tensor(&transpose(&space.directions, k, space.dim), space.dim, k, DType::F32)
}
