//! Ranking a split's requests by exact conditional likelihood.
//!
//! The candidates of a request form a trie of token sequences behind its prompt ([`Scorer`]); a candidate's
//! score is the sum of full-vocabulary log-probabilities along its path. Of a large trie only what can be among the best
//! is scored ([`Scorer::best`]). Items of equal score count in every metric by
//! their expectation ([`metrics`]); where they must be listed they stand in an order drawn for the request, which
//! knows nothing of the catalogue's order (`prepare` writes that by popularity).

use super::best_first::Wanted;
use super::likelihood::{Request, Scorer};
use super::metrics::{self, Judged, Place};
use super::settings::{Candidates, EvaluateSettings};
use super::trie::Trie;
use crate::data::{Dataset, Encoder, PromptSide, Record, Split, Vocabulary};
use crate::distributed::World;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::random;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Most trie nodes of the requests that are scored together: their likelihoods are held at once (128 MB). Of a million items
/// these are 16 requests, which share a reading of the head.
const NODES: usize = 1 << 24;

/// Requests whose metrics are summed together.
const BLOCK: usize = 8192;

/// One ranked request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Number of the record in its split.
    pub record: usize,
    /// Its task.
    pub task: u32,
    /// The best items with their log-likelihoods, best first, those of equal score in a drawn order.
    pub top: Vec<(u32, f32)>,
    /// Where each of the record's targets stands among all candidates, in the record's order. Behind the best items a place
    /// may be too good, if `is_cut`; no metric looks there.
    pub places: Vec<Place>,
    /// Whether candidates behind the best ones were left unscored.
    pub is_cut: bool,
    /// Number of candidates.
    pub candidates: usize,
    /// Places of the targets among the record's own negatives and them, where all items were ranked and the record
    /// has negatives; else empty.
    pub sampled: Vec<Place>,
}

/// Metrics by name, by task.
pub type Metrics = BTreeMap<String, BTreeMap<String, f64>>;

/// Ranked requests of a split.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rankings {
    /// One a request, in order.
    pub requests: Vec<Ranked>,
}

impl Rankings {
    /// Mean metrics of every task that has requests.
    pub fn metrics(&self, tasks: &[String], settings: &EvaluateSettings) -> Metrics {
        let mut means = Metrics::new();
        for (t, task) in tasks.iter().enumerate() {
            let of_task: Vec<&Ranked> = self.requests.iter().filter(|r| r.task as usize == t).collect();
            if of_task.is_empty() {
                continue;
            }
            let sums = means.entry(task.clone()).or_default();
            sums.extend(mean_metrics(&of_task, settings, "", |r| &r.places));
            let sampled: Vec<&Ranked> = of_task.iter().copied().filter(|r| !r.sampled.is_empty()).collect();
            if !sampled.is_empty() {
                sums.extend(mean_metrics(&sampled, settings, "sampled_", |r| &r.sampled));
            }
            if settings.published_metrics {
                let first = |r: &&Ranked| (r.places.first().copied(), r.places.len());
                let lists: Vec<_> = of_task.iter().map(first).collect();
                sums.extend(metrics::first_target_only(&lists, &settings.k));
            }
        }
        means
    }

    /// One metric (`ndcg@10`) of every request of a task, in order: what significance tests compare.
    /// Empty for a metric that there is not.
    pub fn values(&self, task: u32, metric: &str) -> Vec<f64> {
        let value = |r: &Ranked| metrics::named(&Judged::binary(&r.places, r.places.len()), metric);
        self.requests.iter().filter(|r| r.task == task).filter_map(value).collect()
    }
}

/// Mean metrics of requests whose targets stand at `places`, under their names with a `prefix`.
fn mean_metrics(
    requests: &[&Ranked],
    settings: &EvaluateSettings,
    prefix: &str,
    places: impl Fn(&Ranked) -> &Vec<Place> + Sync,
) -> Vec<(String, f64)> {
    let names = metrics::names(&settings.k, settings.published_metrics);
    // Sums of blocks of fixed size, added in their order: the same on any number of threads.
    let block = |block: &[&Ranked]| {
        let mut sums = vec![0.0; names.len()];
        for ranked in block {
            let places = places(ranked);
            let judged = Judged::binary(places, places.len());
            metrics::add(&judged, &settings.k, settings.published_metrics, &mut sums);
        }
        sums
    };
    let blocks: Vec<Vec<f64>> = requests.par_chunks(BLOCK).map(block).collect();
    let mean = |i: usize| blocks.iter().map(|sums| sums[i]).sum::<f64>() / requests.len() as f64;
    names.iter().enumerate().map(|(i, name)| (format!("{prefix}{name}"), mean(i))).collect()
}

/// The trie of the tokens of `candidates` (item numbers), as targets.
pub fn candidate_trie(candidates: &[u32], vocabulary: &Vocabulary) -> Trie {
    let sequences: Vec<Vec<u32>> = candidates.iter().map(|c| vocabulary.target(*c).collect()).collect();
    Trie::new(&sequences)
}

/// Log-likelihoods of `candidates` (item numbers) after a request's prompt. `prompt` is the decoder's rows, or
/// the encoder's of an encoder-decoder model.
///
/// # Errors
/// Tokens that the model does not have, likelihoods that are not finite, the device.
pub fn score(
    model: &Model,
    vocabulary: &Vocabulary,
    prompt_side: PromptSide,
    prompt: &[u32],
    candidates: &[u32],
) -> Result<Vec<f32>> {
    let trie = candidate_trie(candidates, vocabulary);
    let batch_tokens = EvaluateSettings::default().batch_tokens;
    let scores = Scorer::new(model, prompt_side, batch_tokens).scores(&[Request { prompt, trie: &trie }])?;
    Ok(scores.into_iter().next().unwrap_or_default())
}

/// The first `depth` items in ranking order: by score, and those of equal score in an order drawn for `request`. Linear in
/// the number of candidates.
pub fn leading(candidates: &[u32], scores: &[f32], depth: usize, request: u64) -> Vec<(u32, f32)> {
    let by_rank = |a: &(u32, f32), b: &(u32, f32)| before(a, b, request);
    // What is kept is cut back to `depth` whenever it has grown to this.
    let room = depth.saturating_mul(4).max(256);
    let (mut kept, mut least) = (Vec::new(), f32::NEG_INFINITY);
    for (item, score) in candidates.iter().zip(scores) {
        // Adding 0 makes the two zeros one.
        let score = score + 0.0;
        if score < least || depth == 0 {
            continue;
        }
        kept.push((*item, score));
        if kept.len() == room {
            least = kept.select_nth_unstable_by(depth - 1, by_rank).1.1;
            kept.truncate(depth);
        }
    }
    kept.sort_unstable_by(by_rank);
    kept.truncate(depth);
    kept
}

fn before(a: &(u32, f32), b: &(u32, f32), request: u64) -> Ordering {
    let drawn = |item: u32| (random::mixed(request, item.into()), item);
    b.1.total_cmp(&a.1).then_with(|| drawn(a.0).cmp(&drawn(b.0)))
}

/// The first `depth` items in ranking order ([`leading`]), and where each of `targets` stands (those that are candidates).
pub fn judge(
    candidates: &[u32],
    scores: &[f32],
    targets: &[u32],
    (depth, request): (usize, u64),
) -> (Vec<(u32, f32)>, Vec<Place>) {
    // Of a whole catalogue item i stands at i.
    let own = |target: &u32| Some(*target as usize).filter(|at| candidates.get(*at) == Some(target));
    let at = |target: &u32| own(target).or_else(|| candidates.iter().position(|item| item == target));
    let count = |is: &dyn Fn(f32) -> bool| scores.iter().filter(|score| is(**score)).count();
    let place = |score: f32| Place { ahead: count(&|s| s > score), tied: count(&|s| s == score) };
    let places = targets.iter().filter_map(at).map(|at| place(scores[at])).collect();
    (leading(candidates, scores, depth, request), places)
}

/// Refuses `candidates = "given"` where a record to be ranked has no negatives: metrics among a few candidates and
/// among the whole catalogue are not of one kind.
///
/// # Errors
/// How many records have none, and of which task.
pub fn check_candidates(split: &Split, tasks: &[String], settings: &EvaluateSettings) -> Result<()> {
    if settings.candidates == Candidates::Full {
        return Ok(());
    }
    let numbers = chosen(split, tasks.len(), settings.records);
    let bare: Vec<&Record> =
        numbers.iter().map(|n| &split.records[*n]).filter(|r| r.negatives.is_empty()).collect();
    let Some(first) = bare.first() else { return Ok(()) };
    let (bare, all, task) = (bare.len(), numbers.len(), &tasks[first.task as usize]);
    Err(Error::usage(format!("{bare} of {all} records have no negatives, the first of task `{task}`"))
        .at(format!("evaluate.candidates = \"given\": {}", split.name))
        .remedy("use evaluate.candidates = \"full\", or give every record negatives (`prepare` adds them)"))
}

fn candidates_of(record: &Record, items: usize, rule: Candidates) -> Option<Vec<u32>> {
    if rule == Candidates::Full || record.negatives.is_empty() {
        return None;
    }
    let mut list: Vec<u32> = record.negatives.iter().chain(&record.target).copied().collect();
    list.retain(|item| (*item as usize) < items);
    list.sort_unstable();
    list.dedup();
    Some(list)
}

/// The records of a split that are ranked: those with targets, at most `limit` of each task (0: all).
fn chosen(split: &Split, tasks: usize, limit: usize) -> Vec<usize> {
    let mut seen = vec![0; tasks];
    let wanted = |(_, r): &(usize, &Record)| {
        if r.target.is_empty() {
            return false;
        }
        let count = &mut seen[r.task as usize];
        *count += 1;
        limit == 0 || *count <= limit
    };
    split.records.iter().enumerate().filter(wanted).map(|(i, _)| i).collect()
}

/// A record that waits to be scored: its number, prompt, and own candidates with their trie (none: the
/// whole catalogue).
struct Waiting {
    record: usize,
    prompt: Vec<u32>,
    own: Option<(Vec<u32>, Trie)>,
}

/// Ranks the records of a split. `progress` is told (done, in all).
///
/// # Errors
/// As [`check_candidates`]; a prompt that does not fit; tokens that the model does not have; likelihoods that are not
/// finite; the device.
pub fn rank_split(
    model: &Model,
    encoder: &Encoder,
    data: &Dataset,
    split: &Split,
    settings: &EvaluateSettings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Rankings> {
    rank_split_over(&World::alone(), model, encoder, data, split, settings, progress)
}

/// The same by all ranks of `world`, each of which gets all rankings. Requests are scored in the same groups, whoever
/// scores them.
///
/// # Errors
/// As [`rank_split`]; ranks that do something else, or are silent.
pub fn rank_split_over(
    world: &World,
    model: &Model,
    encoder: &Encoder,
    data: &Dataset,
    split: &Split,
    settings: &EvaluateSettings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Rankings> {
    let vocabulary = encoder.vocabulary();
    let scorer = Scorer::new(model, encoder.prompt_side(), settings.batch_tokens);
    check_candidates(split, &data.tasks, settings)?;
    let numbers = chosen(split, data.tasks.len(), settings.records);
    let all: Vec<u32> = (0..vocabulary.items() as u32).collect();
    let mut catalogue: Option<Trie> = None;
    let mut rankings = Rankings::default();
    let (mut waiting, mut rows, mut nodes, mut groups) = (Vec::new(), 0, 0, Vec::new());
    for (done, number) in numbers.iter().enumerate() {
        let record = &split.records[*number];
        let prompt = encoder.prompt(record)?;
        let own = candidates_of(record, vocabulary.items(), settings.candidates).map(|list| {
            let trie = candidate_trie(&list, vocabulary);
            (list, trie)
        });
        let trie = match &own {
            Some((_, trie)) => trie,
            None => catalogue.get_or_insert_with(|| candidate_trie(&all, vocabulary)),
        };
        // What a search needs is not known before it.
        rows += prompt.len() + trie.inner().len().min(prompt.len());
        nodes += trie.len();
        waiting.push(Waiting { record: *number, prompt, own });
        if rows >= settings.batch_tokens || nodes >= NODES || done + 1 == numbers.len() {
            (rows, nodes) = (0, 0);
            groups.push(std::mem::take(&mut waiting));
        }
        // A group for each rank.
        if groups.len() == world.size() || done + 1 == numbers.len() {
            let found = world.in_turns(groups.len(), |group| {
                rank(&scorer, split, &groups[group], (&all, catalogue.as_ref()), settings)
            })?;
            rankings.requests.extend(found.into_iter().flatten());
            groups.clear();
            progress(done + 1, numbers.len());
        }
    }
    Ok(rankings)
}

/// Scores the waiting records together and ranks each.
fn rank(
    scorer: &Scorer,
    split: &Split,
    waiting: &[Waiting],
    (all, catalogue): (&[u32], Option<&Trie>),
    settings: &EvaluateSettings,
) -> Result<Vec<Ranked>> {
    let empty = Trie::new(&[]);
    let depth = settings.k.iter().copied().max().unwrap_or(10);
    // The sampled ranking is of candidates that stand in the whole one too.
    let sampled = |w: &Waiting| match &w.own {
        Some(_) => None,
        None => candidates_of(&split.records[w.record], all.len(), Candidates::Given),
    };
    let sampled: Vec<Option<Vec<u32>>> = waiting.iter().map(sampled).collect();
    let (mut requests, mut wanted) = (Vec::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
    for (w, sampled) in waiting.iter().zip(&sampled) {
        let trie = w.own.as_ref().map(|(_, trie)| trie).or(catalogue).unwrap_or(&empty);
        let known = match w.own {
            Some(_) => &[],
            None => sampled.as_deref().unwrap_or(&split.records[w.record].target),
        };
        requests.push(Request { prompt: &w.prompt, trie });
        wanted.push(Wanted { depth, known });
    }
    let scores = scorer.best(&requests, &wanted)?;
    let judged = waiting.par_iter().zip(scores).zip(sampled).map(|((waiting, scores), sampled)| {
        let record = &split.records[waiting.record];
        let candidates = waiting.own.as_ref().map_or(all, |(list, _)| list);
        let drawn = waiting.record as u64;
        let (top, places) = judge(candidates, &scores, &record.target, (depth, drawn));
        let sampled = sampled.map_or_else(Vec::new, |list| {
            let scores: Vec<f32> = list.iter().map(|item| scores[*item as usize]).collect();
            judge(&list, &scores, &record.target, (0, drawn)).1
        });
        let is_cut = scores.iter().any(|score| score.is_infinite());
        let (record, task, candidates) = (waiting.record, record.task, candidates.len());
        Ranked { record, task, top, places, is_cut, candidates, sampled }
    });
    Ok(judged.collect())
}
