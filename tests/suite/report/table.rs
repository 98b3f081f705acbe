//! The table before and after.

use gems_engine::report::{before_after, print_before_after};
use serde_json::{Value, json};

fn printed(before: Option<&Value>, after: &Value) -> String {
    let mut out = Vec::new();
    print_before_after(before, after, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn tasks_are_rows_and_metrics_columns() {
    let before = json!({"rec": {"hit@10": 0.0123, "ndcg@10": 0.005}, "general": {"perplexity": 12.345}});
    let after = json!({
        "rec": {"hit@10": 0.25, "ndcg@10": 0.125},
        "search": {"ndcg@10": 0.5, "hit@10": null},
        "general": {"perplexity": 12.5, "kl": 0.0000123, "item_mass": 0},
    });
    let text = printed(Some(&before), &after);
    let cells = |row: &str| -> Vec<String> {
        let line = text.lines().find(|l| l.contains(row)).unwrap_or_else(|| panic!("{row}: {text}"));
        line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(Into::into).collect()
    };
    assert_eq!(cells("task"), ["task", "ndcg@10", "hit@10"]);
    assert_eq!(cells("rec "), ["rec", "0.0050 → 0.1250", "0.0123 → 0.2500"]);
    assert_eq!(cells("search"), ["search", "0.5000", "— → —"]);
    assert_eq!(cells("general"), ["general text", "12.35 → 12.50", "1.23e-5", "0"]);
    assert!(!text.contains('\u{1b}'), "no escape codes");
}

#[test]
fn every_table_fits_eighty_columns() {
    let metrics: serde_json::Map<String, Value> =
        (0..11).map(|i| (format!("a-rather-long-metric@{i}"), json!(1234.5 + f64::from(i)))).collect();
    let tasks: serde_json::Map<String, Value> =
        (0..5).map(|i| (format!("{i} {}", "task ".repeat(30)), json!(metrics))).collect();
    let tasks = Value::Object(tasks);
    let text = printed(Some(&tasks), &tasks);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    for i in 0..11 {
        assert_eq!(text.matches(&format!("@{i} ")).count() + text.matches(&format!("@{i}\n")).count(), 1);
    }
}

#[test]
fn odd_measurements_do_no_harm() {
    for nothing in [json!({}), json!(null), json!([1]), json!({"rec": {}}), json!({"rec": {"slices": {}}})] {
        assert_eq!(before_after(None, &nothing), "");
        assert_eq!(printed(Some(&nothing), &nothing), "");
    }
    let steering = json!({"re\u{1b}[31mc\n": {"ndcg@10": 0.5}});
    let text = printed(None, &steering);
    assert!(!text.contains('\u{1b}') && text.contains("0.5000"), "{text:?}");
}
