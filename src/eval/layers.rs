//! How far every layer has moved, on general text and inside the space of general knowledge.

use super::knowledge::drift;
use crate::backend::{Backend, DType, Mat, Tensor};
use crate::error::Result;
use crate::gems::{NullSide, Protection, Space};
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

/// A layer that changed, while text streams through the base.
struct Changed<'a> {
    backend: &'a Arc<dyn Backend>,
    /// W and dW, *f32* `[M x N]`, by site.
    layers: BTreeMap<usize, (Tensor, Tensor)>,
    /// `Σ |W x|²`, `Σ |dW x|²` and the number of x.
    sums: BTreeMap<usize, (f64, f64, usize)>,
}

impl Observer for Changed<'_> {
    fn linear(&mut self, site: usize, x: Mat, _: Mat) -> Result<()> {
        let Some((weight, change)) = self.layers.get(&site) else { return Ok(()) };
        let (output, moved, rows) = self.sums.entry(site).or_default();
        *output += drift(&**self.backend, weight.mat(), x)?;
        *moved += drift(&**self.backend, change.mat(), x)?;
        *rows += x.rows;
        Ok(())
    }
}

/// Compares the layers of a tuned model with those of its base; layers that did not change are left out. `chunks`
/// are token ids of general text, which runs through the base. Holds both models and, of every changed layer, its weight
/// and its change in f32.
///
/// # Errors
/// The device.
pub fn layer_changes(
    base: &Model,
    tuned: &Model,
    chunks: &[Vec<u32>],
    protection: &Protection,
    side: NullSide,
) -> Result<Vec<LayerChange>> {
    let (be, sites) = (&base.backend, &base.layout.sites);
    let mut changed = Changed { backend: be, layers: BTreeMap::new(), sums: BTreeMap::new() };
    for (index, site) in sites.iter().enumerate() {
        let (before, after) = (base.merged(index)?, tuned.merged(index)?);
        if before != after {
            let (rows, cols) = (site.outputs, site.inputs);
            let change: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            let tensor = |values: &[f32]| be.tensor(values, rows, cols, DType::F32);
            changed.layers.insert(index, (tensor(&before)?, tensor(&change)?));
        }
    }
    for group in passes(chunks) {
        base.observe(&general_pass(base, group), &mut changed)?;
    }
    let Changed { layers, sums, .. } = changed;
    let seen = layers.into_iter().filter_map(|(site, layer)| Some((site, layer, *sums.get(&site)?)));
    seen.map(|(site, (weight, change), sums)| {
        let name = sites[site].name.clone();
        let space = protection.space(site).filter(|s| s.kept() > 0).map(|s| (s, side));
        layer(be, name, (weight.mat(), change.mat()), sums, space)
    })
    .collect()
}

fn layer(
    be: &Arc<dyn Backend>,
    name: String,
    (weight, change): (Mat, Mat),
    (output, moved, rows): (f64, f64, usize),
    space: Option<(&Space, NullSide)>,
) -> Result<LayerChange> {
    let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let (of_change, of_weight) = (energy(&be.download(change)?), energy(&be.download(weight)?));
    let inside = |(space, side): (&Space, NullSide)| -> Result<f64> {
        let k = be.tensor(&space.directions, space.kept(), space.dim(), DType::F32)?;
        Ok(energy(&components(be, change, k.mat(), side)?) / of_change)
    };
    Ok(LayerChange {
        name,
        change: (of_change / of_weight.max(f64::MIN_POSITIVE)).sqrt(),
        drift: moved / rows.max(1) as f64,
        relative_drift: moved / output.max(f64::MIN_POSITIVE),
        in_knowledge: space.map(inside).transpose()?,
        by_chance: space.map(|(s, _)| s.kept() as f64 / s.dim() as f64),
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
