//! The best sequences of a trie without scoring all of them, and still exactly.
//!
//! No token adds to a log-likelihood, so no sequence is likelier than its beginning. Nodes are expanded from the
//! likeliest on; as soon as `depth` sequences have ended above every node that is left, what is left is behind them
//! (branch and bound). A model that knows what comes next looks at few nodes, one that knows nothing at nearly all.

use super::likelihood::{Request, Scorer};
use super::trie::{ROOT, Trie};
use crate::error::{Error, Result};

/// A trie with so few nodes to compute is computed whole: the prompt, read anew in every turn, would cost more.
const FEW: usize = 512;
/// A node with so few inner nodes below it is expanded together with them: what comes before them, computed again in
/// another turn, would cost more.
const TAIL: usize = 4;
/// Log-probabilities are rounded: one may be a little above zero, and a sequence so much above its beginning. In nats, and
/// as a share of the sum.
const SLACK: (f64, f64) = (1e-3, 1e-6);

/// What must be known of a request's sequences.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// So many of the best, and all of the same score as the last of them.
    pub depth: usize,
    /// These too, by number, wherever they stand.
    pub known: &'a [u32],
}

/// A request on the way: what is known of its nodes.
struct Search<'a> {
    request: Request<'a>,
    wanted: Wanted<'a>,
    /// Log-likelihood of the path to each node; negative infinity where it was not computed.
    totals: Vec<f64>,
    /// Nodes whose children are not known, with their log-likelihood.
    open: Vec<(f64, u32)>,
    /// Log-likelihoods of the best sequences that have ended, at most `depth` when a turn begins.
    ended: Vec<f64>,
}

impl Scorer<'_> {
    /// Log-likelihoods of every request's sequences, as [`scores`](Self::scores) gives them, where `wanted` asks for them; for
    /// others also negative infinity. Those are less likely than the first `depth`.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn best(&self, requests: &[Request], wanted: &[Wanted]) -> Result<Vec<Vec<f32>>> {
        let mut searches: Vec<Search> =
            requests.iter().zip(wanted).map(|(request, wanted)| Search::new(*request, *wanted)).collect();
        let mut edges: Vec<Vec<f32>> = requests.iter().map(|r| vec![0.0; r.trie.len()]).collect();
        let mut turn = 0;
        loop {
            let nodes: Vec<Vec<u32>> = searches.iter_mut().map(|search| search.next(turn)).collect();
            if nodes.iter().all(Vec::is_empty) {
                break;
            }
            self.edges(requests, &nodes, &mut edges)?;
            for ((search, nodes), edges) in searches.iter_mut().zip(&nodes).zip(&edges) {
                search.learn(nodes, edges)?;
            }
            turn += 1;
        }
        Ok(searches.into_iter().map(Search::scores).collect())
    }
}

impl<'a> Search<'a> {
    fn new(request: Request<'a>, wanted: Wanted<'a>) -> Self {
        let trie = request.trie;
        let mut totals = vec![f64::NEG_INFINITY; trie.len()];
        totals[ROOT as usize] = 0.0;
        let open = trie.is_inner(ROOT).then_some((0.0, ROOT)).into_iter().collect();
        let ended = trie.sequence_at(ROOT).map(|_| 0.0).into_iter().collect();
        Self { request, wanted, totals, open, ended }
    }

    /// The nodes to expand in a turn, ascending; none: everything that is wanted is known. The first turn takes the paths to
    /// known sequences; each later one at most as many nodes as the prompt has rows, twice as many every time.
    fn next(&mut self, turn: u32) -> Vec<u32> {
        let (trie, depth) = (self.request.trie, self.wanted.depth);
        if turn == 0 && trie.inner().len() <= FEW {
            self.open.clear();
            return trie.inner().to_vec();
        }
        if turn == 0 && !self.wanted.known.is_empty() {
            self.open.clear();
            return paths(trie, self.wanted.known);
        }
        let bound = self.bound();
        let bound = bound - SLACK.0 - SLACK.1 * bound.abs();
        self.open.retain(|(total, _)| depth > 0 && *total >= bound);
        let most = self.request.prompt.len().max(depth).saturating_mul(1 << turn.min(30));
        if self.open.len() > most {
            self.open.select_nth_unstable_by(most - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        }
        let rest = self.open.split_off(most.min(self.open.len()));
        let chosen = std::mem::replace(&mut self.open, rest);
        let with_tail = |(_, node): &(f64, u32)| match trie.inner_of(*node) {
            all if all.len() <= TAIL => all,
            all => &all[..1],
        };
        let mut nodes: Vec<u32> = chosen.iter().flat_map(with_tail).copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// What the last of the wanted sequences is worth so far.
    fn bound(&mut self) -> f64 {
        let depth = self.wanted.depth;
        if depth == 0 || self.ended.len() < depth {
            return f64::NEG_INFINITY;
        }
        self.ended.select_nth_unstable_by(depth - 1, |a, b| b.total_cmp(a));
        self.ended.truncate(depth);
        self.ended[depth - 1]
    }

    /// Takes the log-probabilities of the children of `nodes` (ascending).
    fn learn(&mut self, nodes: &[u32], edges: &[f32]) -> Result<()> {
        let trie = self.request.trie;
        for node in nodes {
            let so_far = self.totals[*node as usize];
            for child in trie.children(*node) {
                let total = so_far + f64::from(edges[child as usize]);
                if !(total as f32).is_finite() {
                    return Err(Error::numeric("the model's likelihoods are not finite").remedy(
                        "the weights have diverged: lower train.lr, or go back to an older checkpoint",
                    ));
                }
                self.totals[child as usize] = total;
                if trie.sequence_at(child).is_some() {
                    self.ended.push(total);
                }
                if trie.is_inner(child) && nodes.binary_search(&child).is_err() {
                    self.open.push((total, child));
                }
            }
        }
        Ok(())
    }

    fn scores(self) -> Vec<f32> {
        let trie = self.request.trie;
        (0..trie.sequences()).map(|number| self.totals[trie.end_of(number) as usize] as f32).collect()
    }
}

/// The nodes from which the tokens of `sequences` are predicted, ascending, and the root.
fn paths(trie: &Trie, sequences: &[u32]) -> Vec<u32> {
    let before = |number: &u32| {
        let mut path = trie.path(trie.end_of(*number as usize));
        path.pop();
        path
    };
    // A record's target need not be a candidate.
    let there = |number: &&u32| (**number as usize) < trie.sequences();
    let mut nodes: Vec<u32> = sequences.iter().filter(there).flat_map(before).collect();
    nodes.extend(trie.is_inner(ROOT).then_some(ROOT));
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}
