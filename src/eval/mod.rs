//! Candidate tries, exact ranking, beam search, metrics by task and slice, significance, and what was forgotten.

pub mod beam;
mod knowledge;
mod likelihood;
pub mod metrics;
mod rank;
mod settings;
pub mod significance;
pub mod slices;
pub mod trec;
mod trie;

pub use knowledge::{General, Reference, drift};
pub use likelihood::{Request, Scorer};
pub use rank::{Metrics, Ranked, Rankings, candidate_trie, judge, order, rank_split, score};
pub use settings::{Candidates, EvaluateSettings};
pub use trie::{ROOT, Trie};
