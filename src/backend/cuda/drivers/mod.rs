//! Those who run the kernels. Two compute, a GPU and the host SIMT machine (with the feature `simt`); one computes
//! nothing. Two stand over any of them: one starts launches as graphs, one fails on purpose.

pub mod cublaslt;
mod dry_run;
mod faulty;
mod gpu;
mod gpu_graph;
mod graphs;
#[cfg(feature = "simt")]
pub mod simt;
pub mod staging;

pub use dry_run::DryRun;
pub use faulty::{Faults, Faulty};
pub use gpu::Gpu;
pub use graphs::{GraphDriver, Replays};
#[cfg(feature = "simt")]
pub use simt::Simt;
