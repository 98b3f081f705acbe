//! How far every layer has moved, on general text and inside the space of general knowledge.

use super::knowledge::drift;
use crate::backend::{Backend, DType, Mat};
use crate::error::Result;
use crate::gems::{KnowledgeBasis, NullSide, SecondMoment};
use crate::model::{Model, Observer, general_pass, passes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The change `dW` of one layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LayerChange {
    /// The layer.
    pub name: String,
    /// ||dW|| over ||W||, Frobenius.
    pub change: f64,
    /// tr(dW C dWᵀ): mean squared movement of the layer's output on the text, whose inputs have the second moment C.
    pub drift: f64,
    /// `drift` over tr(W C Wᵀ), the output's own mean square.
    pub relative_drift: f64,
    /// Share of ||dW||² inside the knowledge space; `None`: the layer has none.
    pub in_knowledge: Option<f64>,
    /// The share that a random change would have: protected directions over all.
    pub by_chance: Option<f64>,
}

/// Second moments of the inputs of the layers that changed; layers that see the same input share one.
struct Inputs {
    group_of: Vec<Option<usize>>,
    first_of: BTreeMap<usize, usize>,
    sums: BTreeMap<usize, SecondMoment>,
}

impl Observer for Inputs {
    fn linear(&mut self, site: usize, x: Mat, _: Mat) -> Result<()> {
        match self.group_of[site] {
            Some(group) if self.first_of.get(&group) == Some(&site) => match self.sums.get_mut(&group) {
                Some(sum) => sum.add(x),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Compares the layers of a tuned model with those of its base; layers that did not change are left out. `chunks`
/// are token ids of general text, which runs through the base. Holds both models and, of every changed input, a
/// second moment `[N x N]`.
///
/// # Errors
/// The device.
pub fn layer_changes(
    base: &Model,
    tuned: &Model,
    chunks: &[Vec<u32>],
    knowledge: Option<&KnowledgeBasis>,
) -> Result<Vec<LayerChange>> {
    let sites = &base.layout.sites;
    let changed =
        (0..sites.len()).map(|s| Ok(base.merged(s)? != tuned.merged(s)?)).collect::<Result<Vec<_>>>()?;
    let group_of: Vec<Option<usize>> =
        sites.iter().zip(&changed).map(|(site, changed)| changed.then_some(site.input_group)).collect();
    let (mut first_of, mut sums) = (BTreeMap::new(), BTreeMap::new());
    for (site, group) in group_of.iter().enumerate() {
        if let Some(group) = group.filter(|g| !first_of.contains_key(g)) {
            first_of.insert(group, site);
            sums.insert(group, SecondMoment::new(&base.backend, sites[site].inputs)?);
        }
    }
    let mut inputs = Inputs { group_of, first_of, sums };
    for group in passes(chunks) {
        base.observe(&general_pass(base, group), &mut inputs)?;
    }
    let mut changes = Vec::new();
    for site in (0..sites.len()).filter(|s| changed[*s]) {
        let moment = match &inputs.sums.get(&sites[site].input_group) {
            Some(sum) => sum.mean()?,
            None => continue,
        };
        changes.push(layer(base, tuned, site, &moment, knowledge)?);
    }
    Ok(changes)
}

fn layer(
    base: &Model,
    tuned: &Model,
    site: usize,
    moment: &[f32],
    knowledge: Option<&KnowledgeBasis>,
) -> Result<LayerChange> {
    let be = &base.backend;
    let (rows, cols) = (base.layout.sites[site].outputs, base.layout.sites[site].inputs);
    let before = base.merged(site)?;
    let change: Vec<f32> = tuned.merged(site)?.iter().zip(&before).map(|(a, b)| a - b).collect();
    let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let (of_change, of_weight) = (energy(&change), energy(&before));
    let moment = be.tensor(moment, cols, cols, DType::F32)?;
    let before = be.tensor(&before, rows, cols, DType::F32)?;
    let moved = be.tensor(&change, rows, cols, DType::F32)?;
    let drifted = drift(&**be, moved.mat(), moment.mat())?;
    let output = drift(&**be, before.mat(), moment.mat())?;
    let space = knowledge.and_then(|k| Some((k.side, k.space(site)?))).filter(|(_, s)| s.kept() > 0);
    let inside = match space {
        Some((side, space)) => {
            let k = be.tensor(&space.directions, space.kept(), space.dim, DType::F32)?;
            Some(energy(&components(be, moved.mat(), k.mat(), side)?) / of_change)
        }
        None => None,
    };
    Ok(LayerChange {
        name: base.layout.sites[site].name.clone(),
        change: (of_change / of_weight.max(f64::MIN_POSITIVE)).sqrt(),
        drift: drifted,
        relative_drift: drifted / output.max(f64::MIN_POSITIVE),
        in_knowledge: inside,
        by_chance: space.map(|(_, s)| s.kept() as f64 / s.dim as f64),
    })
}

/// Components of a change `[M x N]` along the protected directions `[k x N]` of its inputs or `[k x M]` of its outputs.
fn components(be: &Arc<dyn Backend>, change: Mat, directions: Mat, side: NullSide) -> Result<Vec<f32>> {
    let (rows, cols) = match side {
        NullSide::Output => (directions.rows, change.cols),
        _ => (change.rows, directions.rows),
    };
    let mut along = be.alloc(rows, cols, DType::F32)?;
    match side {
        NullSide::Output => be.product(along.mat_mut(), 0.0, 1.0, directions.n(), change.n())?,
        _ => be.product(along.mat_mut(), 0.0, 1.0, change.n(), directions.t())?,
    }
    be.download(along.mat())
}
