//! What is refused, where it says so, and what to do.

use super::{crossing, event, events, events_of, plain, prepare};
use gems_engine::prepare::{Events, Qilin, Settings, Source};
use std::fs;

#[test]
fn every_bad_row_names_its_place_and_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let good: String = crossing().iter().map(|r| format!("{r}\n")).collect();
    let late = r#""timestamp": 9"#;
    let cases: [(&str, String, &[&str]); 10] = [
        ("not JSON", "{\"user\": \"u\", oops}".into(), &["line 8", "column"]),
        (
            "not JSON",
            "{\"user\": \"u\", \"item\": \"A\", \"timestamp\": NaN}".into(),
            &["line 8", "JSON has no NaN"],
        ),
        ("not an object", "[1, 2]".into(), &["line 8", "`[1, 2]`"]),
        ("missing value", format!("{{\"item\": \"A\", {late}}}"), &["line 8", "user", "missing"]),
        ("missing value", "{\"user\": \"u\", \"item\": \"A\"}".into(), &["line 8", "timestamp", "missing"]),
        ("wrong type", format!("{{\"user\": [1], \"item\": \"A\", {late}}}"), &["line 8", "user", "[1]"]),
        (
            "wrong type",
            "{\"user\": \"u\", \"item\": \"A\", \"timestamp\": \"soon\"}".into(),
            &["timestamp", "\"soon\"", "2024-05-01"],
        ),
        (
            "mixed time units",
            "{\"user\": \"u\", \"item\": \"A\", \"timestamp\": 1700000000000}".into(),
            &["timestamp", "milliseconds", "a count"],
        ),
        ("bad id", format!("{{\"user\": \"u\", \"item\": \"a\\u0007b\", {late}}}"), &["item", "control"]),
        ("line too long", format!("\"{}\"", "x".repeat(17 << 20)), &["line 8", "longer"]),
    ];
    let path = dir.path().join("events.jsonl");
    let source = Source::Events(Box::new(events_of(vec![path.clone()])));
    for (number, (reason, line, parts)) in cases.iter().enumerate() {
        fs::write(&path, format!("{good}{line}\n")).unwrap();
        let error = prepare(&source, &plain(), &dir.path().join("none")).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 1, "{text}");
        assert!(text.contains("events.jsonl") && text.contains("try:"), "{number}: {text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{number}: no `{part}` in: {text}"));
        let out = dir.path().join(format!("out-{number}"));
        let card = prepare(&source, &Settings { skip_bad_rows: 1, ..plain() }, &out).unwrap();
        assert_eq!((card.read.bad[*reason].rows, card.read.rows), (1, 8), "{number}");
        fs::write(&path, format!("{good}{line}\n{line}\n")).unwrap();
        let more = prepare(&source, &Settings { skip_bad_rows: 1, ..plain() }, &dir.path().join("none"));
        assert!(more.unwrap_err().to_string().contains("1 bad rows were left out"), "{number}");
    }
    fs::write(&path, [good.as_bytes(), b"{\"user\": \"\xff\"}\n"].concat()).unwrap();
    let error = prepare(&source, &plain(), &dir.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("line 8") && error.contains("UTF-8"), "{error}");
}

#[test]
fn files_that_are_no_tables_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let fails = |name: &str, contents: &[u8], parts: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, contents).unwrap();
        let error = prepare(&Source::Events(Box::new(events_of(vec![path]))), &plain(), &none)
            .unwrap_err()
            .to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{name}: no `{part}` in: {error}"));
    };
    fails("a.csv", b"who,item,timestamp\nu,A,1\n", &["no column `user`", "who, item", "--columns"]);
    fails("b.csv", b"user,item,timestamp\nu,A\n", &["line 2", "2 fields instead of 3", "quotes"]);
    fails("c.csv", b"user,item,timestamp\nu,\xe9t\xe9,1\n", &["line 2", "item", "UTF-8"]);
    let open = [b"user,item,timestamp\nu,\"A,1\n".to_vec(), b"u,A,1\n".repeat(3 << 20)].concat();
    fails("open.csv", &open, &["open.csv", "a quote is left open"]);
    fails("d.xlsx", b"PK", &["d.xlsx", ".parquet"]);
    fails("e.parquet", b"not parquet", &["e.parquet", "Parquet"]);
    fails("f.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03cut", &["f.jsonl.gz"]);
    fails("g.jsonl", b"", &["g.jsonl", "no rows"]);
    let missing = Source::Qilin(Qilin { dir: dir.path().into(), contents: false });
    assert!(prepare(&missing, &plain(), &none).unwrap_err().to_string().contains("search_train"));
}

#[test]
fn bad_literals_repeated_items_and_catalogues_that_are_too_big() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let head = "user_idx,query,recent_clicked_note_idxs,search_result_details_with_idx\n";
    let qilin = |cells: &str| {
        fs::write(dir.path().join("search_train.csv"), format!("{head}{cells}\n")).unwrap();
        let source = Source::Qilin(Qilin { dir: dir.path().into(), contents: false });
        prepare(&source, &plain(), &none).unwrap_err().to_string()
    };
    let results = "\"[{'note_idx': 1, 'click': 1, 'search_timestamp': 5}]\"";
    for (cells, parts) in [
        (format!("1,q,[1 ... 9],{results}"), ["recent_clicked_note_idxs", "abbreviated"]),
        (format!("1,q,[1 inf],{results}"), ["`inf` is no measurement", "character 4"]),
        (format!("1,q,[nan],{results}"), ["recent_clicked_note_idxs[0]", "null instead of the number"]),
        ("1,q,[],\"[{'note_idx': 1, 'click': 1}\"".into(), ["search_result_details_with_idx", "cut off"]),
        ("1,q,[],\"[{'note_idx': 1, 'click': 1}]\"".into(), ["search_timestamp", "missing"]),
        (
            "1,q,[],\"[{'note_idx': 1, 'click': 'yes', 'search_timestamp': 5}]\"".into(),
            ["[0].click", "0 or 1"],
        ),
    ] {
        let error = qilin(&cells);
        assert!(error.contains("line 2") && error.contains("try:"), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "no `{part}` in: {error}"));
    }
    let items = dir.path().join("items.jsonl");
    fs::write(&items, "{\"item\": \"A\", \"text\": \"a\"}\n{\"item\": \"A\", \"text\": \"b\"}\n").unwrap();
    let Source::Events(table) = events(dir.path(), &crossing()) else { unreachable!() };
    let twice = Source::Events(Box::new(Events { items: vec![items], ..*table }));
    let error = prepare(&twice, &plain(), &none).unwrap_err().to_string();
    assert!(error.contains("items.jsonl line 2") && error.contains("`A` is listed twice"), "{error}");
    let error =
        prepare(&events(dir.path(), &crossing()), &Settings { max_items: 3, ..plain() }, &none).unwrap_err();
    assert!(error.to_string().contains("4 items are more than 3"), "{error}");
    let two = [event("u", 1, "A", None), event("u", 2, "B", None)];
    let error = prepare(&events(dir.path(), &two), &plain(), &none).unwrap_err().to_string();
    assert!(error.contains("no valid rows are left") && error.contains("history too short"), "{error}");
}
