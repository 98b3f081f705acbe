//! The transformer: architecture, weights, explicit forward and backward, over [`crate::backend`].

mod batch;

pub use batch::{Batch, Labels, Packed};
