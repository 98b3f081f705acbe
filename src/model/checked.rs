//! A checkpoint before any device: what it holds fits what it says.

use super::layout::Layout;
use super::names::Names;
use super::{Architecture, Weights, diagnosis};
use crate::error::Result;
use std::path::Path;

/// A checkpoint whose weights fit its configuration.
pub struct Checked {
    /// What config.json says, and whether the head is tied, as stored.
    pub architecture: Architecture,
    pub(super) weights: Weights,
    pub(super) names: Names,
}

impl Checked {
    /// Opens a Hugging Face directory. No value is looked at yet.
    ///
    /// # Errors
    /// What is no checkpoint, or one that cannot be used, named for what it is.
    pub fn open(dir: &Path) -> Result<Self> {
        let architecture = Architecture::read(dir)?;
        diagnosis::not_quantised(&architecture.raw, dir)?;
        Self::new(architecture, Weights::open(dir)?)
    }

    pub(super) fn new(mut architecture: Architecture, weights: Weights) -> Result<Self> {
        let names = Names::find(&mut architecture, &weights)?;
        Ok(Self { architecture, weights, names })
    }

    /// Reads every tensor that a model is built of, one at a time, and gives their number.
    ///
    /// # Errors
    /// The tensors that loading would refuse: NaN and infinities by place.
    pub fn read_all(&self) -> Result<usize> {
        let layout = Layout::new(&self.architecture);
        let names = layout.dense.iter().map(|d| d.name.clone());
        let names = names.chain(layout.sites.iter().map(|s| format!("{}.weight", s.name)));
        names.map(|name| self.weights.read(self.names.of(&name)).map(|_| 1)).sum()
    }
}
