//! Candidate tries, exact ranking, beam search, metrics by task and slice, significance, and what was forgotten.

mod against;
pub mod beam;
mod best_first;
mod knowledge;
mod layers;
mod likelihood;
pub mod metrics;
mod rank;
mod sample;
mod settings;
pub mod significance;
pub mod slices;
mod states;
pub mod trec;
mod trie;

pub use against::{Paired, compare_runs, compared};
pub use best_first::Wanted;
pub use knowledge::{General, PerText, Reference, drift};
pub use layers::{LayerChange, layer_changes};
pub use likelihood::{Request, Scorer};
pub use rank::{
    Metrics, Ranked, Rankings, candidate_trie, check_candidates, judge, leading, rank_split, rank_split_over,
    score,
};
pub use sample::{SampleSettings, sample_text};
pub use settings::{Candidates, EvaluateSettings};
pub use states::KeptStates;
pub use trie::{ROOT, Trie};
