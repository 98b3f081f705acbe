//! Items to rank a request's targets among: drawn once, stored in the data, the same on every machine.

use super::bm25::Bm25;
use super::requests::Request;
use super::settings::{NegativeKind, Settings};
use crate::random::{Purpose, stream};
use rand::RngExt;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Draws negatives.
pub(super) struct Sampler {
    seed: u64,
    items: Vec<u32>,
    /// Training targets of `items` up to and with each.
    cumulative: Vec<u64>,
    texts: Option<Texts>,
}

impl Sampler {
    /// A sampler over `items`. `popularity` holds training targets of every item by number; `texts` are of every
    /// item by number. Both are needed for their kind of negatives only.
    pub fn new(settings: &Settings, items: Vec<u32>, popularity: &[u64], texts: &[Option<Box<str>>]) -> Self {
        let count = |total: &mut u64, item: &u32| {
            *total += popularity.get(*item as usize).copied().unwrap_or(0);
            Some(*total)
        };
        let cumulative = items.iter().scan(0, count).collect();
        let wanted = settings.negatives.wants(NegativeKind::Bm25);
        let texts = wanted.then(|| Texts::new(&items, texts));
        Self { seed: settings.seed, items, cumulative, texts }
    }

    /// Negatives of a request of a user who took `taken` at any time: none of them is among these or the
    /// request's targets. Fewer than asked for where there are not enough.
    pub fn draw(
        &self,
        wanted: &[(NegativeKind, usize)],
        request: &Request,
        taken: &[u32],
        (user, number): (u32, u64),
    ) -> Vec<u32> {
        let mut out = HashSet::with_capacity(taken.len());
        out.extend(taken.iter().chain(&request.targets).copied());
        let mut random = stream(self.seed, Purpose::Data, u64::from(user), number | 1 << 63);
        let (mut list, mut most) = (Vec::new(), 0);
        for (kind, n) in wanted {
            // What one kind lacks the next makes up for.
            most += n;
            match kind {
                NegativeKind::Impressions => fill(&mut list, &mut out, most, request.shown.iter().copied()),
                NegativeKind::Bm25 => {
                    let found = self.texts.as_ref().map(|t| t.best(request.query)).unwrap_or_default();
                    fill(&mut list, &mut out, most, found.iter().copied());
                }
                NegativeKind::Uniform => self.random(&mut list, &mut out, most, |s| {
                    Some(s.items[random.random_range(0..s.items.len())])
                }),
                NegativeKind::Popularity => self.random(&mut list, &mut out, most, |s| {
                    let total = s.cumulative.last().copied().filter(|t| *t > 0)?;
                    let drawn = random.random_range(0..total);
                    Some(s.items[s.cumulative.partition_point(|c| *c <= drawn)])
                }),
            }
        }
        list
    }

    /// Draws until there are `most`; where draws keep missing, the first items that are left fill up.
    fn random(
        &self,
        list: &mut Vec<u32>,
        out: &mut HashSet<u32>,
        most: usize,
        mut draw: impl FnMut(&Self) -> Option<u32>,
    ) {
        let mut misses = 0;
        while list.len() < most && misses < 20 * most + 200 {
            match draw(self) {
                Some(item) if out.insert(item) => list.push(item),
                Some(_) => misses += 1,
                None => return,
            }
        }
        fill(list, out, most, self.items.iter().copied());
    }
}

fn fill(list: &mut Vec<u32>, out: &mut HashSet<u32>, most: usize, items: impl Iterator<Item = u32>) {
    for item in items {
        if list.len() >= most {
            return;
        }
        if out.insert(item) {
            list.push(item);
        }
    }
}

/// Best answers kept of every query: what is left of them when a user's own items are taken out is enough.
const DEPTH: usize = 1000;
/// Queries whose answers are kept.
const REMEMBERED: usize = 1 << 15;

/// Items' texts under BM25.
struct Texts {
    scorer: Bm25,
    answers: Mutex<HashMap<Box<str>, Arc<Vec<u32>>>>,
}

impl Texts {
    fn new(items: &[u32], texts: &[Option<Box<str>>]) -> Self {
        let of = |item: &u32| Some((*item, texts.get(*item as usize)?.as_deref()?));
        Self { scorer: Bm25::new(items.iter().filter_map(of)), answers: Mutex::default() }
    }

    fn best(&self, query: &str) -> Arc<Vec<u32>> {
        let answers = || self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = answers().get(query) {
            return Arc::clone(known);
        }
        // Scores that differ by less than their rounding would order items differently on another machine.
        let rough = |score: f64| (score * 1024.0).round() as i64;
        let scores = self.scorer.scores(query);
        let mut found: Vec<(i64, u32)> =
            scores.into_iter().map(|(item, score)| (-rough(score), item)).collect();
        found.sort_unstable();
        found.truncate(DEPTH);
        let found = Arc::new(found.into_iter().map(|(_, item)| item).collect::<Vec<_>>());
        let mut answers = answers();
        if answers.len() >= REMEMBERED {
            answers.clear();
        }
        answers.insert(query.into(), Arc::clone(&found));
        found
    }
}
