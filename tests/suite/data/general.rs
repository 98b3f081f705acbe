//! General text.

use super::{Bench, cue, write};
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
