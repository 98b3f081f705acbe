//! The made-up world: made of its own events, its best metrics, its planted leaks.

use super::{plain, prepare, rows, short, target, watched, world, world_events};
use gems_engine::data::DataSettings;
use gems_engine::prepare::{World, check, synth};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

#[test]
fn a_world_is_what_preparing_its_events_gives() {
    let dir = tempfile::tempdir().unwrap();
    let direct = dir.path().join("direct");
    watched(|watch| synth(&world(200, 120), &target(&direct), watch)).unwrap();
    let out = dir.path().join("out");
    let card = prepare(&world_events(dir.path(), world(200, 120)), &plain(), &out).unwrap();
    assert_eq!(card.written.leaks_before.any, 0);
    for split in ["items", "train", "valid", "test"] {
        let sorted = |dir: &Path| {
            let mut lines: Vec<String> = rows(dir, split).iter().map(Value::to_string).collect();
            lines.sort();
            lines
        };
        assert!(sorted(&direct) == sorted(&out), "{split}");
    }
}

#[test]
fn the_best_possible_metrics_of_a_world_without_noise() {
    let dir = tempfile::tempdir().unwrap();
    for (name, conflict) in [("torn", 1.0), ("one", 0.0)] {
        let world = World { noise: 0.0, conflict, ..world(4000, 600) };
        let card = watched(|watch| synth(&world, &target(&dir.path().join(name)), watch)).unwrap();
        let best = |task: &str, metric: &str| card["written"]["optimum"][task][metric].as_f64().unwrap();
        // Three successors with chances 0.7, 0.2 and 0.1; a query tells them apart. Four standard errors.
        let error = |p: f64| 4.0 * (p * (1.0 - p) / 4000.0).sqrt();
        assert!((best("rec", "hit@1") - 0.7).abs() < error(0.7));
        let ndcg = 0.7 + 0.2 / 3f64.log2() + 0.1 / 4f64.log2();
        assert!((best("rec", "ndcg@10") - ndcg).abs() < error(0.7) / 2.0);
        assert_eq!(
            (best("rec", "hit@5"), best("search", "hit@1"), best("search", "mrr@20")),
            (1.0, 1.0, 1.0)
        );
    }
    // With the conflict the tasks never want the same after the same item; without it they always may.
    let pairs = |name: &str| {
        let mut next: HashMap<String, [BTreeSet<String>; 2]> = HashMap::new();
        for (task, history, _, target) in short(&dir.path().join(name), "train") {
            let last = history.last().unwrap().clone();
            next.entry(last).or_default()[usize::from(task == "search")].insert(target[0].clone());
        }
        next.into_values().filter(|[rec, search]| !rec.is_disjoint(search)).count()
    };
    assert_eq!(pairs("torn"), 0);
    assert!(pairs("one") > 300);
}

#[test]
fn planted_leaks_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("world");
    let card = watched(|watch| synth(&World { leak: 0.3, ..world(500, 200) }, &target(&out), watch)).unwrap();
    let planted = card["written"]["leaked"].as_u64().unwrap();
    assert!((200..400).contains(&planted), "{planted} of 1000");
    let found = check(&out, &DataSettings::default(), None).unwrap();
    assert_eq!((found.leaks.pairs, found.leaks.any, found.leaks.trained_elsewhere), (1000, planted, planted));
    assert!(found.problems.is_empty());
    let small = World { items: 20, ..world(5, 20) };
    let error = watched(|watch| synth(&small, &target(&dir.path().join("x")), watch)).unwrap_err();
    assert!(error.to_string().contains("--items") && error.exit_code() == 2, "{error}");
}
