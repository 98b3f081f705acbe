//! Metrics by kind of request, and how much of the catalogue is ever shown.
//!
//! | slice | requests |
//! |---|---|
//! | `item:cold` | with a target that no training record has as a target |
//! | `item:tail`, `item:head` | with a target that training has; the most frequent items that make up half of all training targets are the head |
//! | `history:0`, `1-4`, `5-19`, `20+` | by items in the history |
//!
//! In an item slice only the targets of that kind count as relevant; the others stay in the list.

use super::metrics::{self, Judged, Place};
use super::rank::{Metrics, Ranked, Rankings};
use super::settings::EvaluateSettings;
use crate::data::{Record, Split};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often an item is a training target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Popularity {
    /// Never.
    Cold,
    /// Seldom.
    Tail,
    /// One of the most frequent items that make up half of all training targets.
    Head,
}

/// The popularity of every item, by number.
pub fn popularity(items: usize, train: &Split) -> Vec<Popularity> {
    let mut counts = vec![0u64; items];
    for item in train.records.iter().flat_map(|r| r.target.iter()) {
        if let Some(count) = counts.get_mut(*item as usize) {
            *count += 1;
        }
    }
    let total: u64 = counts.iter().sum();
    let mut order: Vec<usize> = (0..items).filter(|i| counts[*i] > 0).collect();
    order.sort_by(|a, b| counts[*b].cmp(&counts[*a]).then(a.cmp(b)));
    let mut kinds: Vec<Popularity> =
        counts.iter().map(|c| if *c == 0 { Popularity::Cold } else { Popularity::Tail }).collect();
    let mut covered = 0;
    for item in order {
        if 2 * covered >= total {
            break;
        }
        covered += counts[item];
        kinds[item] = Popularity::Head;
    }
    kinds
}

/// Mean metrics of one slice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Requests in it.
    pub requests: usize,
    /// Means by metric.
    pub metrics: BTreeMap<String, f64>,
}

/// Slices by name, by task; a slice without requests is left out.
pub type Slices = BTreeMap<String, BTreeMap<String, Slice>>;

/// Cuts ranked requests of `split` into slices; `kinds` is of [`popularity`].
pub fn by_slice(
    rankings: &Rankings,
    split: &Split,
    tasks: &[String],
    kinds: &[Popularity],
    settings: &EvaluateSettings,
) -> Slices {
    let names = metrics::names(&settings.k, settings.published_metrics);
    let mut sums: BTreeMap<(u32, &str), (usize, Vec<f64>)> = BTreeMap::new();
    for ranked in &rankings.requests {
        for (name, places) in memberships(ranked, &split.records[ranked.record], kinds) {
            let (requests, sums) =
                sums.entry((ranked.task, name)).or_insert_with(|| (0, vec![0.0; names.len()]));
            *requests += 1;
            let judged = Judged::binary(&places, places.len());
            metrics::add(&judged, &settings.k, settings.published_metrics, sums);
        }
    }
    let mut slices = Slices::new();
    for ((task, name), (requests, sums)) in sums {
        let means = sums.into_iter().map(|sum| sum / requests as f64);
        let metrics = names.iter().cloned().zip(means).collect();
        let of_task = slices.entry(tasks[task as usize].clone()).or_default();
        of_task.insert(name.to_string(), Slice { requests, metrics });
    }
    slices
}

/// The slices a request is in, and the places of the targets that count there.
fn memberships(ranked: &Ranked, record: &Record, kinds: &[Popularity]) -> Vec<(&'static str, Vec<Place>)> {
    let length = match record.history.len() {
        0 => "history:0",
        1..5 => "history:1-4",
        5..20 => "history:5-19",
        _ => "history:20+",
    };
    let mut list = vec![(length, ranked.places.clone())];
    let names =
        [("item:cold", Popularity::Cold), ("item:tail", Popularity::Tail), ("item:head", Popularity::Head)];
    for (name, kind) in names {
        let targets = record.target.iter().zip(&ranked.places);
        let of_kind = targets.filter(|(item, _)| kinds.get(**item as usize) == Some(&kind));
        let places: Vec<Place> = of_kind.map(|(_, place)| *place).collect();
        if !places.is_empty() {
            list.push((name, places));
        }
    }
    list
}

/// Share of the `items` that stand among the first k of any request's list (`coverage@k`), by task.
pub fn coverage(rankings: &Rankings, tasks: &[String], items: usize, cutoffs: &[usize]) -> Metrics {
    let mut shares = Metrics::new();
    for (number, task) in tasks.iter().enumerate() {
        let lists: Vec<&Ranked> = rankings.requests.iter().filter(|r| r.task as usize == number).collect();
        if lists.is_empty() {
            continue;
        }
        for k in cutoffs {
            let mut shown = vec![false; items];
            for (item, _) in lists.iter().flat_map(|r| r.top.iter().take(*k)) {
                if let Some(shown) = shown.get_mut(*item as usize) {
                    *shown = true;
                }
            }
            let share = shown.iter().filter(|s| **s).count() as f64 / items.max(1) as f64;
            shares.entry(task.clone()).or_default().insert(format!("coverage@{k}"), share);
        }
    }
    shares
}
