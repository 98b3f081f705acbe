//! The run's configuration: one typed structure, from file and flags.

mod layers;

pub use layers::{Layer, known_keys, merge};
