//! Ranking by exact conditional likelihood: one pass for single-token items, a trie for the others.
//!
//! The candidates of a request form a trie of token sequences behind its prompt. Every prompt is computed once
//! and every trie node once: a node sees the prompt and its ancestors. A candidate's score is the sum of full-
//! vocabulary log-probabilities along its path. Equal scores are ordered by item number.

use super::metrics::{self, Judged};
use super::settings::{Candidates, EvaluateSettings};
use crate::data::{Architecture, Dataset, Encoder, Record, Split, Vocabulary};
use crate::error::Result;
use crate::model::{Inference, Model, Packed, Visible};
use std::collections::{BTreeMap, HashMap};

/// One ranked request.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// Number of the record in its split.
    pub record: usize,
    /// Its task.
    pub task: u32,
    /// The best items with their log-likelihoods, best first.
    pub top: Vec<(u32, f32)>,
    /// Positions (from 0) of the targets among all candidates.
    pub positions: Vec<usize>,
    /// Number of candidates.
    pub candidates: usize,
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
            for ranked in &of_task {
                let judged = Judged::binary(ranked.positions.clone(), ranked.positions.len());
                for (name, value) in metrics::all(&judged, &settings.k, settings.published_metrics) {
                    *sums.entry(name).or_insert(0.0) += value / of_task.len() as f64;
                }
            }
        }
        means
    }
}

/// A token trie; node 0 is the prompt's last row.
struct Trie {
    /// Token, parent and depth (1 for the first token) of every inner node that must be computed.
    nodes: Vec<(u32, usize, u32)>,
    /// Every candidate's path: (node that predicts, token).
    paths: Vec<Vec<(usize, u32)>>,
}

impl Trie {
    fn new(candidates: &[u32], vocabulary: &Vocabulary) -> Self {
        let mut nodes = vec![(0, 0, 0)];
        let mut children: HashMap<(usize, u32), usize> = HashMap::new();
        let mut paths = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let tokens: Vec<u32> = vocabulary.target(*candidate).collect();
            let mut at = 0;
            let mut path = Vec::with_capacity(tokens.len());
            for (i, token) in tokens.iter().enumerate() {
                path.push((at, *token));
                if i + 1 < tokens.len() {
                    let depth = i as u32 + 1;
                    at = *children.entry((at, *token)).or_insert_with(|| {
                        nodes.push((*token, at, depth));
                        nodes.len() - 1
                    });
                }
            }
            paths.push(path);
        }
        Self { nodes, paths }
    }
}

/// Log-likelihoods of `candidates` (item numbers) after a request's prompt. `prompt` is the decoder's rows, or the
/// encoder's of an encoder-decoder model.
pub fn score(
    model: &Model,
    vocabulary: &Vocabulary,
    architecture: Architecture,
    prompt: &[u32],
    candidates: &[u32],
) -> Result<Vec<f32>> {
    let trie = Trie::new(candidates, vocabulary);
    let (encoder, stem) = match architecture {
        Architecture::DecoderOnly => (None, prompt.to_vec()),
        Architecture::EncoderDecoder { decoder_start } => {
            (Some(Packed::new(&[vec![prompt.to_vec()]])), vec![decoder_start])
        }
    };
    let last = stem.len() - 1;
    let mut decoder = Packed::new(&[vec![stem]]);
    let mut visible = Visible { offsets: vec![0], keys: Vec::new() };
    for row in 0..=last as u32 {
        visible.keys.extend(0..=row);
        visible.offsets.push(visible.keys.len() as u32);
    }
    for (i, (token, parent, depth)) in trie.nodes.iter().enumerate().skip(1) {
        decoder.tokens.push(*token);
        decoder.positions.push(last as u32 + depth);
        visible.keys.extend(0..=last as u32);
        let mut path = vec![(last + i) as u32];
        let mut at = *parent;
        while at > 0 {
            path.push((last + at) as u32);
            at = trie.nodes[at].1;
        }
        visible.keys.extend(path.iter().rev());
        visible.offsets.push(visible.keys.len() as u32);
    }
    let rows = decoder.tokens.len();
    decoder.offsets = vec![0, rows as u32];
    decoder.segments = std::iter::once(0..rows).collect();
    let wanted: Vec<u32> = (last as u32..rows as u32).collect();
    let visible = (trie.nodes.len() > 1).then_some(visible);
    let hidden = model.hidden(&Inference { encoder, decoder, visible, rows: wanted })?;
    let logits = model.logits(&hidden)?;
    let (rows, width) = logits.shape();
    let values = model.backend.download(logits.mat())?;
    let totals: Vec<f32> = (0..rows).map(|r| log_sum(&values[r * width..(r + 1) * width])).collect();
    let sum = |path: &Vec<(usize, u32)>| {
        path.iter().map(|(node, token)| values[node * width + *token as usize] - totals[*node]).sum()
    };
    Ok(trie.paths.iter().map(sum).collect())
}

fn log_sum(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    most + (logits.iter().map(|l| ((l - most) as f64).exp()).sum::<f64>().ln()) as f32
}

/// Prompts of several requests whose items are single tokens, in one pass: log-probabilities of every item.
fn score_atomic(
    model: &Model,
    vocabulary: &Vocabulary,
    architecture: Architecture,
    prompts: &[Vec<u32>],
) -> Result<Vec<Vec<f32>>> {
    let (encoder, decoder) = match architecture {
        Architecture::DecoderOnly => (None, Packed::new(&[prompts.to_vec()])),
        Architecture::EncoderDecoder { decoder_start } => {
            (Some(Packed::new(&[prompts.to_vec()])), Packed::new(&[vec![vec![decoder_start]; prompts.len()]]))
        }
    };
    let rows = decoder.offsets[1..].iter().map(|end| end - 1).collect();
    let hidden = model.hidden(&Inference { encoder, decoder, visible: None, rows })?;
    let logits = model.logits(&hidden)?;
    let width = logits.cols();
    let values = model.backend.download(logits.mat())?;
    let tokens: Vec<usize> = (0..vocabulary.items() as u32).map(|i| vocabulary.item(i)[0] as usize).collect();
    let of_row = |row: &[f32]| {
        let total = log_sum(row);
        tokens.iter().map(|t| row[*t] - total).collect()
    };
    Ok(values.chunks(width).map(of_row).collect())
}

/// Items in ranking order: by score, then by number.
pub fn order(candidates: &[u32], scores: &[f32]) -> Vec<(u32, f32)> {
    let mut list: Vec<(u32, f32)> = candidates.iter().copied().zip(scores.iter().copied()).collect();
    list.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    list
}

fn candidates_of(record: &Record, items: usize, rule: Candidates) -> Vec<u32> {
    if rule == Candidates::Full || record.negatives.is_empty() {
        return (0..items as u32).collect();
    }
    let mut list: Vec<u32> = record.negatives.iter().chain(&record.target).copied().collect();
    list.sort_unstable();
    list.dedup();
    list
}

/// The records of a split that are ranked: those with targets, at most `limit` of each task (0: all).
fn chosen(split: &Split, tasks: usize, limit: usize) -> Vec<usize> {
    let mut seen = vec![0; tasks];
    let wanted = |(_, r): &(usize, &Record)| {
        let count = &mut seen[r.task as usize];
        *count += 1;
        !r.target.is_empty() && (limit == 0 || *count <= limit)
    };
    split.records.iter().enumerate().filter(wanted).map(|(i, _)| i).collect()
}

/// Ranks the records of a split. `progress` is told (done, in all).
///
/// # Errors
/// A prompt that does not fit; the device.
pub fn rank_split(
    model: &Model,
    encoder: &Encoder,
    data: &Dataset,
    split: &Split,
    settings: &EvaluateSettings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Rankings> {
    let (vocabulary, architecture) = (encoder.vocabulary(), encoder.architecture());
    let numbers = chosen(split, data.tasks.len(), settings.records);
    let prompts: Vec<Vec<u32>> =
        numbers.iter().map(|i| encoder.prompt(&split.records[*i])).collect::<Result<_>>()?;
    let depth = settings.k.iter().copied().max().unwrap_or(10);
    let mut rankings = Rankings::default();
    let mut judge = |at: usize, candidates: &[u32], scores: &[f32]| {
        let record = &split.records[numbers[at]];
        let list = order(candidates, scores);
        let positions = list.iter().enumerate().filter(|(_, c)| record.target.contains(&c.0)).map(|(p, _)| p);
        rankings.requests.push(Ranked {
            record: numbers[at],
            task: record.task,
            positions: positions.collect(),
            top: list.iter().take(depth).copied().collect(),
            candidates: candidates.len(),
        });
    };
    let atomic = vocabulary.longest_target() == 1;
    let mut at = 0;
    while at < numbers.len() {
        let mut end = at + 1;
        if atomic {
            let mut rows = prompts[at].len();
            while end < numbers.len() && rows + prompts[end].len() <= settings.batch_tokens {
                rows += prompts[end].len();
                end += 1;
            }
            let all = score_atomic(model, vocabulary, architecture, &prompts[at..end])?;
            for (i, scores) in (at..end).zip(all) {
                let candidates =
                    candidates_of(&split.records[numbers[i]], vocabulary.items(), settings.candidates);
                let own: Vec<f32> = candidates.iter().map(|c| scores[*c as usize]).collect();
                judge(i, &candidates, &own);
            }
        } else {
            let candidates =
                candidates_of(&split.records[numbers[at]], vocabulary.items(), settings.candidates);
            let scores = score(model, vocabulary, architecture, &prompts[at], &candidates)?;
            judge(at, &candidates, &scores);
        }
        at = end;
        progress(at, numbers.len());
    }
    Ok(rankings)
}
