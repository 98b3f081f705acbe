//! Tied scores: every metric against the mean over all orders of the tied items, and a model that knows nothing.

use gems_engine::eval::metrics::{self, Judged, Place};
use gems_engine::eval::{EvaluateSettings, Ranked, Rankings, judge, leading, slices};
use proptest::prelude::*;

/// A metric of a list without ties, from its textbook formula; `list` says which items are relevant.
fn textbook(name: &str, list: &[bool], all: usize, k: usize) -> f64 {
    let first = &list[..k.min(list.len())];
    let hits = first.iter().filter(|r| **r).count() as f64;
    let discount = |i: usize| 1.0 / ((i + 2) as f64).log2();
    let ideal = |n: usize| (0..n.min(k)).map(discount).sum::<f64>();
    let gain: f64 = first.iter().enumerate().filter(|(_, r)| **r).map(|(i, _)| discount(i)).sum();
    let so_far = |i: usize| first[..=i].iter().filter(|r| **r).count() as f64 / (i + 1) as f64;
    let precisions: f64 = (0..first.len()).filter(|i| first[*i]).map(so_far).sum();
    let over = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    match name {
        "hit" => f64::from(u8::from(hits > 0.0)),
        "recall" => over(hits, all as f64),
        "precision" => hits / k as f64,
        "mrr" => first.iter().position(|r| *r).map_or(0.0, |i| 1.0 / (i + 1) as f64),
        "map" => over(precisions, all as f64),
        "ndcg" => over(gain, ideal(all)),
        "published_ndcg" => over(gain, ideal(hits as usize)),
        "published_map" => over(precisions, hits),
        other => panic!("{other}"),
    }
}

/// Every order of `n` things.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    let shorter = permutations(n - 1);
    let with = |p: &Vec<usize>, at: usize| [&p[..at], &[n - 1], &p[at..]].concat();
    shorter.iter().flat_map(|p| (0..n).map(|at| with(p, at)).collect::<Vec<_>>()).collect()
}

/// The mean of a metric over all orders that the scores allow.
fn mean_over_orders(name: &str, scores: &[f32], relevant: &[bool], k: usize) -> f64 {
    let all = relevant.iter().filter(|r| **r).count();
    let allowed = |order: &&Vec<usize>| order.windows(2).all(|w| scores[w[0]] >= scores[w[1]]);
    let orders = permutations(scores.len());
    let values: Vec<f64> = orders
        .iter()
        .filter(allowed)
        .map(|order| textbook(name, &order.iter().map(|i| relevant[*i]).collect::<Vec<_>>(), all, k))
        .collect();
    values.iter().sum::<f64>() / values.len() as f64
}

const KINDS: [&str; 8] =
    ["hit", "recall", "precision", "mrr", "map", "ndcg", "published_ndcg", "published_map"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tied_scores_count_by_their_expectation(
        levels in prop::collection::vec(0u8..3, 1..8),
        marks in any::<u8>(),
        k in 1usize..9,
    ) {
        let scores: Vec<f32> = levels.iter().map(|l| -f32::from(*l)).collect();
        let relevant: Vec<bool> = (0..scores.len()).map(|i| marks >> i & 1 == 1).collect();
        let candidates: Vec<u32> = (0..scores.len() as u32).collect();
        let targets: Vec<u32> = candidates.iter().copied().filter(|c| relevant[*c as usize]).collect();
        let (_, places) = judge(&candidates, &scores, &targets, (0, 7));
        let judged = Judged::binary(&places, places.len());
        for name in KINDS {
            let got = metrics::named(&judged, &format!("{name}@{k}")).unwrap();
            let want = mean_over_orders(name, &scores, &relevant, k);
            prop_assert!((got - want).abs() < 1e-12, "{name}@{k}: {got} instead of {want}");
        }
        let lists: Vec<_> = [places.first().copied()].into_iter().map(|p| (p, places.len())).collect();
        if let Some(target) = targets.first() {
            let alone: Vec<bool> = candidates.iter().map(|c| c == target).collect();
            for (name, got) in metrics::first_target_only(&lists, &[k]) {
                let kind = name.strip_prefix("published_first_").unwrap().split('@').next().unwrap();
                let want = mean_over_orders(kind, &scores, &alone, k) / targets.len() as f64;
                prop_assert!((got - want).abs() < 1e-12, "{name}: {got} instead of {want}");
            }
        }
    }

    #[test]
    fn large_ties_are_chance(items in 1usize..5000, k in 1usize..30) {
        // One target among `items` of one score: by arithmetic.
        let judged = Judged::binary(&[Place { ahead: 0, tied: items }], 1);
        let places = k.min(items);
        let share = places as f64 / items as f64;
        let mean = |value: &dyn Fn(usize) -> f64| (0..places).map(value).sum::<f64>() / items as f64;
        for (name, want) in [
            ("hit", share),
            ("recall", share),
            ("precision", share / k as f64),
            ("mrr", mean(&|i| 1.0 / (i + 1) as f64)),
            ("map", mean(&|i| 1.0 / (i + 1) as f64)),
            ("ndcg", mean(&|i| 1.0 / ((i + 2) as f64).log2())),
        ] {
            let got = metrics::named(&judged, &format!("{name}@{k}")).unwrap();
            prop_assert!((got - want).abs() < 1e-9, "{name}@{k} of {items}: {got} instead of {want}");
        }
    }
}

#[test]
fn graded_gains_tie_in_expectation_too() {
    // Gains 3 and 1 tie with one irrelevant item behind one that scores higher, k = 3: by hand over the six orders.
    let place = Place { ahead: 1, tied: 3 };
    let judged = Judged::new(vec![(place, 3.0), (place, 1.0)], vec![3.0, 1.0]);
    let (second, third) = (1.0 / 3f64.log2(), 0.5);
    let mean = (4.0 * second + 4.0 * third) / 3.0;
    let ideal = 3.0 + second;
    assert!((judged.ndcg(3) - mean / ideal).abs() < 1e-12);
}

#[test]
fn lists_of_equal_scores_know_nothing_of_the_catalogue() {
    let items: Vec<u32> = (0..400).collect();
    let scores = vec![-3.0; 400];
    let lists: Vec<Vec<u32>> = (0..500)
        .map(|request| leading(&items, &scores, 10, request).iter().map(|(item, _)| *item).collect())
        .collect();
    assert_eq!(
        lists[3],
        leading(&items, &scores, 400, 3)[..10].iter().map(|i| i.0).collect::<Vec<_>>(),
        "stable"
    );
    assert_ne!(lists[0], lists[1], "another request, another order");
    // 5000 places for 400 items: 12.5 each, deviation 3.5. The first quarter of the catalogue gets a quarter.
    let mut counts = vec![0u32; 400];
    lists.iter().flatten().for_each(|item| counts[*item as usize] += 1);
    assert!(counts.iter().all(|c| (1..=30).contains(c)), "{counts:?}");
    let quarter: u32 = counts[..100].iter().sum();
    assert!((1250 - 150..=1250 + 150).contains(&quarter), "{quarter}");

    let requests = lists.iter().enumerate().map(|(record, list)| Ranked {
        record,
        task: 0,
        top: list.iter().map(|item| (*item, -3.0)).collect(),
        places: vec![Place { ahead: 0, tied: 400 }],
        is_cut: false,
        candidates: 400,
        sampled: vec![Place { ahead: 0, tied: 20 }],
    });
    let rankings = Rankings { requests: requests.collect() };
    let (tasks, settings) = (["rec".to_string()], EvaluateSettings { k: vec![10], ..Default::default() });
    let means = &rankings.metrics(&tasks, &settings)["rec"];
    assert!((means["hit@10"] - 0.025).abs() < 1e-12 && (means["sampled_hit@10"] - 0.5).abs() < 1e-12);
    assert!(slices::coverage(&rankings, &tasks, 400, &[10])["rec"]["coverage@10"] > 0.99);
}

#[test]
fn both_zeros_are_one_score() {
    let (_, places) = judge(&[4, 5], &[0.0, -0.0], &[5], (1, 0));
    assert_eq!(places, [Place { ahead: 0, tied: 2 }]);
}
