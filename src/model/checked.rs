//! A checkpoint before any device: what it holds fits what it says.

use super::layout::Layout;
use super::names::Names;
use super::quantised::Stored;
use super::{Architecture, Weights};
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
        Self::new(Architecture::read(dir)?, Weights::open(dir)?)
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
        let stored = Stored { weights: &self.weights, name: &|name| self.names.of(name).to_string() };
        let read = |name: &str| self.weights.read(self.names.of(name)).map(drop);
        layout.dense.iter().try_for_each(|d| read(&d.name))?;
        layout.sites.iter().try_for_each(|site| match self.architecture.codes_of(&site.name) {
            Some(codes) => codes.check(site, &stored),
            None => read(&format!("{}.weight", site.name)),
        })?;
        Ok(layout.dense.len() + layout.sites.len())
    }
}
