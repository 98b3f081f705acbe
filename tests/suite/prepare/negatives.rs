//! Negatives of validation and test.

use super::{event, events, plain, prepare, rows, world, world_events};
use gems_engine::prepare::{Events, Source};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::fs;

#[test]
fn negatives_are_never_positives_and_as_many_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let source = world_events(dir.path(), world(60, 90));
    let mut taken: HashMap<String, BTreeSet<String>> = HashMap::new();
    for event in rows(&dir.path().join("events"), "events") {
        let text = |key: &str| event[key].as_str().unwrap().to_string();
        taken.entry(text("user")).or_default().insert(text("item"));
    }
    let all: BTreeSet<&String> = taken.values().flatten().collect();
    for kind in ["uniform:20", "popularity:20", "uniform:5,popularity:15", "bm25:4,uniform:16", "uniform:500"]
    {
        let mut settings = plain();
        settings.negatives.set(kind).unwrap();
        let out = dir.path().join(kind.replace([':', ','], "-"));
        prepare(&source, &settings, &out).unwrap();
        for row in rows(&out, "test").iter().chain(&rows(&out, "valid")) {
            let negatives: Vec<&str> =
                row["negatives"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
            let user = &taken[row["user"].as_str().unwrap()];
            assert!(negatives.iter().all(|n| !user.contains(*n)), "{kind}: {row}");
            assert_eq!(negatives.iter().collect::<BTreeSet<_>>().len(), negatives.len(), "{kind}: {row}");
            let want = if kind == "uniform:500" { all.len() - user.len() } else { 20 };
            assert_eq!(negatives.len(), want, "{kind}");
        }
        assert!(rows(&out, "train").iter().all(|r| r.get("negatives").is_none()));
    }
}

#[test]
fn bm25_negatives_answer_the_query_best() {
    let dir = tempfile::tempdir().unwrap();
    let search = |t, item, query| event("u", t, item, Some(query));
    let mut log = vec![search(1, "a", "x"), search(2, "b", "x"), search(3, "c", "warm red scarf")];
    log.extend(["d", "e", "f", "g"].iter().map(|item| event("v", 9, item, Some("x"))));
    let items = dir.path().join("items.csv");
    let texts = "item,text\na,x\nb,x\nc,red scarf\nd,a warm red scarf\ne,red shoe\nf,blue boat\ng,红色围巾\n";
    fs::write(&items, texts).unwrap();
    let Source::Events(table) = events(dir.path(), &log) else { unreachable!() };
    let source = Source::Events(Box::new(Events { items: vec![items], ..*table }));
    let mut settings = plain();
    settings.negatives.set("bm25:3").unwrap();
    let out = dir.path().join("out");
    prepare(&source, &settings, &out).unwrap();
    // d has all three words, e one of them; nothing else has any, and c is the target.
    assert_eq!(rows(&out, "test")[0]["negatives"], json!(["d", "e"]));
    let without = events(dir.path(), &log);
    let error = prepare(&without, &settings, &dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("texts of the items"), "{error}");
}
