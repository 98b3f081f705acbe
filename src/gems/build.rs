//! The optimizer of a run, built: which layers are adapted, and how.

use super::Optimizer;
use super::adapter::{Adapter, Pass};
use super::full::Full;
use super::gates::Gates;
use super::gram::StepGram;
use super::linalg::transpose;
use super::lora::Lora;
use super::master::NullSpace;
use super::nullspace::{KnowledgeBasis, Space};
use super::published::Published;
use super::refresh::window::Ranks;
use super::rows::{DenseParameter, DenseRole};
use super::settings::{
    Decay, GateKind, GemsSettings, Method, NullSide, NullSpaceSettings, OptimizerSettings, Refresh, Side,
    Surgery,
};
use super::subspaces::{SubspaceOptions, Subspaces};
use crate::backend::{Backend, DType, Tensor};
use crate::error::{Error, Result};
use crate::layers::{Layers, Projection, Site};
use std::collections::HashMap;
use std::sync::Arc;

/// Sections `[gems]`, `[null_space]` and `[optimizer]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MethodSettings {
    /// What is tuned, and how.
    pub gems: GemsSettings,
    /// What is left alone.
    pub null_space: NullSpaceSettings,
    /// Adam.
    pub optimizer: OptimizerSettings,
}

/// One of `gems.targets`.
enum Target<'a> {
    Projection(Projection),
    /// A part of a module name.
    Part(&'a str),
}

impl<'a> Target<'a> {
    /// What is shorter than this is a projection or a mistake: `p` is a part of most names.
    const SHORTEST_PART: usize = 5;

    fn new(text: &'a str) -> Option<Self> {
        match Projection::parse(text) {
            Some(projection) => Some(Self::Projection(projection)),
            None => (text.len() >= Self::SHORTEST_PART).then_some(Self::Part(text)),
        }
    }

    fn takes(&self, site: &Site) -> bool {
        match self {
            Self::Projection(projection) => site.projection == *projection,
            Self::Part(part) => site.name.contains(part),
        }
    }
}

impl MethodSettings {
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
    pub fn adapted(&self, sites: &[Site]) -> Result<Vec<bool>> {
        let targets = &self.gems.targets;
        let matches = |site: &Site, text: &str| Target::new(text).is_some_and(|t| t.takes(site));
        // A projection that only other families have (T5 v1.0 has no up) is no mistake.
        let known = |text: &str| Projection::parse(text).is_some();
        let strange = targets.iter().find(|t| !known(t) && !sites.iter().any(|s| matches(s, t)));
        let taken: Vec<bool> = sites.iter().map(|s| targets.iter().any(|t| matches(s, t))).collect();
        if strange.is_some() || !taken.contains(&true) {
            let named = strange.map_or(format!("{targets:?}"), |t| format!("{t:?}"));
            return Err(Error::usage(format!("gems.targets: no layer is a {named}"))
                .remedy("name projections (q, k, v, o, gate, up, down) or parts of module names"));
        }
        let on = self.gems.method != Method::Rows;
        Ok(taken.into_iter().map(|taken| on && taken).collect())
    }

    /// Ranks of a layer's subspaces: shared, then one a task for GEMS.
    pub fn ranks(&self, site: &Site, tasks: usize) -> Vec<usize> {
        let most = site.outputs.min(site.inputs);
        let mut ranks = vec![self.gems.rank.min(most)];
        if self.gems.method == Method::Gems {
            let own = self.gems.task_rank.unwrap_or((self.gems.rank / 2).max(1)).min(most);
            ranks.extend(vec![own; tasks]);
        }
        ranks
    }
}

impl Optimizer {
    /// The optimizer of a model's layers (`sites`) and dense parameters (`None`: not trained), which it may read and attach
    /// branches to. `knowledge` must be of the model.
    #[allow(clippy::too_many_arguments, reason = "everything an optimizer is made of, once")]
    pub fn new(
        settings: MethodSettings,
        sites: &[Site],
        dense: &[Option<DenseRole>],
        tasks: usize,
        knowledge: Option<&KnowledgeBasis>,
        layers: &mut dyn Layers,
        backend: &Arc<dyn Backend>,
        seed: u64,
    ) -> Result<Self> {
        settings.validate()?;
        let adapted = settings.adapted(sites)?;
        let protected = Protected { backend, knowledge, held: HashMap::new() };
        let mut build = Build { settings: &settings, tasks, backend, seed, protected };
        let mut adapters = Vec::new();
        for (i, site) in sites.iter().enumerate() {
            adapters.push(if adapted[i] { Some(build.adapter(i, site, layers)?) } else { None });
        }
        let dense = dense.iter().enumerate().map(|(i, role)| build.dense(layers, i, *role));
        let dense = dense.collect::<Result<Vec<_>>>()?;
        let protected_rows = match knowledge.and_then(|k| k.final_hidden.as_ref()) {
            Some(space) if settings.null_space.item_rows > 0.0 && space.kept() > 0 => {
                Some(columns_of(backend, space)?)
            }
            _ => None,
        };
        Ok(Self {
            gram: StepGram::new(&**backend, tasks, &adapters, &dense)?,
            gates: Gates::new(&settings.gems.gates, tasks, seed),
            backend: Arc::clone(backend),
            settings,
            tasks,
            adapters,
            dense,
            protected_rows,
            step: 0,
            task_steps: vec![0; tasks],
            observing: false,
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
}

impl<'a> Build<'a> {
    /// The adapter of a layer, which may get a branch.
    fn adapter(&mut self, index: usize, site: &Site, layers: &mut dyn Layers) -> Result<Box<dyn Adapter>> {
        let (g, null, be) = (&self.settings.gems, &self.settings.null_space, self.backend);
        let space = self.space(index, site)?;
        let columns = |protected: &mut Protected| -> Result<Option<Arc<Tensor>>> {
            space.map(|s| protected.columns(s)).transpose()
        };
        let (ranks, layer) = (self.settings.ranks(site, self.tasks), layers.linear(index));
        if g.method == Method::Gems && g.side == Side::Published {
            let null_space = NullSpace::new(null, columns(&mut self.protected)?);
            return Ok(Box::new(Published::new(be, layer, &ranks, g.refresh_every, null_space)?));
        }
        if g.method == Method::Full {
            let null_space = NullSpace::new(null, columns(&mut self.protected)?);
            let o = &self.settings.optimizer;
            let pulls = o.decay == Decay::Delta && o.weight_decay > 0.0;
            return Ok(Box::new(Full::new(be, layer, self.tasks, null_space, pulls)?));
        }
        self.fits(site, &ranks, space)?;
        let shape = (site.outputs, site.inputs);
        if g.method == Method::Lora {
            let (alpha, protected) = (g.lora_alpha.unwrap_or(g.rank as f64), columns(&mut self.protected)?);
            let lora =
                Lora::new(be, shape, (g.rank, alpha), self.tasks, null, protected, (self.seed, index))?;
            lora.attach(layer)?;
            return Ok(Box::new(lora));
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
        let options = SubspaceOptions::new(g, null, exact, self.seed, index);
        let ranks = Ranks { tasks: self.tasks, each: ranks };
        let made = Subspaces::new(be, options, ranks, shape, rows, columns)?;
        made.attach(layer)?;
        Ok(Box::new(made))
    }

    /// The protected directions of a layer, if there are any.
    fn space(&self, index: usize, site: &Site) -> Result<Option<&'a Space>> {
        let side = self.settings.null_space.side;
        let knowledge = self.protected.knowledge.filter(|_| side != NullSide::None);
        let Some(space) = knowledge.and_then(|k| k.space(index)).filter(|s| s.kept() > 0) else {
            return Ok(None);
        };
        let dim = if side == NullSide::Input { site.inputs } else { site.outputs };
        if space.dim != dim {
            return Err(Error::usage(format!("the knowledge basis has {} dimensions, not {dim}", space.dim))
                .at(&site.name)
                .remedy("make a basis for this model and side with `gems-engine basis`"));
        }
        Ok(Some(space))
    }

    /// Whether the subspaces fit beside the protected directions.
    fn fits(&self, site: &Site, ranks: &[usize], space: Option<&Space>) -> Result<()> {
        let g = &self.settings.gems;
        let total: usize = if g.method == Method::Lora { g.rank } else { ranks.iter().sum() };
        let input_side = self.settings.null_space.side == NullSide::Input;
        let taken = if input_side { space.map_or(0, Space::kept) } else { 0 };
        let left = site.inputs - taken.min(site.inputs);
        if total <= left {
            return Ok(());
        }
        Err(Error::usage(format!(
            "subspaces of {total} directions do not fit: {} inputs less {taken} protected leave {left}",
            site.inputs
        ))
        .at(&site.name)
        .remedy("lower gems.rank or gems.task_rank, or protect fewer directions (null_space.value)"))
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
