//! The method: subspaces, null space, gates, refresh, optimizer, merge. No device code.
