//! What values are: words, ids and times of every type, against pyarrow, pandas and datetime.

use super::dialects::{columns, expected, fixture, items, plain, prepare, reading, rows};
use gems_engine::prepare::{Events, Settings, SplitRule};
use std::fs;

#[test]
fn a_word_is_a_word_and_nothing_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let words = ["nan", "NaN", "None", "null", "NULL", "NaT", "true", "1e5", "007", "1.0", "1"];
    let csv: String = words.iter().enumerate().map(|(t, w)| format!("{w},{w},{t},{w}\n")).collect();
    let json: String = words
        .iter()
        .enumerate()
        .map(|(t, w)| {
            format!("{{\"user\": \"{w}\", \"item\": \"{w}\", \"timestamp\": {t}, \"query\": \"{w}\"}}\n")
        })
        .collect();
    for (name, text) in [("log.csv", format!("user,item,timestamp,query\n{csv}")), ("log.jsonl", json)] {
        fs::write(dir.path().join(name), text).unwrap();
        let events = Events { files: vec![dir.path().join(name)], ..Events::default() };
        let split = SplitRule::Time { valid: 0.2, test: 0.2, valid_from: None, test_from: None };
        let card = prepare(events, &Settings { split, ..plain() }, &out).unwrap();
        assert_eq!((card.core.users, card.core.items), (words.len() as u64, words.len() as u64), "{name}");
        let found: Vec<(String, String)> = rows(&out).into_iter().map(|r| (r.item, r.query)).collect();
        let want: Vec<(String, String)> = words.iter().map(|w| (w.to_string(), w.to_string())).collect();
        assert_eq!(found, want, "{name}");
        assert!(card.warnings.iter().any(|w| w.contains("`null`") && w.contains("--missing")), "{name}");
    }
    // Nothing, blanks and \N are no ids; a word is none where it is said.
    for (field, missing) in [("", false), ("  ", false), ("\\N", false), ("NA", true)] {
        fs::write(dir.path().join("log.csv"), format!("user,item,timestamp\nu,a,1\nu,{field},2\n")).unwrap();
        let reading = reading(|r| r.missing = if missing { vec!["NA".into()] } else { Vec::new() });
        let events = Events { files: vec![dir.path().join("log.csv")], reading, ..Events::default() };
        let error = prepare(events, &plain(), &out).unwrap_err().to_string();
        assert!(error.contains("line 3: item: missing or empty"), "{field:?}: {error}");
    }
}

#[test]
fn a_word_that_is_said_to_be_none_is_none_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let row = |t: usize, query: &str| serde_json::json!({"user": "u", "item": format!("{t}.0"), "timestamp": t, "query": query});
    let rows_of = ["red", "NA", "-", "blue", "green"];
    let json: String = rows_of.iter().enumerate().map(|(t, q)| format!("{}\n", row(t, q))).collect();
    let csv: String = rows_of.iter().enumerate().map(|(t, q)| format!("u,{t},{t},{q}\n")).collect();
    for (name, text) in [("log.jsonl", json), ("log.csv", format!("user,item,timestamp,query\n{csv}"))] {
        fs::write(dir.path().join(name), text).unwrap();
        let reading = reading(|r| r.missing = vec!["NA".into(), "-".into()]);
        let events = Events { files: vec![dir.path().join(name)], reading, ..Events::default() };
        prepare(events, &plain(), &out).unwrap();
        let found: Vec<String> = rows(&out).into_iter().map(|r| r.query).collect();
        assert_eq!(found.iter().filter(|q| q.is_empty()).count(), 2, "{name}: {found:?}");
        assert!(["red", "blue", "green"].iter().all(|q| found.contains(&q.to_string())), "{name}: {found:?}");
    }
    // Nor does such a word keep integers that were written as floats from being integers.
    fs::write(
        dir.path().join("log.csv"),
        "user,item,timestamp\nu,1.0,1\nu,NA,2\nu,2.0,3\nu,3.0,4\nu,4.0,5\n",
    )
    .unwrap();
    let reading = reading(|r| r.missing = vec!["NA".into()]);
    let events = Events { files: vec![dir.path().join("log.csv")], reading, ..Events::default() };
    prepare(events, &Settings { skip_bad_rows: 1, ..plain() }, &out).unwrap();
    assert_eq!(items(&out), ["1", "2", "3", "4"]);
}

#[test]
fn ids_of_every_type_are_what_pyarrow_says_they_are() {
    let (dir, expected) = (tempfile::tempdir().unwrap(), expected());
    for (column, want) in expected["parquet ids"].as_object().unwrap() {
        let out = dir.path().join(column);
        let columns = columns(&["user=who", "timestamp=n", &format!("item={column}")]);
        let events = Events { files: vec![fixture("types.parquet")], columns, ..Events::default() };
        let settings = Settings { exclude_pairs: false, ..plain() };
        prepare(events, &settings, &out).unwrap_or_else(|e| panic!("{column}: {e}"));
        let want: Vec<String> = serde_json::from_value(want.clone()).unwrap();
        assert_eq!(items(&out), want, "{column}");
    }
    let nested = columns(&["user=who", "timestamp=n", "query=string", "item=nested.user.id"]);
    let events = |columns| Events { files: vec![fixture("types.parquet")], columns, ..Events::default() };
    let error = prepare(events(nested.clone()), &plain(), &dir.path().join("x")).unwrap_err().to_string();
    assert!(error.contains("row 3: nested.user.id: missing or empty"), "{error}");
    let card =
        prepare(events(nested), &Settings { skip_bad_rows: 1, ..plain() }, &dir.path().join("x")).unwrap();
    assert_eq!((card.read.rows, card.core.items), (4, 3));
    assert_eq!(items(&dir.path().join("x")), ["n0", "n1", "n3"]);
}

#[test]
fn large_integers_are_ids_and_large_floats_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.jsonl");
    let out = dir.path().join("out");
    let log = |ids: &[&str]| {
        let row = |(t, id): (usize, &&str)| format!("{{\"user\": 1, \"item\": {id}, \"timestamp\": {t}}}\n");
        fs::write(&path, ids.iter().enumerate().map(row).collect::<String>()).unwrap();
        prepare(Events { files: vec![path.clone()], ..Events::default() }, &plain(), &out)
    };
    log(&["18446744073709551615", "9223372036854775808", "-9223372036854775808", "12.0"]).unwrap();
    assert_eq!(items(&out), ["18446744073709551615", "9223372036854775808", "-9223372036854775808", "12"]);
    for (id, said) in [
        ("18446744073709551616", "too large to be an exact integer"),
        ("9007199254740993.0", "too large to be an exact integer"),
        ("1.5", "the number 1.5 instead of a string or an integer"),
        ("true", "the boolean true instead of a string or an integer"),
        ("{\"a\": 1}", "instead of a string or an integer"),
        ("[1, 2]", "timestamp: the number 1 instead of a list of as many times as items"),
    ] {
        let error = log(&["1", id]).unwrap_err().to_string();
        assert!(error.contains("line 2: ") && error.contains(said), "{id}: {error}");
    }
    // As Excel and pandas write long integers that have become floats.
    for id in ["1.23457E+15", "1.8446744073709552e+19"] {
        fs::write(dir.path().join("sheet.csv"), format!("user,item,timestamp\nu,{id},1\n")).unwrap();
        let events = Events { files: vec![dir.path().join("sheet.csv")], ..Events::default() };
        let error = prepare(events, &plain(), &out).unwrap_err().to_string();
        assert!(error.contains("has rounded"), "{error}");
    }
}

#[test]
fn integers_that_a_data_frame_wrote_as_floats_are_integers() {
    let (dir, expected) = (tempfile::tempdir().unwrap(), expected());
    let out = dir.path().join("out");
    let path = fixture("float-ids.csv");
    let card = prepare(Events { files: vec![path], ..Events::default() }, &plain(), &out).unwrap();
    let want: Vec<String> = serde_json::from_value(expected["float-ids.csv"].clone()).unwrap();
    assert_eq!(items(&out).last(), want.last());
    assert_eq!(card.core.items, 4);
    assert!(card.read.files.contains_key("CSV, ids written as floats"), "{:?}", card.read.files);
    // Versions are no floats: one is enough to tell.
    let versions = dir.path().join("versions.csv");
    fs::write(&versions, "user,item,timestamp\nu,1.0,1\nu,1,2\nu,1.1,3\nu,2.0,4\n").unwrap();
    prepare(Events { files: vec![versions], ..Events::default() }, &plain(), &out).unwrap();
    assert_eq!(items(&out), ["1.0", "1", "1.1", "2.0"]);
}

#[test]
fn times_are_what_datetime_makes_of_them() {
    let (dir, expected) = (tempfile::tempdir().unwrap(), expected());
    let (path, out) = (dir.path().join("log.csv"), dir.path().join("out"));
    let events = || Events { files: vec![path.clone()], ..Events::default() };
    let mut want: Vec<(i64, String)> = Vec::new();
    let mut text = String::from("user,item,timestamp,query\n");
    for (number, (time, microseconds)) in expected["times"].as_object().unwrap().iter().enumerate() {
        text += &format!("u{number},i{number},\"{time}\",{time}\n");
        want.push((microseconds.as_i64().unwrap(), time.clone()));
    }
    fs::write(&path, &text).unwrap();
    let split = SplitRule::Time { valid: 0.2, test: 0.2, valid_from: None, test_from: None };
    let settings = Settings { split, ..plain() };
    prepare(events(), &settings, &out).unwrap();
    want.sort();
    let found: Vec<(i64, String)> = rows(&out).into_iter().map(|r| (r.time, r.query)).collect();
    assert_eq!(found, want, "in microseconds, since some have them");
    for time in expected["impossible"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()) {
        fs::write(&path, format!("user,item,timestamp\nu,a,2024-01-01\nu,b,{time}\n")).unwrap();
        let error = prepare(events(), &settings, &out).unwrap_err().to_string();
        assert!(error.contains("line 3: timestamp") && error.contains("there is no such"), "{time}: {error}");
    }
    for time in [
        "05/01/2024 12:30",
        "May 1, 2024",
        "2024-5-1",
        "soon",
        "2024-05-01 12:30 PM",
        "--",
        "2024-05-01T",
        "2024-05-01T12:30:00+25:00",
        "2024-05-01T12:30:00-02:75",
        "9999-12-31",
    ] {
        fs::write(&path, format!("user,item,timestamp\nu,a,2024-01-01\nu,b,\"{time}\"\n")).unwrap();
        let error = prepare(events(), &settings, &out).unwrap_err().to_string();
        assert!(error.contains("line 3: timestamp"), "{time}: {error}");
    }
}

#[test]
fn fractions_of_a_second_keep_their_order_in_every_unit() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("log.csv"), dir.path().join("out"));
    // (times as written, times as they come out)
    let cases: [(&[&str], &[i64]); 6] = [
        (&["1714566600.25", "1714566600.5", "1714566600", "1714566600.75"], &[0, 250, 500, 750]),
        (&["1714566600.000002", "1714566600.000001", "1714566600", "1714566601"], &[0, 1, 2, 1_000_000]),
        (&["1714566600", "1714566601", "1714566602.0", "1714566603"], &[0, 1, 2, 3]),
        (&["1714566600250", "1714566600500", "1714566600000", "1714566600750"], &[0, 250, 500, 750]),
        (&["0.5", "0.25", "0", "3"], &[0, 250, 500, 3000]),
        (&["3", "1", "0", "2"], &[0, 1, 2, 3]),
    ];
    for (times, want) in cases {
        let row = |(n, time): (usize, &&str)| format!("u,i{n},{time},q{n}\n");
        let text: String = times.iter().enumerate().map(row).collect();
        fs::write(&path, format!("user,item,timestamp,query\n{text}")).unwrap();
        prepare(Events { files: vec![path.clone()], ..Events::default() }, &plain(), &out).unwrap();
        let found: Vec<i64> = rows(&out).iter().map(|r| r.time).collect();
        let first = found[0];
        assert_eq!(found.iter().map(|t| t - first).collect::<Vec<_>>(), want, "{times:?}");
    }
}

#[test]
fn times_that_parquet_types_are_exact() {
    let (dir, expected) = (tempfile::tempdir().unwrap(), expected());
    let out = dir.path().join("out");
    for column in ["timestamp[s]", "timestamp[ms]", "timestamp[us, UTC]", "timestamp[ns]", "date32", "date64"]
    {
        let columns = columns(&["user=who", "item=n", "query=string", &format!("timestamp={column}")]);
        let events = Events { files: vec![fixture("types.parquet")], columns, ..Events::default() };
        prepare(events, &plain(), &out).unwrap_or_else(|e| panic!("{column}: {e}"));
        let want: Vec<i64> = serde_json::from_value(expected["parquet times"][column].clone()).unwrap();
        let found: Vec<i64> = rows(&out).iter().map(|r| r.time).collect();
        // In the unit that the file has: seconds to nanoseconds.
        let nanoseconds = want[0] * 1000 / found[0];
        assert!([1, 1000, 1_000_000, 1_000_000_000].contains(&nanoseconds), "{column}: {found:?}");
        assert!(found.iter().zip(&want).all(|(f, w)| f * nanoseconds == w * 1000), "{column}: {found:?}");
    }
}
