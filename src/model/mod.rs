//! The transformer: architecture, weights, explicit forward and backward, over [`crate::backend`].

mod batch;
mod tap;

pub use batch::{Batch, Inference, Labels, Packed, Visible};
pub use tap::{LinearGradient, Tap, Want};
