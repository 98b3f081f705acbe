//! The settings of the method together: what goes with what, which layers are adapted, and with which ranks.

use super::settings::{
    Criterion, Decay, Embeddings, GateKind, GemsSettings, Method, NullSide, NullSpaceSettings,
    OptimizerSettings, RehearsalSettings, Side, Surgery,
};
use crate::error::{Error, Result};
use crate::layers::{Projection, Site};

/// Sections `[gems]`, `[null_space]`, `[rehearsal]` and `[optimizer]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MethodSettings {
    /// What is tuned, and how.
    pub gems: GemsSettings,
    /// What is left alone.
    pub null_space: NullSpaceSettings,
    /// What is read again.
    pub rehearsal: RehearsalSettings,
    /// Adam.
    pub optimizer: OptimizerSettings,
}

/// Most directions of a layer that may be kept of what a model knows.
const MOST_DIRECTIONS: usize = 1024;

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
    /// The defaults with nothing that keeps what the base model knows: no null space, pull or rehearsal.
    pub fn plain() -> Self {
        Self { null_space: NullSpaceSettings::off(), rehearsal: RehearsalSettings::off(), ..Self::default() }
    }

    /// Rejects settings that cannot be meant together.
    pub fn validate(&self) -> Result<()> {
        let usage = |place: &str, what: &str, remedy: &str| Err(Error::usage(what).at(place).remedy(remedy));
        let (g, o, n) = (&self.gems, &self.optimizer, &self.null_space);
        if g.remainder_rank == Some(0) {
            return usage("gems.remainder_rank", "nothing that is learned would be kept", "give at least 1");
        }
        if g.rank == 0 || g.task_rank == Some(0) {
            return usage("gems.rank", "a subspace of no directions", "give at least 1");
        }
        if g.refresh_every == 0 || g.refresh_window == 0 {
            return usage("gems.refresh_every and gems.refresh_window", "0 steps", "give at least 1");
        }
        if !(0.0..1.0).contains(&o.beta1) || !(0.0..1.0).contains(&o.beta2) || o.eps.is_nan() || o.eps <= 0.0
        {
            return usage("optimizer", "beta1 and beta2 lie in [0, 1), eps above 0", "correct them");
        }
        let low_rank = matches!(g.method, Method::Gems | Method::Galore) && g.side == Side::Right;
        if o.decay == Decay::Weights && o.weight_decay > 0.0 && low_rank {
            return usage(
                "optimizer.decay = \"weights\"",
                "it needs weights that change every step",
                "use optimizer.decay = \"delta\", or gems.method = \"full\", or gems.side = \"published\"",
            );
        }
        if g.side == Side::Published && g.surgery != Surgery::None {
            let remedy = "use gems.side = \"right\"";
            return usage("gems.surgery", "it has no place in the published optimizer", remedy);
        }
        if g.gates.kind == GateKind::Learned && (g.method != Method::Gems || g.side == Side::Published) {
            return usage(
                "gems.gates.kind = \"learned\"",
                "learned gates weigh task subspaces on the input side",
                "use gems.method = \"gems\" with gems.side = \"right\"",
            );
        }
        if g.gates.kind == GateKind::Heuristic && g.gates.shares.iter().sum::<f64>() <= 0.0 {
            return usage("gems.gates.shares", "all of them are 0", "give at least one a share");
        }
        let trains = (o.embeddings != Embeddings::None, o.norms, o.biases);
        if g.method == Method::Rows && trains == (false, false, false) {
            let remedy = "set optimizer.embeddings = \"new\", or another gems.method";
            return usage("gems.method = \"rows\"", "nothing is trained", remedy);
        }
        self.check_null_space(n)
    }

    /// Whether weights of layers are written to; otherwise all that is learned of a layer is beside its weight.
    pub fn writes_weights(&self) -> bool {
        !matches!(self.gems.method, Method::Lora | Method::Rows)
    }

    /// Refuses methods that change the weight itself of `layer`, which is stored in codes.
    ///
    /// # Errors
    /// The method, and those that do not.
    pub fn leaves_weights(&self, layer: &str) -> Result<()> {
        let g = &self.gems;
        let published = g.method == Method::Gems && g.side == Side::Published;
        if g.method != Method::Full && !published {
            return Ok(());
        }
        let what = if published { "gems.side = \"published\"" } else { "gems.method = \"full\"" };
        let remedy = "use gems.method = \"gems\" (with gems.side = \"right\"), \"galore\", \"lora\" or \"rows\", or a base \
                      that is stored whole";
        Err(Error::usage(format!(
            "{what} changes weights, and the base's are in codes: nothing can be added to them"
        ))
        .at(layer)
        .remedy(remedy))
    }

    fn check_null_space(&self, n: &NullSpaceSettings) -> Result<()> {
        let off = n.side == NullSide::None;
        let (allowed, words) = match n.criterion {
            Criterion::Energy => (n.value <= 1.0, "a share of the energy: at most 1"),
            Criterion::Ratio => (n.value < 1.0, "a ratio to the largest eigenvalue: below 1"),
            Criterion::Budget => (n.value.fract() == 0.0, "a number of free directions: a whole one"),
            Criterion::Absolute => (true, "an eigenvalue"),
        };
        let fits = allowed && n.value >= 0.0;
        if !off && !fits {
            let rule = format!("{:?}", n.criterion).to_lowercase();
            let what = format!("{} does not fit null_space.criterion = \"{rule}\"", n.value);
            return Err(Error::usage(what)
                .at("null_space.value")
                .remedy(format!("give {words}, not negative")));
        }
        if !(1..=MOST_DIRECTIONS).contains(&n.directions) {
            return Err(Error::usage(format!("{} directions", n.directions))
                .at("null_space.directions")
                .remedy(format!("give 1 to {MOST_DIRECTIONS}")));
        }
        if !(0.0..=1.0).contains(&n.item_rows) {
            let what = format!("{} is no share of energy", n.item_rows);
            return Err(Error::usage(what)
                .at("null_space.item_rows")
                .remedy("give a number between 0 and 1"));
        }
        if off && n.item_rows == 0.0 && n.random {
            return Err(Error::usage("no directions are protected, random ones neither")
                .at("null_space.random")
                .remedy("set null_space.side or null_space.item_rows"));
        }
        self.validate_costs()?;
        self.validate_rehearsal()
    }

    fn validate_costs(&self) -> Result<()> {
        let usage = |what: String, remedy: &str| Err(Error::usage(what).remedy(remedy));
        let (n, g) = (&self.null_space, &self.gems);
        if !(n.damping > 0.0 && n.damping.is_finite()) {
            return usage(
                format!("null_space.damping is {}", n.damping),
                "give a number above 0, such as 0.1",
            );
        }
        if !(n.pull >= 0.0 && n.pull.is_finite()) {
            return usage(format!("null_space.pull is {}", n.pull), "give 0 (off) or more, such as 0.25");
        }
        let wanted = [
            ("side = \"metric\"", n.side == NullSide::Metric),
            ("step_factors = true", n.step_factors),
            ("pull above 0", n.pull > 0.0),
        ];
        let Some((name, _)) = wanted.into_iter().find(|(_, on)| *on) else { return Ok(()) };
        if n.gradient_tokens == 0 {
            return usage(
                format!("null_space.{name} needs moments of gradients, and null_space.gradient_tokens is 0"),
                "give some, such as 16384, or leave it out (null_space.side = \"none\" turns all of it off)",
            );
        }
        if g.method == Method::Gems && g.side == Side::Published {
            let what = format!("null_space.{name} has no place in the published optimizer");
            return usage(what, "use gems.side = \"right\", or leave it out");
        }
        if g.method == Method::Rows {
            let what = format!("null_space.{name} is about layers, and gems.method = \"rows\" tunes none");
            return usage(what, "use another gems.method, or leave it out");
        }
        if n.side == NullSide::Metric && !matches!(g.method, Method::Gems | Method::Galore) {
            let what = "null_space.side = \"metric\" is a metric of subspaces, of which this method has none";
            let remedy =
                "use gems.method = \"gems\" or \"galore\"; step_factors and pull are there for every method";
            return usage(what.into(), remedy);
        }
        if n.side == NullSide::Metric && n.random {
            return usage(
                "null_space.random is the control of a projection, which side = \"metric\" is not".into(),
                "leave it out, or use side = \"input\"",
            );
        }
        Ok(())
    }

    fn validate_rehearsal(&self) -> Result<()> {
        let usage = |what: String, remedy: &str| Err(Error::usage(what).remedy(remedy));
        let (r, g) = (&self.rehearsal, &self.gems);
        if r.every == 0 {
            return Ok(());
        }
        if g.method == Method::Gems && g.side == Side::Published {
            let what = "rehearsal has no place in the published optimizer";
            return usage(what.into(), "use gems.side = \"right\", or rehearsal.every = 0");
        }
        if g.method == Method::Rows {
            let what = "rehearsal has nothing to hold: gems.method = \"rows\" tunes no layer";
            return usage(what.into(), "use another gems.method, or rehearsal.every = 0");
        }
        if r.texts == 0 || r.tokens < 2 {
            let what = format!("rehearsal reads {} texts, drawn from {} tokens", r.texts, r.tokens);
            return usage(what, "give rehearsal.texts at least 1 and rehearsal.tokens at least 2");
        }
        if !(r.weight > 0.0 && r.weight.is_finite()) {
            let what = format!("rehearsal.weight is {}", r.weight);
            return usage(what, "give a number above 0, or rehearsal.every = 0 for no rehearsal");
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
        let names = |p: &Projection| targets.iter().any(|t| t == p.name());
        let fused = sites.iter().filter(|s| !names(&s.projection)).map(|s| (s, s.projection.parts()));
        let half = |parts: &[Projection]| parts.iter().any(names) && !parts.iter().all(names);
        if let Some((site, _)) = fused.clone().find(|(_, parts)| half(parts)) {
            let (what, whole) = (&site.name, site.projection.name());
            return Err(Error::usage(format!(
                "gems.targets = {targets:?}: {what} is one matrix for all of {whole}"
            ))
            .remedy(format!("name {whole}, or none of its parts")));
        }
        // A matrix that is several projections in one is adapted where all of them are named.
        let whole = |s: &Site| !s.projection.parts().is_empty() && s.projection.parts().iter().all(names);
        let taken: Vec<bool> =
            sites.iter().map(|s| whole(s) || targets.iter().any(|t| matches(s, t))).collect();
        if strange.is_some() || !taken.contains(&true) {
            let named = strange.map_or(format!("{targets:?}"), |t| format!("{t:?}"));
            return Err(Error::usage(format!("gems.targets: no layer is a {named}")).remedy(
                "name projections (q, k, v, o, gate, up, down; qkv, gate_up) or parts of module names",
            ));
        }
        let on = self.gems.method != Method::Rows;
        Ok(taken.into_iter().map(|taken| on && taken).collect())
    }

    /// Rejects ranks that no layer has room for, before anything is computed.
    ///
    /// # Errors
    /// Names the layer and the ranks.
    pub fn fits(&self, sites: &[Site], tasks: usize) -> Result<()> {
        let g = &self.gems;
        if matches!(g.method, Method::Full | Method::Rows) || g.side == Side::Published {
            return Ok(());
        }
        let adapted = self.adapted(sites)?;
        let mut all = sites.iter().zip(adapted).filter(|(_, adapted)| *adapted);
        all.try_for_each(|(site, _)| self.fits_beside(site, tasks, 0))
    }

    /// Whether the subspaces of a layer fit beside `taken` protected directions of its input.
    pub(super) fn fits_beside(&self, site: &Site, tasks: usize, taken: usize) -> Result<()> {
        let ranks = self.ranks(site, tasks);
        let shared = if self.gems.method == Method::Lora { self.gems.rank } else { ranks[0] };
        let each = ranks.get(1).filter(|_| self.gems.method == Method::Gems);
        let total = shared + each.map_or(0, |own| own * tasks);
        let left = site.inputs.saturating_sub(taken);
        if total <= left {
            return Ok(());
        }
        let own = each.map_or(String::new(), |own| format!(" and {tasks} of {own} for the tasks"));
        let less = if taken > 0 { format!(" less {taken} protected leave {left}") } else { String::new() };
        Err(Error::usage(format!(
            "subspaces of {shared} directions{own} ({total}) do not fit: the layer has {} inputs{less}",
            site.inputs
        ))
        .at(format!("gems.rank = {}: {}", self.gems.rank, site.name))
        .remedy("lower gems.rank or gems.task_rank, or protect fewer directions (null_space.value)"))
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

    /// Directions that each layer must be left by what is protected; `None`: the layer is not adapted.
    ///
    /// # Errors
    /// `gems.targets` that name no layer.
    pub fn rooms(&self, sites: &[Site], tasks: usize) -> Result<Vec<Option<usize>>> {
        let of = |site: &Site| self.null_space.room.unwrap_or_else(|| self.ranks(site, tasks).iter().sum());
        let adapted = self.adapted(sites)?;
        Ok(sites.iter().zip(adapted).map(|(site, adapted)| adapted.then(|| of(site))).collect())
    }
}
