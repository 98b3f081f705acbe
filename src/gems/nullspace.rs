//! The space of general knowledge: dominant directions of what a layer sees (or puts out) on general text.

use super::linalg::symmetric_eigen;
use super::settings::{Criterion, NullSide};
use crate::backend::{Backend, DType, GradBlock, Mat, OrthonormalizeRows, Tensor, WeightGrad, Write};
use crate::error::Result;
use crate::random::{self, Purpose};
use std::collections::BTreeMap;
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
        backend.run(OrthonormalizeRows { matrices: vec![a.mat_mut()] })?;
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
        let blocks = &[GradBlock::whole(0..x.rows, x.cols)];
        let (out, write) = (self.sum.mat_mut(), Write::Add);
        self.backend.run(WeightGrad { dy: x, x, blocks, out, write, gram: None })
    }
    /// The mean `E[x xᵀ]`, row by row.
    pub fn mean(&self) -> Result<Vec<f32>> {
        let mut values = self.backend.download(self.sum.mat())?;
        let n = self.rows.max(1) as f32;
        values.iter_mut().for_each(|v| *v /= n);
        Ok(values)
    }
}

impl KnowledgeBasis {
    /// The space that protects a site.
    pub fn space(&self, site: usize) -> Option<&Space> {
        self.of_site.get(site).copied().flatten().map(|i| &self.spaces[i])
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
