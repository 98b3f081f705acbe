//! Candidate tries, exact ranking, metrics, and what was forgotten.

mod knowledge;
pub mod metrics;
mod rank;
mod settings;
pub mod trec;

pub use knowledge::{General, Reference};
pub use rank::{Metrics, Ranked, Rankings, order, rank_split, score};
pub use settings::{Candidates, EvaluateSettings};
