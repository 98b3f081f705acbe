//! What a change of each layer costs the base model, and what follows from it for the run: step factors, the rate of the pull.
//!
//! With `c = tr C / N` and `f = tr F / M` (`knowledge`), a change dW moves the predictions by about `1/2 c f |dW|²` in the
//! mean over its directions. Layers differ in that by an order of magnitude; equal steps in all of them, which Adam makes, spend
//! nearly the whole divergence in few.

use super::knowledge::{Knowledge, Spectrum};
use super::metric::{Metric, eigenvalues};
use super::pull::Pull;
use super::settings::{NullSide, NullSpaceSettings};
use crate::backend::{AdaptedLinear, Backend};
use crate::error::{Error, Result};
use crate::layers::Site;
use std::collections::HashMap;
use std::sync::Arc;

/// Second moments of a layer's inputs and output gradients.
type Moments<S> = (S, S);

/// What the adapted layers' second moments give.
pub(super) struct Costs {
    /// By site; empty where nothing is asked of them. Layers that read the same input share its moment.
    moments: HashMap<usize, Moments<Arc<Spectrum>>>,
    /// By site: the factor on its learning rate.
    pub step_factors: Vec<f64>,
    /// The pull's `tau` at the top of the schedule.
    pull: Option<f64>,
    /// Metrics of inputs, made once.
    inputs: HashMap<*const Spectrum, Arc<Metric>>,
}

impl NullSpaceSettings {
    /// Whether they need second moments of inputs and of output gradients.
    pub fn weighs_costs(&self) -> bool {
        self.side == NullSide::Metric || self.step_factors || self.pull > 0.0
    }
}

impl Costs {
    /// Of the `adapted` ones among `sites`.
    ///
    /// # Errors
    /// Moments that are asked for and missing, of another size, or zero.
    pub fn of(
        null: &NullSpaceSettings,
        sites: &[Site],
        adapted: &[bool],
        knowledge: Option<&Knowledge>,
    ) -> Result<Self> {
        let mut costs = Self {
            moments: HashMap::new(),
            step_factors: vec![1.0; sites.len()],
            pull: None,
            inputs: HashMap::new(),
        };
        if !null.weighs_costs() {
            return Ok(costs);
        }
        let tuned: Vec<usize> = (0..sites.len()).filter(|i| adapted[*i]).collect();
        let found = tuned.iter().map(|i| spectra(knowledge, *i, &sites[*i])).collect::<Result<Vec<_>>>()?;
        if null.step_factors {
            let damping = (null.side == NullSide::Metric).then_some(null.damping);
            let factors = step_factors(&found, damping)?;
            tuned.iter().zip(factors).for_each(|(i, factor)| costs.step_factors[*i] = factor);
        }
        if null.pull > 0.0 {
            costs.pull = Some(pull_rate(&found, null.pull)?);
        }
        let mut kept: HashMap<*const Spectrum, Arc<Spectrum>> = HashMap::new();
        for (i, (c, f)) in tuned.into_iter().zip(found) {
            let c = Arc::clone(kept.entry(std::ptr::from_ref(c)).or_insert_with(|| Arc::new(c.clone())));
            costs.moments.insert(i, (c, Arc::new(f.clone())));
        }
        Ok(costs)
    }

    /// A layer's metric on inputs, which others may share, and on outputs; `None`: none is asked for.
    pub fn metric(
        &mut self,
        be: &dyn Backend,
        site: usize,
        null: &NullSpaceSettings,
    ) -> Result<Option<[Arc<Metric>; 2]>> {
        let Some((c, f)) = self.moments.get(&site).filter(|_| null.side == NullSide::Metric) else {
            return Ok(None);
        };
        let inputs = match self.inputs.get(&Arc::as_ptr(c)) {
            Some(known) => Arc::clone(known),
            None => Arc::new(Metric::new(be, c, null.damping)?),
        };
        self.inputs.insert(Arc::as_ptr(c), Arc::clone(&inputs));
        Ok(Some([inputs, Arc::new(Metric::new(be, f, null.damping)?)]))
    }

    /// The pull of a layer towards the weight that it has now; `None`: none is asked for.
    pub fn pull(&self, be: &dyn Backend, site: usize, layer: &AdaptedLinear) -> Result<Option<Pull>> {
        let (Some(rate), Some((c, f))) = (self.pull, self.moments.get(&site)) else { return Ok(None) };
        let weight = layer.weight.quantised().is_none().then(|| layer.weight.mat());
        Pull::new(be, weight, (Arc::clone(c), Arc::clone(f)), rate).map(Some)
    }
}

/// The second moments of a layer, as they are known.
fn spectra<'a>(knowledge: Option<&'a Knowledge>, index: usize, site: &Site) -> Result<Moments<&'a Spectrum>> {
    let missing = |what: &str| {
        Error::usage(format!(
            "null_space.step_factors, pull and side = \"metric\" need the second moment of {what}"
        ))
        .at(&site.name)
        .remedy("learn the knowledge again with these settings, or leave --basis out")
    };
    let knowledge = knowledge.ok_or_else(|| missing("layer inputs"))?;
    let input = knowledge.input(index).ok_or_else(|| missing("this layer's inputs"))?;
    let output = knowledge.gradient(index).ok_or_else(|| missing("this layer's output gradients"))?;
    for (spectrum, dim) in [(input, site.inputs), (output, site.outputs)] {
        if spectrum.dim != dim {
            return Err(Error::usage(format!("the knowledge has {} dimensions, not {dim}", spectrum.dim))
                .at(&site.name)
                .remedy("learn it again for this model"));
        }
    }
    Ok((input, output))
}

/// What a unit change costs in the mean over the directions of one side: `tr C / n`, or in the metric `tr(S C S) / n`.
fn mean_cost(c: &Spectrum, damping: Option<f64>) -> Result<f64> {
    let Some(damping) = damping else { return Ok(c.mean()) };
    let (known, rest) = eigenvalues(c, damping)?;
    let held: f64 = known.iter().zip(&c.values).map(|(s, value)| s * s * value).sum();
    Ok((held + (c.dim - c.kept()) as f64 * rest * rest * c.rest) / c.dim.max(1) as f64)
}

/// Step factors of the layers, `cost^-1/2` over its geometric mean; `damping`: of steps in the metric.
fn step_factors(layers: &[Moments<&Spectrum>], damping: Option<f64>) -> Result<Vec<f64>> {
    let logs = layers.iter().map(|(c, f)| {
        let cost = mean_cost(c, damping)? * mean_cost(f, damping)?;
        match cost > 0.0 && cost.is_finite() {
            true => Ok(-0.5 * cost.ln()),
            false => Err(Error::numeric(format!("the mean cost of a change of this layer is {cost}"))
                .at(&f.name)
                .remedy(
                    "learn the knowledge from more general text, leave the layer out of gems.targets, or set \
                     null_space.step_factors = false",
                )),
        }
    });
    let logs = logs.collect::<Result<Vec<f64>>>()?;
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    Ok(logs.into_iter().map(|log| (log - mean).exp()).collect())
}

/// `tau T`: such that a typical direction of the median layer keeps `1 / (1 + pull)` of its change at the top of the
/// schedule.
fn pull_rate(layers: &[Moments<&Spectrum>], pull: f64) -> Result<f64> {
    let mut costs: Vec<f64> = layers.iter().map(|(c, f)| c.mean() * f.mean()).collect();
    costs.sort_by(f64::total_cmp);
    let n = costs.len();
    let median = if n == 0 { 0.0 } else { 0.5 * (costs[(n - 1) / 2] + costs[n / 2]) };
    match median > 0.0 && median.is_finite() {
        true => Ok(pull / median),
        false => Err(Error::numeric(format!("the median cost of a change of a layer is {median}"))
            .remedy("learn the knowledge from more general text")),
    }
}
