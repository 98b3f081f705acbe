//! Ranking metrics by their standard definitions (as `trec_eval` and ranx compute them), where scores tie in
//! expectation over all orders of the tied items.
//!
//! The expectations are exact and closed (McSherry and Najork 2008, "Computing Information Retrieval Performance
//! Measures Efficiently in the Presence of Tied Scores"): a model that scores all items alike is worth what chance is
//! worth, whatever order its catalogue has.

/// Where an item stands in a ranked list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// Items with a higher score.
    pub ahead: usize,
    /// Items of the same score, itself included.
    pub tied: usize,
}

impl Place {
    /// The place `position` (from 0) of an item whose score no other item has.
    pub fn alone(position: usize) -> Self {
        Self { ahead: position, tied: 1 }
    }
}

/// Items of one score, `hits` of which are relevant; they stand at `start .. start + size`, in any order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Group {
    start: usize,
    size: usize,
    hits: usize,
    /// Sum of the gains of its relevant items.
    gain: f64,
}

/// What a ranked list is judged by: where its relevant items stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judged {
    /// Groups with relevant items, the best first.
    groups: Vec<Group>,
    /// Gains of all relevant items, ranked or not.
    relevant: Vec<f64>,
}

impl Judged {
    /// Of (place, gain) of every relevant item in the list (any order), and the gains of all relevant items, ranked or
    /// not. Items of one score must give the same `tied`.
    pub fn new(mut found: Vec<(Place, f64)>, relevant: Vec<f64>) -> Self {
        found.sort_unstable_by_key(|(place, _)| place.ahead);
        let mut groups: Vec<Group> = Vec::new();
        for (Place { ahead, tied }, gain) in found {
            match groups.last_mut().filter(|last| last.start == ahead) {
                Some(last) => {
                    last.hits += 1;
                    last.gain += gain;
                    last.size = last.size.max(last.hits);
                }
                None => groups.push(Group { start: ahead, size: tied.max(1), hits: 1, gain }),
            }
        }
        Self { groups, relevant }
    }

    /// Binary judgements: places of relevant items (any order) out of `relevant` in all.
    pub fn binary(places: &[Place], relevant: usize) -> Self {
        Self::new(places.iter().map(|p| (*p, 1.0)).collect(), vec![1.0; relevant])
    }

    /// The mean of `value` over the orders of tied items, given the groups that stand among the first k. Of a group
    /// that the cut goes through, the part before it has a random number of hits.
    fn expected(&self, k: usize, value: impl Fn(&[Group]) -> f64) -> f64 {
        let whole = self.groups.partition_point(|g| g.start + g.size <= k);
        let Some(cut) = self.groups.get(whole).filter(|g| g.start < k) else {
            return value(&self.groups[..whole]);
        };
        let mut groups = self.groups[..=whole].to_vec();
        let each = hits_among(cut, k - cut.start).into_iter().enumerate().map(|(hits, probability)| {
            let gain = cut.gain * hits as f64 / cut.hits as f64;
            groups[whole] = Group { start: cut.start, size: k - cut.start, hits, gain };
            probability * value(&groups)
        });
        each.sum()
    }

    /// 1 when a relevant item is among the first k.
    pub fn hit(&self, k: usize) -> f64 {
        self.expected(k, |groups| f64::from(u8::from(hits(groups) > 0.0)))
    }
    /// Share of the relevant items among the first k.
    pub fn recall(&self, k: usize) -> f64 {
        ratio(self.expected(k, hits), self.relevant.len() as f64)
    }
    /// Share of relevant items in the first k places.
    pub fn precision(&self, k: usize) -> f64 {
        ratio(self.expected(k, hits), k as f64)
    }
    /// Reciprocal of the first relevant item's place, 0 beyond k.
    pub fn mrr(&self, k: usize) -> f64 {
        self.expected(k, reciprocal)
    }
    /// Average precision over all relevant items.
    pub fn map(&self, k: usize) -> f64 {
        ratio(self.expected(k, precisions), self.relevant.len() as f64)
    }
    /// Discounted gain (linear gains, log2 discount) over that of the ideal list.
    pub fn ndcg(&self, k: usize) -> f64 {
        ratio(self.expected(k, dcg), ideal(self.relevant.clone(), k))
    }
    /// Published, non-standard, for binary gains: the ideal list holds only the hits within the cut.
    pub fn ndcg_hits_only(&self, k: usize) -> f64 {
        self.expected(k, |groups| ratio(dcg(groups), ideal(vec![1.0; hits(groups) as usize], k)))
    }
    /// Published, non-standard: average precision over the hits within the cut.
    pub fn map_hits_only(&self, k: usize) -> f64 {
        self.expected(k, |groups| ratio(precisions(groups), hits(groups)))
    }
}

/// Probabilities of 0, 1, 2, .. hits among `drawn` items of a group (hypergeometric).
fn hits_among(group: &Group, drawn: usize) -> Vec<f64> {
    let mut probabilities = vec![0.0; drawn.min(group.hits) + 1];
    probabilities[0] = 1.0;
    for n in 0..drawn {
        let left = (group.size - n) as f64;
        for hits in (0..probabilities.len()).rev() {
            let hit = |before: usize| group.hits.saturating_sub(before) as f64 / left;
            let more = if hits > 0 { probabilities[hits - 1] * hit(hits - 1) } else { 0.0 };
            probabilities[hits] = probabilities[hits] * (1.0 - hit(hits)) + more;
        }
    }
    probabilities
}

fn hits(groups: &[Group]) -> f64 {
    groups.iter().map(|g| g.hits as f64).sum()
}

/// Mean discounted gain: every place of a group is as good for its items as any other.
fn dcg(groups: &[Group]) -> f64 {
    let places = groups.iter().flat_map(|g| (g.start..g.start + g.size).map(|p| (p, g.gain / g.size as f64)));
    discounted(places)
}

/// Mean reciprocal of the first hit's place.
fn reciprocal(groups: &[Group]) -> f64 {
    let Some(first) = groups.iter().find(|g| g.hits > 0) else { return 0.0 };
    // The probability that no hit stands before place i of the group.
    let (mut none, mut mean) = (1.0, 0.0);
    for i in 0..=first.size - first.hits {
        let hit = first.hits as f64 / (first.size - i) as f64;
        mean += none * hit / (first.start + i + 1) as f64;
        none *= 1.0 - hit;
    }
    mean
}

/// Mean sum, over the hits, of the precision at the hit's place.
fn precisions(groups: &[Group]) -> f64 {
    let (mut before, mut sum) = (0.0, 0.0);
    for g in groups.iter().filter(|g| g.hits > 0) {
        let (size, hits) = (g.size as f64, g.hits as f64);
        // Of the other hits of the group, so many stand before each place.
        let others = (hits - 1.0) / (size - 1.0).max(1.0);
        let at = |i: usize| hits / size * (before + 1.0 + i as f64 * others) / (g.start + i + 1) as f64;
        sum += (0..g.size).map(at).sum::<f64>();
        before += hits;
    }
    sum
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn discounted(found: impl Iterator<Item = (usize, f64)>) -> f64 {
    found.map(|(p, g)| g / ((p + 2) as f64).log2()).sum()
}

fn ideal(mut gains: Vec<f64>, k: usize) -> f64 {
    gains.sort_unstable_by(|a, b| b.total_cmp(a));
    discounted(gains.into_iter().take(k).enumerate())
}

/// A metric's name, and its value of a list cut at k.
type Metric = (&'static str, fn(&Judged, usize) -> f64);

const STANDARD: [Metric; 6] = [
    ("hit", Judged::hit),
    ("ndcg", Judged::ndcg),
    ("mrr", Judged::mrr),
    ("map", Judged::map),
    ("recall", Judged::recall),
    ("precision", Judged::precision),
];
const PUBLISHED: [Metric; 2] =
    [("published_ndcg", Judged::ndcg_hits_only), ("published_map", Judged::map_hits_only)];

/// The metrics that say something at a cut-off: at 1, `hit` is also ndcg, mrr and precision, and `recall` map.
fn told(k: usize, published: bool) -> impl Iterator<Item = &'static Metric> {
    let all = STANDARD.iter().chain(PUBLISHED.iter().filter(move |_| published));
    all.filter(move |(name, _)| k != 1 || ["hit", "recall"].contains(name))
}

/// Names of all metrics, in the order of [`add`]. Those that are another's number at cut-off 1 are left out there.
pub fn names(cutoffs: &[usize], published: bool) -> Vec<String> {
    cutoffs.iter().flat_map(|k| told(*k, published).map(move |(kind, _)| format!("{kind}@{k}"))).collect()
}

/// Adds all metrics of a list to `sums`, in the order of [`names`].
pub fn add(judged: &Judged, cutoffs: &[usize], published: bool, sums: &mut [f64]) {
    let values = cutoffs.iter().flat_map(|k| told(*k, published).map(|(_, value)| value(judged, *k)));
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// The metric called `name` (`ndcg@10`) of a list; `None`: there is no such metric.
pub fn named(judged: &Judged, name: &str) -> Option<f64> {
    let (kind, k) = name.split_once('@')?;
    let (_, value) = STANDARD.iter().chain(&PUBLISHED).find(|(name, _)| *name == kind)?;
    Some(value(judged, k.parse().ok()?))
}

/// Published, non-standard: only a request's first target is scored, and the sum is divided by the number of
/// relevant items of all requests. A list is given as (place of its first target, number of targets); no place:
/// beyond the list's end.
pub fn first_target_only(lists: &[(Option<Place>, usize)], cutoffs: &[usize]) -> Vec<(String, f64)> {
    let relevant: usize = lists.iter().map(|(_, n)| n).sum();
    let lists: Vec<Judged> = lists.iter().map(|(place, _)| Judged::binary(place.as_slice(), 1)).collect();
    let kinds = |k: usize| told(k, false).filter(|(kind, _)| !["recall", "precision"].contains(kind));
    let values = cutoffs.iter().flat_map(|k| {
        let mean = |value: &fn(&Judged, usize) -> f64| {
            ratio(lists.iter().map(|list| value(list, *k)).sum(), relevant as f64)
        };
        kinds(*k)
            .map(|(kind, value)| (format!("published_first_{kind}@{k}"), mean(value)))
            .collect::<Vec<_>>()
    });
    values.collect()
}
