//! Ranking metrics by their standard definitions (as `trec_eval` and ranx compute them).

/// What a ranked list is judged by: where its relevant items stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judged {
    /// (position from 0, gain) of every relevant item in the list, positions ascending. A binary gain is 1.
    pub found: Vec<(usize, f64)>,
    /// Gains of all relevant items, ranked or not.
    pub relevant: Vec<f64>,
}

impl Judged {
    /// Binary judgements: positions of relevant items (any order) out of `relevant` in all.
    pub fn binary(mut positions: Vec<usize>, relevant: usize) -> Self {
        positions.sort_unstable();
        Self { found: positions.into_iter().map(|p| (p, 1.0)).collect(), relevant: vec![1.0; relevant] }
    }

    fn within(&self, k: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.found.iter().copied().take_while(move |(p, _)| *p < k)
    }

    /// 1 when a relevant item is among the first k.
    pub fn hit(&self, k: usize) -> f64 {
        f64::from(u8::from(self.within(k).next().is_some()))
    }
    /// Share of the relevant items among the first k.
    pub fn recall(&self, k: usize) -> f64 {
        ratio(self.within(k).count() as f64, self.relevant.len() as f64)
    }
    /// Share of relevant items in the first k places.
    pub fn precision(&self, k: usize) -> f64 {
        ratio(self.within(k).count() as f64, k as f64)
    }
    /// Reciprocal of the first relevant item's place, 0 beyond k.
    pub fn mrr(&self, k: usize) -> f64 {
        self.within(k).next().map_or(0.0, |(p, _)| 1.0 / (p + 1) as f64)
    }
    /// Average precision over all relevant items.
    pub fn map(&self, k: usize) -> f64 {
        ratio(self.precisions(k), self.relevant.len() as f64)
    }
    /// Discounted gain (linear gains, log2 discount) over that of the ideal list.
    pub fn ndcg(&self, k: usize) -> f64 {
        ratio(dcg(self.within(k)), ideal(self.relevant.clone(), k))
    }
    /// [`Judged::ndcg`] with gains `2^g - 1` (Burges et al. 2005).
    pub fn ndcg_exponential(&self, k: usize) -> f64 {
        let gain = |g: f64| g.exp2() - 1.0;
        let all = self.relevant.iter().map(|g| gain(*g)).collect();
        ratio(dcg(self.within(k).map(|(p, g)| (p, gain(g)))), ideal(all, k))
    }

    fn precisions(&self, k: usize) -> f64 {
        self.within(k).enumerate().map(|(i, (p, _))| (i + 1) as f64 / (p + 1) as f64).sum()
    }

    /// Published, non-standard: the ideal list holds only the hits within the cut.
    pub fn ndcg_hits_only(&self, k: usize) -> f64 {
        ratio(dcg(self.within(k)), ideal(self.within(k).map(|(_, g)| g).collect(), k))
    }
    /// Published, non-standard: average precision over the hits within the cut.
    pub fn map_hits_only(&self, k: usize) -> f64 {
        ratio(self.precisions(k), self.within(k).count() as f64)
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn dcg(found: impl Iterator<Item = (usize, f64)>) -> f64 {
    found.map(|(p, g)| g / ((p + 2) as f64).log2()).sum()
}

fn ideal(mut gains: Vec<f64>, k: usize) -> f64 {
    gains.sort_unstable_by(|a, b| b.total_cmp(a));
    dcg(gains.into_iter().take(k).enumerate())
}

/// Names of all metrics, in the order of [`add`].
pub fn names(cutoffs: &[usize], published: bool) -> Vec<String> {
    let mut kinds = vec!["hit", "ndcg", "mrr", "map", "recall", "precision"];
    if published {
        kinds.extend(["published_ndcg", "published_map"]);
    }
    cutoffs.iter().flat_map(|k| kinds.iter().map(move |kind| format!("{kind}@{k}"))).collect()
}

/// Adds all metrics of a list to `sums`, in the order of [`names`].
pub fn add(judged: &Judged, cutoffs: &[usize], published: bool, sums: &mut [f64]) {
    let mut sums = sums.iter_mut();
    let mut add = |value: f64| {
        if let Some(sum) = sums.next() {
            *sum += value;
        }
    };
    for &k in cutoffs {
        add(judged.hit(k));
        add(judged.ndcg(k));
        add(judged.mrr(k));
        add(judged.map(k));
        add(judged.recall(k));
        add(judged.precision(k));
        if published {
            add(judged.ndcg_hits_only(k));
            add(judged.map_hits_only(k));
        }
    }
}

/// Names and values of all metrics of a list.
pub fn all(judged: &Judged, cutoffs: &[usize], published: bool) -> Vec<(String, f64)> {
    let names = names(cutoffs, published);
    let mut values = vec![0.0; names.len()];
    add(judged, cutoffs, published, &mut values);
    names.into_iter().zip(values).collect()
}

/// Published, non-standard: only a request's first target is scored, and the sum is divided by the number of
/// relevant items of all requests. A list is given as (place of its first target, number of targets); a place is
/// a position from 0, `None` beyond the list's end.
pub fn first_target_only(lists: &[(Option<usize>, usize)], cutoffs: &[usize]) -> Vec<(String, f64)> {
    let relevant: usize = lists.iter().map(|(_, n)| n).sum();
    let mut values = Vec::new();
    for &k in cutoffs {
        let mean = |value: fn(&Judged, usize) -> f64| {
            let sum: f64 =
                lists.iter().map(|(place, _)| value(&Judged::binary(Vec::from_iter(*place), 1), k)).sum();
            ratio(sum, relevant as f64)
        };
        values.push((format!("published_first_hit@{k}"), mean(Judged::hit)));
        values.push((format!("published_first_ndcg@{k}"), mean(Judged::ndcg)));
        values.push((format!("published_first_mrr@{k}"), mean(Judged::mrr)));
        values.push((format!("published_first_map@{k}"), mean(Judged::map)));
    }
    values
}
