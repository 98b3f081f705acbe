//! How one layer is tuned: by subspaces, whose bases are renewed, or in another way.

use super::adapter::Adapter;
use super::subspaces::Subspaces;
use std::ops::{Deref, DerefMut};

/// A layer's adapter.
pub(super) enum Tuned {
    Subspaces(Box<Subspaces>),
    Other(Box<dyn Adapter>),
}

impl Tuned {
    /// The subspaces, where there are some.
    pub fn subspaces(&mut self) -> Option<&mut Subspaces> {
        match self {
            Self::Subspaces(subspaces) => Some(subspaces),
            Self::Other(_) => None,
        }
    }
}

impl Deref for Tuned {
    type Target = dyn Adapter;
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Subspaces(subspaces) => &**subspaces,
            Self::Other(adapter) => &**adapter,
        }
    }
}

impl DerefMut for Tuned {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Subspaces(subspaces) => &mut **subspaces,
            Self::Other(adapter) => &mut **adapter,
        }
    }
}
