//! Constrained beam search: the best continuations of a prompt in a trie, without scoring all of them.
//!
//! Step for step what Hugging Face `generate` does with `num_beams` and `prefix_allowed_tokens_fn`: scores are
//! log-probabilities over the full vocabulary, divided by length^penalty when a hypothesis ends. It may miss
//! the best candidate; [`score`](super::score) never does.

use super::likelihood::{Request, Scorer};
use super::trie::ROOT;
use crate::error::Result;
use crate::random;

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSettings {
    /// Hypotheses kept at a time, and results returned.
    pub beams: usize,
    /// A finished hypothesis scores its log-likelihood over length^this.
    pub length_penalty: f64,
    /// Stop as soon as `beams` hypotheses have ended; otherwise, when none that runs is better, as it stands,
    /// than the worst of those that have ended.
    pub early_stopping: bool,
}

/// The best sequences found, as (number of the sequence, score), best first.
///
/// # Errors
/// As [`Scorer::scores`].
pub fn search(scorer: &Scorer, request: &Request, settings: BeamSettings) -> Result<Vec<(u32, f32)>> {
    let trie = request.trie;
    // Nodes stand by ascending token, so by the catalogue's order: that must not decide between equal scores.
    let drawn = |node: u32| (random::mixed(0, node.into()), node);
    let by_score =
        |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then_with(|| drawn(a.0).cmp(&drawn(b.0)));
    let mut running = vec![(ROOT, 0f64)];
    let mut finished: Vec<(u32, f64)> = Vec::new();
    let mut length = 0;
    while !running.is_empty() {
        let nodes: Vec<u32> = running.iter().map(|(node, _)| *node).collect();
        // No two hypotheses meet in one node of a tree.
        let so_far = |child: u32| running.iter().find(|(n, _)| *n == trie.parent(child)).map_or(0.0, |r| r.1);
        let steps = scorer.expand(request, &nodes)?;
        let mut next: Vec<(u32, f64)> =
            steps.iter().map(|(c, lp)| (*c, so_far(*c) + f64::from(*lp))).collect();
        next.sort_by(by_score);
        next.truncate(2 * settings.beams);
        length += 1;
        let penalty = f64::from(length).powf(settings.length_penalty);
        // One that ends below the first `beams` places is lost, as in the library.
        let ended = next.iter().take(settings.beams);
        finished.extend(ended.filter_map(|(n, score)| Some((trie.sequence_at(*n)?, score / penalty))));
        finished.sort_by(by_score);
        finished.truncate(settings.beams);
        running = next.into_iter().filter(|(node, _)| trie.is_inner(*node)).take(settings.beams).collect();
        let full = finished.len() == settings.beams;
        let hopeless = || {
            let best = running.first().map_or(f64::NEG_INFINITY, |r| r.1 / penalty);
            finished.last().is_none_or(|worst| best <= worst.1)
        };
        if full && (settings.early_stopping || hopeless()) {
            break;
        }
    }
    Ok(finished.into_iter().map(|(sequence, score)| (sequence, score as f32)).collect())
}
