//! General text.

use super::{Bench, catalogue, cue, write};
use gems_engine::data::*;
use serde_json::json;
use std::collections::BTreeSet;

#[test]
fn general_text_is_split_disjointly_and_by_content() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("general.txt"), dir.path().join("general.jsonl"));
    let lines: Vec<String> = (0..400).map(|i| format!("document {}", i % 300)).collect();
    std::fs::write(&a, lines.join("\n")).unwrap();
    write(dir.path(), "general.jsonl", &[json!({"text": "document 5"}), json!({"text": " "})]);
    let settings = DataSettings { general_held_out: 0.3, ..DataSettings::default() };
    let text = GeneralText::load(&[a.clone(), b], &settings).unwrap();
    assert_eq!(text.calibration.len() + text.held_out.len(), 401);
    let held: BTreeSet<&String> = text.held_out.iter().collect();
    assert!(text.calibration.iter().all(|d| !held.contains(d)), "a duplicate straddles the split");
    let share = held.len() as f64 / 300.0;
    assert!((0.2..0.4).contains(&share), "{share}");
    let apart = dir.path().join("general-heldout.txt");
    std::fs::write(&apart, "document 1\nanother\n").unwrap();
    let text = GeneralText::load(&[a.clone(), apart], &settings).unwrap();
    assert_eq!(text.held_out, ["another"], "what was learned from is not measured with");
    std::fs::write(&a, b"fine\n\xff\n").unwrap();
    let error = GeneralText::load(&[a], &settings).unwrap_err().to_string();
    assert!(error.contains("general.txt line 2: not UTF-8"), "{error}");
}

#[test]
fn golden_general_text_is_cut_into_pieces() {
    let bench = Bench::new(false, cue());
    let documents = ["warm steel watch and a red leather rug".to_string(), String::new()];
    let whole = bench.vocabulary.encode(&documents[0]).unwrap();
    let pieces = GeneralText::chunks(&documents, &bench.vocabulary, 5, 0).unwrap();
    assert!(pieces.iter().all(|p| (2..=5).contains(&p.len())));
    let joined = pieces.concat();
    assert_eq!(joined, whole[..joined.len()]);
    assert!(whole.len() - joined.len() <= 1);
}

#[test]
fn text_that_is_not_what_it_is_taken_for_is_named() {
    let warned = |t5: bool, calibration: &[&str], held_out: &[&str], repeated: usize| {
        let bench = Bench::new(t5, cue());
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = GeneralText { calibration: owned(calibration), held_out: owned(held_out), repeated };
        let data = Dataset { items: catalogue(&["red-scarf".into(), "rug".into()]), ..Dataset::default() };
        text.warnings(&data, &bench.vocabulary).unwrap()
    };
    let fine = ["steel is a hard metal", "leather is made of skin", "rugs lie on floors"];
    for t5 in [false, true] {
        assert_eq!(warned(t5, &fine, &["wool is warm"], 0), [""; 0]);
    }
    let unmeasured = warned(false, &fine, &[], 2).concat();
    assert!(
        unmeasured.contains("no general text is left") && unmeasured.contains("all 2 documents"),
        "{unmeasured}"
    );
    assert_eq!(warned(false, &[], &[], 0), [""; 0]);
    let titles =
        warned(false, &["Warm red-scarf", "warm  rug", "steel", "warm rug"], &["warm wool"], 0).concat();
    assert!(titles.is_empty(), "half of it is not most of it: {titles}");
    let titles = warned(false, &["Warm red-scarf", "warm  rug", "warm rug"], &["warm wool"], 0).concat();
    assert!(titles.contains("2 of 3 different documents"), "{titles}");
    // A tokenizer of bytes keeps everything, one of known pieces does not.
    let foreign = ["кошка спит на ковре", "собака бежит по полю"];
    assert_eq!(warned(false, &foreign, &["рыба плывёт"], 0), [""; 0]);
    let lost = warned(true, &foreign, &["рыба плывёт"], 0).concat();
    assert!(lost.contains("the tokenizer does not keep") && lost.contains("100 %"), "{lost}");
}
