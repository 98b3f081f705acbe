//! The space of general knowledge: dominant directions of what a layer sees (or puts out) on general text.

use super::linalg::symmetric_eigen;
use super::settings::{Criterion, NullSide};
use crate::backend::{Backend, DType, Mat, OuterPart, Tensor};
use crate::error::{Error, Result};
use crate::random::{self, Purpose};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// How many of the descending eigenvalues `values` are protected, leaving at least `room` directions.
///
/// `Energy`: the fewest whose sum reaches `value` of the trace (GPM, Saha et al. 2021). `Ratio`: those above
/// `value` times the largest. `Budget`: all but `value`. `Absolute`: those of at least `value`; when no
/// eigenvalue is below, all but the `max(1, n / 20)` smallest (the published rule).
pub fn protected(values: &[f64], criterion: Criterion, value: f64, room: usize) -> usize {
    let n = values.len();
    let count = match criterion {
        Criterion::Energy => {
            let total: f64 = values.iter().map(|v| v.max(0.0)).sum();
            let mut sum = 0.0;
            let mut k = 0;
            while k < n && sum < value * total {
                sum += values[k].max(0.0);
                k += 1;
            }
            k
        }
        Criterion::Ratio => values.iter().filter(|v| **v > value * values[0]).count(),
        Criterion::Budget => n.saturating_sub(value.max(0.0) as usize),
        Criterion::Absolute => match values.iter().filter(|v| **v < value).count() {
            0 => n - (n / 20).max(1).min(n),
            below => n - below,
        },
    };
    count.min(n.saturating_sub(room))
}

/// The protected directions of one input (or output) that one or more layers share.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// Its name: that of the first layer that has it, or `final` for the final hidden state.
    pub name: String,
    /// n.
    pub dim: usize,
    /// Protected directions, `[k x n]` orthonormal rows.
    pub directions: Vec<f32>,
    /// All eigenvalues, descending.
    pub spectrum: Vec<f64>,
    /// Share of the trace that the protected directions hold.
    pub energy: f64,
}

impl Space {
    /// The dominant directions of a second moment.
    pub fn new(name: &str, moment: &[f32], dim: usize, rule: (Criterion, f64), room: usize) -> Result<Self> {
        let (spectrum, vectors) = symmetric_eigen(moment, dim).map_err(|e| e.at(name))?;
        let k = protected(&spectrum, rule.0, rule.1, room);
        let total: f64 = spectrum.iter().map(|v| v.max(0.0)).sum();
        let held: f64 = spectrum[..k].iter().map(|v| v.max(0.0)).sum();
        Ok(Self {
            name: name.to_string(),
            dim,
            directions: vectors[..k * dim].to_vec(),
            spectrum,
            energy: if total > 0.0 { held / total } else { 0.0 },
        })
    }
    /// Number of protected directions.
    pub fn kept(&self) -> usize {
        self.directions.len() / self.dim.max(1)
    }
    /// As many random orthonormal directions instead: the control.
    pub fn randomise(&mut self, backend: &dyn Backend, seed: u64, index: u64) -> Result<()> {
        let k = self.kept();
        let mut a = backend.tensor(
            &random::normal(seed, Purpose::Init, 50, index, k * self.dim),
            k,
            self.dim,
            DType::F32,
        )?;
        backend.orthonormalize_rows(&mut [a.mat_mut()])?;
        self.directions = backend.download(a.mat())?;
        Ok(())
    }
}

/// All protected spaces of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct KnowledgeBasis {
    /// The model they were taken from.
    pub fingerprint: String,
    /// Inputs or outputs.
    pub side: NullSide,
    /// The rule that chose the number of directions, for people.
    pub rule: String,
    /// Space number of every site; `None`: the site is not protected.
    pub of_site: Vec<Option<usize>>,
    /// The spaces.
    pub spaces: Vec<Space>,
    /// The final hidden state's space, against which item rows are protected.
    pub final_hidden: Option<Space>,
    /// Tokens the second moments were taken over.
    pub tokens: usize,
}

/// Sums `Σ x xᵀ` over streamed activations.
pub struct SecondMoment {
    backend: Arc<dyn Backend>,
    sum: Tensor,
    rows: usize,
}

impl SecondMoment {
    /// An empty sum over vectors of `dim` numbers.
    pub fn new(backend: &Arc<dyn Backend>, dim: usize) -> Result<Self> {
        Ok(Self { backend: Arc::clone(backend), sum: backend.zeros(dim, dim, DType::F32)?, rows: 0 })
    }
    /// Adds rows of activations.
    pub fn add(&mut self, x: Mat) -> Result<()> {
        self.rows += x.rows;
        self.backend.outer(x, x, &[OuterPart::whole(x.rows, x.cols)], self.sum.mat_mut())
    }
    /// The mean `E[x xᵀ]`, row by row.
    pub fn mean(&self) -> Result<Vec<f32>> {
        let mut values = self.backend.download(self.sum.mat())?;
        let n = self.rows.max(1) as f32;
        values.iter_mut().for_each(|v| *v /= n);
        Ok(values)
    }
}

const FORMAT: &str = "gems-engine knowledge basis 1";

impl KnowledgeBasis {
    /// The space that protects a site.
    pub fn space(&self, site: usize) -> Option<&Space> {
        self.of_site.get(site).copied().flatten().map(|i| &self.spaces[i])
    }

    /// Writes the basis as safetensors with its facts in the metadata.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bad = |e: safetensors::SafeTensorError| Error::model(e.to_string()).at(path.display());
        let mut buffers: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        let spaces = self.spaces.iter().enumerate().map(|(i, s)| (format!("space.{i}"), s));
        for (key, space) in spaces.chain(self.final_hidden.iter().map(|s| ("final".to_string(), s))) {
            buffers.push((
                format!("{key}.directions"),
                vec![space.kept(), space.dim],
                space.directions.clone(),
            ));
            let spectrum = space.spectrum.iter().map(|v| *v as f32).collect();
            buffers.push((format!("{key}.spectrum"), vec![space.dim], spectrum));
        }
        let facts = serde_json::json!({
            "format": FORMAT, "fingerprint": self.fingerprint, "side": self.side, "rule": self.rule,
            "tokens": self.tokens, "of_site": self.of_site,
            "spaces": self.spaces.iter().map(|s| serde_json::json!({"name": s.name, "energy": s.energy})).collect::<Vec<_>>(),
            "final_energy": self.final_hidden.as_ref().map(|s| s.energy),
        });
        let metadata = HashMap::from([("gems".to_string(), facts.to_string())]);
        let views = buffers
            .iter()
            .map(|(name, shape, values)| {
                TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))
                    .map(|v| (name.as_str(), v))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(bad)?;
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(bad)?;
        crate::files::write_atomically(path, &bytes)
    }

    /// Reads a basis and checks that it was made for the model with this fingerprint.
    pub fn load(path: &Path, fingerprint: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read the knowledge basis", path, e))?;
        let bad = |what: String| {
            Error::model(what).at(path.display()).remedy("make the basis again with `gems-engine basis`")
        };
        let (_, head) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let text = head
            .metadata()
            .as_ref()
            .and_then(|m| m.get("gems"))
            .ok_or_else(|| bad("not a knowledge basis".into()))?;
        let facts: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if facts["format"] != FORMAT {
            return Err(bad(format!("its format is {}", facts["format"])));
        }
        if facts["fingerprint"] != fingerprint {
            return Err(Error::usage("this basis was made for another model")
                .at(path.display())
                .remedy("make one for this model with `gems-engine basis`"));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let tensor = |name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
            let view = file.tensor(name).map_err(|e| bad(format!("{name}: {e}")))?;
            if view.dtype() != Dtype::F32 {
                return Err(bad(format!("{name} is {:?}", view.dtype())));
            }
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok((view.shape().to_vec(), values))
        };
        let space = |key: &str, name: String, energy: f64| -> Result<Space> {
            let (shape, directions) = tensor(&format!("{key}.directions"))?;
            let (_, spectrum) = tensor(&format!("{key}.spectrum"))?;
            match shape[..] {
                [k, dim] if k <= dim && spectrum.len() == dim => {
                    let spectrum = spectrum.iter().map(|v| *v as f64).collect();
                    Ok(Space { name, dim, directions, spectrum, energy })
                }
                _ => Err(bad(format!("{key} has shape {shape:?}"))),
            }
        };
        let listed = facts["spaces"].as_array().cloned().unwrap_or_default();
        let spaces = listed
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let name = s["name"].as_str().unwrap_or_default().to_string();
                space(&format!("space.{i}"), name, s["energy"].as_f64().unwrap_or(0.0))
            })
            .collect::<Result<Vec<_>>>()?;
        let of_site: Vec<Option<usize>> =
            serde_json::from_value(facts["of_site"].clone()).map_err(|e| bad(format!("of_site: {e}")))?;
        if of_site.iter().flatten().any(|i| *i >= spaces.len()) {
            return Err(bad("a layer names a space that is not there".into()));
        }
        let final_hidden = match facts["final_energy"].as_f64() {
            Some(energy) => Some(space("final", "final".into(), energy)?),
            None => None,
        };
        Ok(Self {
            fingerprint: fingerprint.to_string(),
            side: serde_json::from_value(facts["side"].clone()).map_err(|e| bad(format!("side: {e}")))?,
            rule: facts["rule"].as_str().unwrap_or_default().to_string(),
            of_site,
            spaces,
            final_hidden,
            tokens: facts["tokens"].as_u64().unwrap_or(0) as usize,
        })
    }

    /// The layers of every space, by name: for tables.
    pub fn sites_by_space(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut map: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (site, space) in self.of_site.iter().enumerate() {
            if let Some(space) = space {
                map.entry(*space).or_default().push(site);
            }
        }
        map
    }
}
