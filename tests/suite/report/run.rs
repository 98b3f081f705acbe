//! The pages of real runs: what stands on them while a run goes on, at its end, and of several runs.

use super::html::check;
use crate::cli::{engine, train, world};
use serde_json::Value;
use std::fs;

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn runs_have_their_pages() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let run = |name: &str, method: &str| {
        let out = dir.path().join(name);
        train("llama_tied", &data, &out, &["--steps", "8", "--method", method]).assert().success();
        out
    };
    let (gems, lora) = (run("first", "gems"), run("second", "lora"));
    let log = lines(&gems.join("metrics.jsonl"));
    let steps: Vec<u64> = log.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (0..=8).collect::<Vec<_>>(), "a line a step, and one before the first");
    // Of the base model from itself, by definition; then it moves.
    assert!(log[0]["valid.general.kl"].as_f64().unwrap().abs() < 1e-6);
    assert!(log[8]["valid.general.kl"].as_f64().unwrap() > 1e-6);
    assert!(log[0].get("loss").is_none() && log[0]["valid.rec.loss"].is_number());

    let page = fs::read_to_string(gems.join("report.html")).unwrap();
    check(&page);
    for text in [
        "Ranking against forgetting",
        "Requests of rec",
        "Energy by layer: shared",
        "Conflict by layer: ",
        "Drift by layer",
        "Kinds of requests",
        "Energy of general text in the leading directions",
        "rec, validation",
        "measuring before",
        "UTC",
        "fingerprint of the base model",
        "8 of 8",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains(dir.path().to_str().unwrap()), "where it lies is nobody's business");

    let result: Value = serde_json::from_str(&fs::read_to_string(gems.join("result.json")).unwrap()).unwrap();
    let of_task = result["after"]["slices"]["rec"].as_object().unwrap();
    let by_history = of_task.iter().filter(|(name, _)| name.starts_with("history:"));
    let requests: u64 = by_history.map(|(_, slice)| slice["requests"].as_u64().unwrap()).sum();
    let all = result["after"]["per_request"]["rec"]["ndcg@10"].as_array().unwrap();
    assert_eq!(requests, all.len() as u64, "every request has one length of history");

    let about: Value = serde_json::from_str(&fs::read_to_string(gems.join("about.json")).unwrap()).unwrap();
    for kind in about["spectrum"].as_array().unwrap() {
        let points = kind["points"].as_array().unwrap();
        let held: Vec<f64> = points.iter().map(|point| point[1].as_f64().unwrap()).collect();
        assert!(held.is_sorted() && held[0] > 0.0 && held[held.len() - 1] <= 1.0, "{kind}");
    }

    let page = dir.path().join("comparison.html");
    engine().arg("compare").args([&gems, &lora]).arg("--report").arg(&page).assert().success();
    let page = fs::read_to_string(page).unwrap();
    check(&page);
    for text in [
        "ndcg@10 of rec against divergence",
        "<h3>Loss</h3>",
        "Paired tests, ndcg@10 of search",
        "gems.method",
        "p = ",
    ] {
        assert!(page.contains(text), "{text}");
    }
}
