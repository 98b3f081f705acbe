//! Data directories: what is read, and what is refused.

use super::{cue, directory, write};
use gems_engine::data::*;
use serde_json::json;
use std::collections::BTreeMap;

fn load_error(train: &[&str], settings: &DataSettings) -> String {
    let dir = directory(4, &[]);
    std::fs::write(dir.path().join("train.jsonl"), train.join("\n")).unwrap();
    Dataset::load(dir.path(), settings).unwrap_err().to_string()
}

#[test]
fn a_directory_is_read_as_it_is() {
    let dir = directory(
        4,
        &[
            json!({"task": "rec", "user": 7, "history": [0, "1"], "target": [2], "timestamp": 12.0}),
            json!({"task": "search", "history": [], "query": "tea", "target": ["3", 1], "negatives": [0]}),
            json!({"task": "prose", "text": "once upon a time"}),
        ],
    );
    write(dir.path(), "test-knowledge.jsonl", &[json!({"task": "search", "query": "q", "target": [0]})]);
    std::fs::write(dir.path().join("general.txt"), "one\ntwo\n").unwrap();
    let data = Dataset::load(dir.path(), &cue()).unwrap();
    assert_eq!(data.tasks, ["rec", "search", "prose"]);
    assert_eq!(data.items.len(), 4);
    assert_eq!(data.items.text(2), Some("title 2"));
    let expected = Record {
        task: 0,
        user: Some("7".into()),
        history: [0, 1].into(),
        target: [2].into(),
        timestamp: Some(12),
        ..Record::default()
    };
    assert_eq!(data.train.records[0], expected);
    assert_eq!(data.train.records[1].target.as_ref(), [3, 1]);
    assert_eq!(data.train.records[2].text.as_deref(), Some("once upon a time"));
    let names: Vec<&str> = data.tests().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["test", "knowledge"]);
    assert_eq!(data.general.len(), 1);
}

#[test]
fn every_bad_row_names_place_and_remedy() {
    // (the bad second line, what its message must contain)
    let cases: &[(&str, &[&str])] = &[
        (
            r#"{"task":"buy","history":[1],"target":[2]}"#,
            &["task", "unknown task `buy`", "rec, search", "template"],
        ),
        (r#"{"history":[1],"target":[2]}"#, &["task: missing"]),
        (r#"{"task":3,"history":[1],"target":[2]}"#, &["task: the number 3 instead of"]),
        (
            r#"{"task":"rec","history":[1,9],"target":[2]}"#,
            &["history[1]", "item `9` is not among the 4 items"],
        ),
        (r#"{"task":"rec","history":"1","target":[2]}"#, &["history: the string \"1\" instead of a list"]),
        (r#"{"task":"rec","history":[null],"target":[2]}"#, &["history[0]: null instead of an item"]),
        (r#"{"task":"rec","history":[1.5],"target":[2]}"#, &["history[0]: the number 1.5"]),
        (r#"{"task":"rec","history":[],"target":[2]}"#, &["history: empty, but the prompt of task `rec`"]),
        (
            r#"{"task":"search","history":[1],"target":[2]}"#,
            &["query: empty, but the prompt of task `search`"],
        ),
        (r#"{"task":"rec","history":[1],"target":[]}"#, &["target: missing or empty"]),
        (r#"{"task":"rec","history":[1],"target":[2,2]}"#, &["target", "listed twice"]),
        (r#"{"task":"rec","history":[1],"target":[2],"negatives":[2]}"#, &["negatives", "also a target"]),
        (
            r#"{"task":"rec","history":[1],"target":[2],"timestamp":"now"}"#,
            &["timestamp: the string \"now\""],
        ),
        (
            r#"{"task":"rec","history":[1],"target":[2],"timestamp":NaN}"#,
            &["not valid JSON", "JSON has no NaN"],
        ),
        (
            r#"{"task":"search","querry":"tea","target":[2]}"#,
            &["querry: unknown field", "did you mean `query`"],
        ),
        (r#"{"task":"search","query":["tea"],"target":[2]}"#, &["query: the list", "instead of a string"]),
        (r#"{"task":"rec","history":[1],"target":[2],"text":"x"}"#, &["history: a row with `text`"]),
        (r#"["rec"]"#, &["the list", "instead of an object"]),
        (r#"{"task":"rec""#, &["not valid JSON at column"]),
    ];
    let good = r#"{"task":"rec","history":[1],"target":[2]}"#;
    for (bad, wanted) in cases {
        let message = load_error(&[good, bad], &cue());
        assert!(message.contains("train.jsonl line 2"), "{bad}: {message}");
        assert!(message.contains("try: "), "{bad}: no remedy in {message}");
        for part in *wanted {
            assert!(message.contains(part), "{bad}: no {part:?} in {message}");
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_and_endless_lines_are_named() {
    let dir = directory(2, &[]);
    let path = dir.path().join("train.jsonl");
    std::fs::write(&path, b"{\"task\":\"rec\",\"user\":\"\xff\"}\n").unwrap();
    let message = Dataset::load(dir.path(), &cue()).unwrap_err().to_string();
    assert!(message.contains("line 1") && message.contains("not UTF-8 from byte 23"), "{message}");
    let mut long = vec![b'x'; (16 << 20) + 5];
    long.extend(b"\n{\"task\":\"rec\",\"history\":[0],\"target\":[1]}\n");
    std::fs::write(&path, long).unwrap();
    let message = Dataset::load(dir.path(), &cue()).unwrap_err().to_string();
    assert!(message.contains("line 1: longer than 16777216 bytes"), "{message}");
    // The line after it is read all the same.
    let tolerant = DataSettings { skip_bad_rows: 1, ..cue() };
    let data = Dataset::load(dir.path(), &tolerant).unwrap();
    assert_eq!((data.train.records.len(), data.skipped["line too long"]), (1, 1));
}

#[test]
fn bad_rows_are_skipped_up_to_the_limit_and_counted_by_reason() {
    let rows = [
        r#"{"task":"rec","history":[1],"target":[2]}"#,
        r#"{"task":"rec","history":[8],"target":[2]}"#,
        r#"{"task":"rec","history":[1],"target":[7]}"#,
        r#"not json"#,
    ];
    let dir = directory(4, &[]);
    std::fs::write(dir.path().join("train.jsonl"), rows.join("\n")).unwrap();
    let skip = |n| DataSettings { skip_bad_rows: n, ..cue() };
    let data = Dataset::load(dir.path(), &skip(3)).unwrap();
    assert_eq!(data.train.records.len(), 1);
    let expected = BTreeMap::from([("unknown item".to_string(), 2), ("not JSON".to_string(), 1)]);
    assert_eq!(data.skipped, expected);
    let message = Dataset::load(dir.path(), &skip(2)).unwrap_err().to_string();
    assert!(message.contains("2 bad rows were left out") && message.contains("line 4"), "{message}");
}

#[test]
fn items_and_directories_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |settings: &DataSettings| Dataset::load(dir.path(), settings).unwrap_err().to_string();
    assert!(error(&cue()).contains("no items.jsonl or items.parquet"));
    write(dir.path(), "items.jsonl", &[json!({"item": 1}), json!({"item": "1"})]);
    assert!(error(&cue()).contains("items.jsonl line 2: item: item `1` is listed twice"));
    write(dir.path(), "items.jsonl", &[json!({"item": "a\u{7}"})]);
    assert!(error(&cue()).contains("is not an item id"));
    write(dir.path(), "items.jsonl", &[json!({"item": "a", "text": 5})]);
    assert!(error(&cue()).contains("line 1: text: the number 5 instead of a string"));
    write(dir.path(), "items.jsonl", &[json!({"item": "a"})]);
    assert!(error(&cue()).contains("no records"));
    std::fs::write(dir.path().join("items.parquet"), b"PAR1 but not really PAR1").unwrap();
    assert!(error(&cue()).contains("both items.jsonl and items.parquet exist"));
    std::fs::remove_file(dir.path().join("items.jsonl")).unwrap();
    assert!(error(&cue()).contains("items.parquet: not a readable Parquet file"));
    let missing = dir.path().join("nowhere");
    assert!(Dataset::load(&missing, &cue()).unwrap_err().to_string().contains("nowhere"));
    let settings = DataSettings { tasks: vec!["rec".into()], ..cue() };
    let message = load_error(&[r#"{"task":"search","query":"q","target":[1]}"#], &settings);
    assert!(message.contains("add it to data.tasks"), "{message}");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let check = |change: fn(&mut DataSettings), part: &str| {
        let mut settings = DataSettings::default();
        change(&mut settings);
        let error = settings.validate().unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.exit_code(), 2);
    };
    check(|s| s.item_token = "<item>".into(), "data.item_token");
    check(|s| s.max_length = 3, "data.max_length");
    check(|s| s.general_held_out = f64::NAN, "data.general_held_out");
    check(|s| s.semantic.codes = 1, "data.semantic");
    check(|s| s.tasks = vec!["a".into(), "a".into()], "data.tasks");
    assert!(serde_json::from_value::<DataSettings>(json!({"promts": "cue"})).is_err());
}
