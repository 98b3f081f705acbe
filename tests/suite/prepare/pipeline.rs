//! From events to rows: k-core, splits, histories.

use super::{crossing, event, events, plain, prepare, row, short, texts};
use gems_engine::data::DataSettings;
use gems_engine::prepare::{HistoryRule, Leaks, Settings, SplitRule, check};
use serde_json::Value;
use std::collections::BTreeSet;

#[test]
fn the_k_core_is_taken_to_its_fixed_point() {
    let dir = tempfile::tempdir().unwrap();
    // w has one event, so d falls; then z has one, so c falls; then x and y have two each, and a and b stay.
    let log =
        [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "y"), ("c", "z"), ("d", "z"), ("d", "w")];
    let log: Vec<Value> =
        log.iter().enumerate().map(|(t, (user, item))| event(user, t as i64, item, Some("q"))).collect();
    let mut settings = plain();
    (settings.core.user, settings.core.item) = (2, 2);
    settings.split = SplitRule::Time { valid: 0.1, test: 0.1, valid_from: Some(2), test_from: Some(3) };
    let out = dir.path().join("out");
    let card = prepare(&events(dir.path(), &log), &settings, &out).unwrap();
    assert_eq!((card.core.users, card.core.users_left, card.core.items, card.core.items_left), (4, 2, 4, 2));
    assert_eq!(short(&out, "train"), [row("search", "", "q", "x"), row("search", "x", "q", "y")]);
    assert_eq!(short(&out, "valid"), [row("search", "", "q", "x")]);
    assert_eq!(short(&out, "test"), [row("search", "x", "q", "y")]);
    assert_eq!(texts(&out).into_keys().collect::<BTreeSet<_>>(), BTreeSet::from(["x".into(), "y".into()]));
    settings.core.user = 3;
    let error = prepare(&events(dir.path(), &log), &settings, &dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("nothing is left"), "{error}");
}

#[test]
fn leave_one_out_with_and_without_pairs_across_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let source = events(dir.path(), &crossing());
    let (honest, leaky) = (dir.path().join("honest"), dir.path().join("leaky"));
    let card = prepare(&source, &plain(), &honest).unwrap();
    // D and B are held out for the test, C for validation.
    assert_eq!(short(&honest, "train"), [row("search", "A", "qa", "A")]);
    assert_eq!(short(&honest, "valid"), [row("rec", "A A", "", "C")]);
    assert_eq!(
        short(&honest, "test"),
        [row("search", "A A C D", "qb", "B"), row("rec", "A B A C B", "", "D")]
    );
    let before = Leaks {
        pairs: 2,
        trained: 0,
        trained_elsewhere: 1,
        in_training_history: 1,
        in_own_history: 2,
        any: 2,
    };
    assert_eq!(card.written.leaks_before, before);
    assert_eq!(card.written.leaks, Leaks { pairs: 2, ..Leaks::default() });
    assert_eq!((card.leak_rate_before, card.leak_rate), (1.0, 0.0));
    // What is written is measured again, from the files.
    let found = check(&honest, &DataSettings::default(), None).unwrap();
    assert_eq!(found.leaks, Leaks { pairs: 2, ..Leaks::default() });

    let published = Settings { exclude_pairs: false, ..plain() };
    let card = prepare(&source, &published, &leaky).unwrap();
    assert_eq!(short(&leaky, "train"), [row("rec", "A", "", "B"), row("search", "A B", "qa", "A")]);
    assert_eq!(short(&leaky, "valid"), [row("rec", "A B A", "", "C"), row("search", "A B A C", "qd", "D")]);
    assert_eq!(
        short(&leaky, "test"),
        [row("search", "A B A C D", "qb", "B"), row("rec", "A B A C D B", "", "D")]
    );
    assert_eq!((card.written.leaks, card.leak_rate), (before, 1.0));
    assert_eq!(check(&leaky, &DataSettings::default(), None).unwrap().leaks, before);
}

#[test]
fn histories_of_one_task_of_all_and_cut() {
    let dir = tempfile::tempdir().unwrap();
    let source = events(dir.path(), &crossing());
    for (rule, rec, search) in [
        (HistoryRule::Own, "A B C", "A D"),
        (HistoryRule::SearchSeesAll, "A B C", "A B A C D"),
        (HistoryRule::All, "A B A C D B", "A B A C D"),
    ] {
        for most in [50, 2] {
            let out = dir.path().join(format!("{rule:?}{most}"));
            let settings = Settings { history: rule, max_history: most, exclude_pairs: false, ..plain() };
            prepare(&source, &settings, &out).unwrap();
            let last = |items: &str| {
                let all: Vec<&str> = items.split(' ').collect();
                all[all.len().saturating_sub(most)..].join(" ")
            };
            let want = [row("search", &last(search), "qb", "B"), row("rec", &last(rec), "", "D")];
            assert_eq!(short(&out, "test"), want, "{rule:?}, {most}");
        }
    }
}

#[test]
fn what_happens_at_one_instant_is_no_history_and_repeats_count_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut log =
        vec![event("u", 1, "A", Some("q")), event("u", 2, "B", Some("q")), event("u", 2, "C", Some("r"))];
    log.push(event("u", 2, "C", Some("r")));
    log.push(event("u", 3, "D", Some("q")));
    let out = dir.path().join("out");
    let card = prepare(&events(dir.path(), &log), &plain(), &out).unwrap();
    assert_eq!((card.events, card.repeated), (5, 1));
    assert_eq!(short(&out, "train"), [row("search", "", "q", "A"), row("search", "A", "q", "B")]);
    assert_eq!(short(&out, "valid"), [row("search", "A", "r", "C")]);
    assert_eq!(short(&out, "test"), [row("search", "A B C", "q", "D")]);
}

#[test]
fn a_split_by_time_takes_shares_of_all_requests() {
    let dir = tempfile::tempdir().unwrap();
    let log: Vec<Value> = (0..10).map(|t| event(&format!("u{t}"), t, &format!("i{t}"), Some("q"))).collect();
    let out = dir.path().join("out");
    let split = SplitRule::Time { valid: 0.2, test: 0.2, valid_from: None, test_from: None };
    let card = prepare(&events(dir.path(), &log), &Settings { split, ..plain() }, &out).unwrap();
    assert_eq!(card.bounds, Some((6, 8)));
    assert_eq!(["train", "valid", "test"].map(|s| card.written.of(s)), [6, 2, 2]);
}
