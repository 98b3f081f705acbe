//! `prepare events`: every dialect, encoding and type, against what Python's csv, datetime, pandas and pyarrow make of
//! the same files (`tests/fixtures/dialects/make.py`).

use gems_engine::error::Result;
use gems_engine::prepare::{Card, EventColumns, Events, Reading, Settings, Source, Target, Watch, run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub(super) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialects").join(name)
}

pub(super) fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(fixture("expected.json")).unwrap()).unwrap()
}

pub(super) fn columns(assignments: &[&str]) -> EventColumns {
    let mut columns = EventColumns::default();
    assignments.iter().for_each(|a| columns.set(a).unwrap());
    columns
}

/// Nothing is filtered, and no negatives.
pub(super) fn plain() -> Settings {
    let mut settings = Settings { max_history: 1000, ..Settings::default() };
    (settings.core.user, settings.core.item) = (1, 1);
    settings.negatives.set("none").unwrap();
    settings
}

pub(super) fn prepare(events: Events, settings: &Settings, out: &Path) -> Result<Card> {
    let interrupted = AtomicBool::new(false);
    let target = Target { out: out.into(), overwrite: true, general: None };
    let mut watch = Watch { tick: &mut |_, _, _| {}, interrupted: &interrupted };
    run(&Source::Events(Box::new(events)), settings, &target, &mut watch)
}

/// The events of a log as they were understood: of every row its item, query and time, in the order of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub item: String,
    pub query: String,
    pub time: i64,
}

/// All rows that were written. Every event of a user has a query or history here, but the first without a query.
pub(super) fn rows(out: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    for split in ["train", "valid", "test"] {
        let text = fs::read_to_string(out.join(format!("{split}.jsonl"))).unwrap();
        for row in text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()) {
            rows.push(Row {
                item: row["target"][0].as_str().unwrap().into(),
                query: row["query"].as_str().unwrap_or_default().into(),
                time: row["timestamp"].as_i64().unwrap(),
            });
        }
    }
    rows.sort_by_key(|r| r.time);
    rows
}

/// Ids and times of a log of one user, the first event included: it stands in the last row's history.
pub(super) fn items(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("test.jsonl")).unwrap();
    let row: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let list =
        |key: &str| row[key].as_array().unwrap().iter().map(|i| i.as_str().unwrap().to_string()).collect();
    let mut all: Vec<String> = list("history");
    all.extend::<Vec<String>>(list("target"));
    all
}

pub(super) fn queries(out: &Path) -> BTreeMap<String, String> {
    rows(out).into_iter().map(|r| (r.item, r.query)).collect()
}

pub(super) fn reading(set: impl FnOnce(&mut Reading)) -> Reading {
    let mut reading = Reading::default();
    set(&mut reading);
    reading
}

#[test]
fn delimited_text_says_what_pythons_csv_reads() {
    let (dir, expected) = (tempfile::tempdir().unwrap(), expected());
    let told = Reading::default;
    let encoded = |name: &str| reading(|r| r.encoding = Some(name.into()));
    let cases = [
        ("comma.csv", told(), "CSV"),
        ("lines-crlf.csv", told(), "CSV"),
        ("semicolon.csv", told(), "text separated by `;`"),
        ("pipe.txt", told(), "text separated by `|`"),
        ("all-quoted.csv", told(), "CSV"),
        ("escaped.csv", reading(|r| r.escapes = true), "text separated by `;`, backslash escapes"),
        ("tab.tsv", told(), "TSV"),
        ("tab-quoted.tsv", reading(|r| r.quotes = Some(true)), "text separated by a tab, quoted"),
        ("utf-16.csv", told(), "CSV"),
        ("utf-8-bom.csv", told(), "CSV"),
        ("latin-1.csv", encoded("latin1"), "CSV, windows-1252"),
        ("gbk.csv", encoded("gbk"), "CSV, gbk"),
    ];
    for (name, reading, form) in cases {
        let out = dir.path().join(name);
        let events = Events { files: vec![fixture(name)], reading, ..Events::default() };
        let card = prepare(events, &plain(), &out).unwrap_or_else(|e| panic!("{name}: {e}"));
        let want: BTreeMap<String, String> = serde_json::from_value(expected[name].clone()).unwrap();
        assert_eq!(card.read.rows, want.len() as u64, "{name}");
        assert_eq!(card.read.files, BTreeMap::from([(form.to_string(), 1)]), "{name}");
        for (item, query) in queries(&out) {
            assert_eq!(query, want[&item], "{name}: {item}");
        }
        assert_eq!(rows(&out).len(), want.len(), "{name}");
    }
}

#[test]
fn what_is_not_utf8_is_refused_with_what_it_might_be() {
    let dir = tempfile::tempdir().unwrap();
    for (name, guess) in [("latin-1.csv", "windows-1252 reads \"é"), ("gbk.csv", "gbk reads \"红")] {
        let events = Events { files: vec![fixture(name)], ..Events::default() };
        let error = prepare(events, &plain(), &dir.path().join("out")).unwrap_err().to_string();
        for part in [name, "line ", "query: not UTF-8", "--encoding", guess] {
            assert!(error.contains(part), "{name}: no `{part}` in {error}");
        }
    }
    // GBK is no UTF-8, and Latin-1's é no GBK.
    let events = |name: &str, encoding: &str| Events {
        files: vec![fixture(name)],
        reading: reading(|r| r.encoding = Some(encoding.into())),
        ..Events::default()
    };
    let error =
        prepare(events("latin-1.csv", "gbk"), &plain(), &dir.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("latin-1.csv") && error.contains("is not GBK"), "{error}");
    let error =
        prepare(events("utf-16.csv", "gbk"), &plain(), &dir.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("the file says that it is UTF-16LE"), "{error}");
    let error = prepare(events("comma.csv", "klingon"), &plain(), &dir.path().join("out")).unwrap_err();
    assert!(
        error.exit_code() == 2 && error.to_string().contains("--encoding: no encoding `klingon`"),
        "{error}"
    );
    let bare: Vec<u8> = "user,item,timestamp\nu,a,1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(dir.path().join("bare.csv"), &bare).unwrap();
    let events = Events { files: vec![dir.path().join("bare.csv")], ..Events::default() };
    let error = prepare(events, &plain(), &dir.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("UTF-16 without a byte order mark") && error.contains("utf-16le"), "{error}");
}

#[test]
fn utf8_that_is_called_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = fixture("latin-1.csv");
    let rows =
        ["item,text\n".to_string(), (1..40).map(|i| format!("i{i},sofá número {i}\n")).collect()].concat();
    let items = dir.path().join("items.csv");
    for rest in ["", "i90,\u{1f6cb}\n"] {
        fs::write(&items, format!("{rows}{}{rest}", "# ".repeat(9) + "\n")).unwrap();
        for encoding in ["latin1", "gbk", "windows-1251"] {
            let events = Events {
                files: vec![fixture("comma.csv")],
                items: vec![items.clone()],
                item_reading: Some(reading(|r| r.encoding = Some(encoding.into()))),
                ..Events::default()
            };
            let error = prepare(events, &plain(), &dir.path().join("out")).unwrap_err().to_string();
            assert!(
                error.contains("items.csv") && error.contains("this is UTF-8, not"),
                "{encoding}: {error}"
            );
        }
    }
    // A log in Latin-1 beside items in UTF-8: for both together neither fits, for each its own does.
    fs::write(&items, &rows).unwrap();
    let with = |flags: &[&str]| {
        let mut command = crate::cli::engine();
        command.current_dir(dir.path()).args(["prepare", "events", "--min-user", "1", "--min-item", "1"]);
        command.args(["--negatives", "none", "--overwrite", "--out", "both", "--items", "items.csv"]);
        command.arg(&log).args(flags).assert()
    };
    let said = |flags: &[&str], code: i32, part: &str| {
        let text = String::from_utf8(with(flags).code(code).get_output().stderr.clone()).unwrap();
        assert!(text.contains(part), "{flags:?}: {text}");
    };
    said(&["--encoding", "latin1"], 1, "this is UTF-8, not windows-1252: all 78 characters");
    said(&["--encoding", "latin1", "--encoding", "gbk"], 2, "`latin1` and `gbk` for the same tables");
    said(&["--encoding", "events=latin1", "--header", "items=perhaps"], 2, "neither on nor off");
    said(&["--encoding", "events=latin1", "--quotes", "queries=on"], 2, "--quotes");
    with(&["--encoding", "events=latin1"]).success();
    with(&["--encoding", "latin1", "--encoding", "items=utf-8"]).success();
    let written = fs::read_to_string(dir.path().join("both/items.jsonl")).unwrap();
    assert!(written.contains("sofá número") && !written.contains("Ã"), "{written}");
}

#[test]
fn tables_of_one_command_are_read_each_in_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..8).map(|t| format!("u;i{t};{t}\n")).collect();
    fs::write(dir.path().join("log.txt"), format!("user;item;timestamp\n{rows}")).unwrap();
    // A text that holds the log's separator, and no header.
    let titles: String = (0..8).map(|i| format!("i{i}|one; two, {i}\n")).collect();
    fs::write(dir.path().join("items.txt"), titles).unwrap();
    let mut command = crate::cli::engine();
    command.current_dir(dir.path()).args(["prepare", "events", "log.txt", "--items", "items.txt"]);
    command.args(["--min-user", "1", "--min-item", "1", "--negatives", "none", "--out", "out"]);
    command.args(["--separator", ";", "--separator", "items=|", "--item-columns", "item=1,text=2"]);
    command.assert().success();
    let items = fs::read_to_string(dir.path().join("out/items.jsonl")).unwrap();
    assert!(items.contains("\"one; two, 3\""), "{items}");
    // Rows of JSON without names.
    let lists: String = (0..8).map(|t| format!("[\"u\", \"i{t}\", {t}]\n")).collect();
    fs::write(dir.path().join("lists.txt"), lists).unwrap();
    let events = Events { files: vec![dir.path().join("lists.txt")], ..Events::default() };
    let error = prepare(events, &plain(), &dir.path().join("no")).unwrap_err().to_string();
    assert!(error.contains("lists.txt: the rows are JSON lists"), "{error}");
}

#[test]
fn a_long_text_says_the_same_in_every_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("log.csv"), dir.path().join("out"));
    let words = ["日本", "中", "a人", "大 b", "x"];
    let query = |t: usize| [words[t % 5], words[t / 5 % 5], words[t / 25 % 5]].concat();
    let settings = Settings { max_history: 1, ..plain() };
    // More than is decoded at once, and a byte more at the beginning each time.
    for shift in 0..3 {
        let body: String = (0..3000).map(|t| format!("u,i{t},{t},{}\n", query(t))).collect();
        let text = format!("user,item,timestamp,query{}\n{body}", "x".repeat(shift));
        let units = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        let with = |encoding: &'static encoding_rs::Encoding| encoding.encode(&text).0.into_owned();
        let cases = [
            (units(u16::to_le_bytes), "utf-16le"),
            (units(u16::to_be_bytes), "utf-16be"),
            (with(encoding_rs::GBK), "gbk"),
            (with(encoding_rs::GB18030), "gb18030"),
            (with(encoding_rs::SHIFT_JIS), "shift_jis"),
            (with(encoding_rs::BIG5), "big5"),
            (with(encoding_rs::EUC_JP), "euc-jp"),
        ];
        for (bytes, name) in cases {
            fs::write(&path, bytes).unwrap();
            let columns = columns(&[&format!("query=query{}", "x".repeat(shift))]);
            let reading = reading(|r| r.encoding = Some(name.into()));
            let events = Events { files: vec![path.clone()], columns, reading, ..Events::default() };
            prepare(events, &settings, &out).unwrap_or_else(|e| panic!("{name}: {e}"));
            let found = rows(&out);
            assert_eq!(found.len(), 3000, "{name}");
            let wrong = found.iter().enumerate().find(|(t, row)| row.query != query(*t));
            assert_eq!(wrong, None, "{name}");
        }
    }
}

#[test]
fn quotes_that_do_not_fit_are_an_error_and_cost_one_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.csv");
    let events = || Events { files: vec![path.clone()], ..Events::default() };
    let out = dir.path().join("out");
    // Python's csv takes the third to the fifth line for one row of four fields, unless it is strict.
    let text =
        "user,item,timestamp,query\nu,a,1,x\nu,b,2,\"5 inch\nu,c,3,y\nu,d,4,the \"best\" tv\nu,e,5,z\n";
    fs::write(&path, text).unwrap();
    let error = prepare(events(), &plain(), &out).unwrap_err().to_string();
    assert!(error.contains("log.csv line 3") && error.contains("--quotes off"), "{error}");
    // One row is lost, those behind it are not.
    let card = prepare(events(), &Settings { skip_bad_rows: 1, ..plain() }, &out).unwrap();
    assert_eq!((card.read.rows, card.read.bad["stray quote"].rows), (5, 1));
    let found: Vec<String> = rows(&out).into_iter().map(|r| r.item + " " + &r.query).collect();
    assert_eq!(found, ["a x", "c y", "d the \"best\" tv", "e z"]);
    let off = Events { reading: reading(|r| r.quotes = Some(false)), ..events() };
    prepare(off, &plain(), &out).unwrap();
    assert_eq!(queries(&out)["b"], "\"5 inch");
    // A quote that stays open to the end of the file.
    fs::write(&path, "user,item,timestamp,query\nu,a,1,x\nu,b,2,y\nu,c,3,\"z\nu,d,4,x\n").unwrap();
    let error = prepare(events(), &plain(), &out).unwrap_err().to_string();
    assert!(error.contains("line 4: a quote is left open in field 4"), "{error}");
    let card = prepare(events(), &Settings { skip_bad_rows: 1, ..plain() }, &out).unwrap();
    assert_eq!((card.read.rows, rows(&out).len()), (4, 3));
}

#[test]
fn a_tab_separated_table_has_no_quotes_and_may_end_its_lines_with_tabs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.tsv");
    let text =
        "user\titem\ttimestamp\tquery\nu\ta\t1\t12\" lamp\t\nu\tb\t2\t\"tv\nu\tc\t3\tx\nu\td\t4\t\"y\"\n";
    fs::write(&path, text).unwrap();
    let out = dir.path().join("out");
    let events = || Events { files: vec![path.clone()], ..Events::default() };
    let card = prepare(events(), &plain(), &out).unwrap();
    let found: Vec<String> = rows(&out).into_iter().map(|r| r.query).collect();
    assert_eq!(found, ["12\" lamp", "\"tv", "x", "\"y\""]);
    // Somebody may have meant them otherwise.
    assert!(card.warnings.iter().any(|w| w.contains("--quotes on") && w.contains("log.tsv")));
    fs::write(&path, format!("{text}u\te\t5\tz\tand more\n")).unwrap();
    let error = prepare(events(), &plain(), &out).unwrap_err().to_string();
    assert!(error.contains("line 6: 5 fields instead of 4") && error.contains("a tab separates"), "{error}");
    assert!(!error.contains("comma") && !error.contains("double quotes"), "{error}");
}

#[test]
fn json_is_read_however_it_is_laid_out() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let row = |t: i64| serde_json::json!({"who": {"id": "u", "tags": [{"n": 1}, {"n": t}]}, "item": format!("i{t}"), "timestamp": t, "query": "q"});
    let all: Vec<Value> = (0..5).map(row).collect();
    let lines = |f: &dyn Fn(&Value) -> String| all.iter().map(f).collect::<Vec<_>>();
    let mut by_key = serde_json::Map::new();
    all.iter().for_each(|r| drop(by_key.insert(r["item"].as_str().unwrap().into(), r.clone())));
    let python = |r: &Value| {
        let time = &r["timestamp"];
        format!(
            "{{u'who': {{'id': u'u'}}, 'item': \"i{time}\", 'timestamp': {time}, 'query': 'q', 'none': None}}"
        )
    };
    let cases = [
        ("lines.jsonl", lines(&Value::to_string).join("\n"), "JSON, an object a line"),
        ("lines.log", lines(&Value::to_string).join("\n\n  "), "JSON, an object a line"),
        (
            "list.json",
            format!("\n[{}]\n", lines(&|r| format!("{r:#}")).join(",\n")),
            "JSON, a list of objects",
        ),
        ("stream.json", lines(&|r| format!("{r:#}")).join("\n"), "JSON, objects of several lines"),
        ("python.json", lines(&python).join("\n"), "JSON, an object a line"),
        ("map.json", format!("{:#}", Value::Object(by_key)), "JSON, an object of rows"),
    ];
    for (name, text, form) in cases {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let item = if name == "map.json" { "item=@key" } else { "item=item" };
        let columns = columns(&["user=who.id", item]);
        let events = Events { files: vec![path], columns, ..Events::default() };
        let card = prepare(events, &plain(), &out).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(card.read.files.keys().collect::<Vec<_>>(), [form], "{name}");
        assert_eq!(
            rows(&out).iter().map(|r| r.item.as_str()).collect::<Vec<_>>(),
            ["i0", "i1", "i2", "i3", "i4"]
        );
    }
    // Elements of lists by number, and what to say when a row is none.
    let nested = columns(&["user=who.id", "timestamp=who.tags.1.n"]);
    let events = |name: &str| Events {
        files: vec![dir.path().join(name)],
        columns: nested.clone(),
        ..Events::default()
    };
    prepare(events("lines.jsonl"), &plain(), &out).unwrap();
    assert_eq!(rows(&out).iter().map(|r| r.time).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    // A value that is wanted itself, and of which a part is.
    let both = columns(&["user=who.id", "timestamp=who.tags.1.n", "query=path.1", "history=path"]);
    let text: String = (0..5)
        .map(|t| {
            let tags = serde_json::json!([{"n": 0}, {"n": t}]);
            let who = serde_json::json!({"id": "u", "tags": tags});
            let row = serde_json::json!({"who": who, "item": format!("i{t}"), "path": ["i0", "i1"]});
            format!("{row}\n")
        })
        .collect();
    fs::write(dir.path().join("both.jsonl"), text).unwrap();
    let events_of_both = Events { columns: both, ..events("both.jsonl") };
    let settings = Settings { history: gems_engine::prepare::HistoryRule::Log, ..plain() };
    prepare(events_of_both, &settings, &out).unwrap();
    let train = fs::read_to_string(out.join("train.jsonl")).unwrap();
    let third: Value = serde_json::from_str(train.lines().nth(2).unwrap()).unwrap();
    assert_eq!((&third["query"], &third["history"]), (&"i1".into(), &serde_json::json!(["i0", "i1"])));
    fs::write(dir.path().join("list.json"), format!("[{}, 7]", all[0])).unwrap();
    let error = prepare(events("list.json"), &plain(), &out).unwrap_err().to_string();
    assert!(error.contains("row 2: the number 7 instead of an object"), "{error}");
    fs::write(dir.path().join("list.json"), format!("[{}, {{\"who\"", all[0])).unwrap();
    let error = prepare(events("list.json"), &plain(), &out).unwrap_err().to_string();
    assert!(error.contains("list.json: not valid JSON"), "{error}");
    let wrong = Events { columns: columns(&["user=who.name"]), ..events("lines.jsonl") };
    let error = prepare(wrong, &plain(), &out).unwrap_err().to_string();
    assert!(error.contains("no field `who.name`; there are: who, who.id"), "{error}");
}

#[test]
fn a_list_of_items_is_an_event_each() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("log.jsonl"), dir.path().join("out"));
    let write = |row: &str| fs::write(&path, format!("{row}\n")).unwrap();
    let events = |row_order| Events { files: vec![path.clone()], row_order, ..Events::default() };
    write("{\"user\": \"u\", \"item\": [3, 1, 4, 1, 5], \"query\": \"q\"}");
    prepare(events(true), &Settings { exclude_pairs: false, ..plain() }, &out).unwrap();
    assert_eq!(items(&out), ["3", "1", "4", "1", "5"]);
    write(
        "{\"user\": \"u\", \"item\": [\"c\", \"a\", \"b\"], \"timestamp\": [30, 10, 20], \"query\": \"q\"}",
    );
    prepare(events(false), &plain(), &out).unwrap();
    assert_eq!(
        rows(&out).iter().map(|r| (r.item.as_str(), r.time)).collect::<Vec<_>>(),
        [("a", 10), ("b", 20), ("c", 30)]
    );
    write("{\"user\": \"u\", \"item\": [1, 2], \"timestamp\": [1], \"query\": \"q\"}");
    let error = prepare(events(false), &plain(), &out).unwrap_err().to_string();
    assert!(
        error.contains("line 1: timestamp: the list [1] instead of a list of as many times as items"),
        "{error}"
    );
}

#[test]
fn a_spreadsheets_first_line_may_say_what_separates() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("log.csv"), dir.path().join("out"));
    for (head, separator) in [("sep=;", ";"), ("sep=\t", "\t"), ("sep=|", "|")] {
        let row = |t: usize| ["u", &format!("i{t}"), &t.to_string(), "red, or blue"].join(separator);
        let rows: Vec<String> = (0..4).map(row).collect();
        let names = ["user", "item", "timestamp", "query"].join(separator);
        fs::write(&path, format!("{head}\r\n{names}\r\n{}\r\n", rows.join("\r\n"))).unwrap();
        let card =
            prepare(Events { files: vec![path.clone()], ..Events::default() }, &plain(), &out).unwrap();
        assert_eq!((card.read.rows, queries(&out)["i2"].as_str()), (4, "red, or blue"), "{head}");
    }
}

#[test]
fn no_row_of_a_file_is_no_matter_of_a_few_bad_rows() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log.csv"), "user,item,timestamp\nu,a,1\nu,b,2\nu,c,3\nu,d,4\n").unwrap();
    fs::write(dir.path().join("items.csv"), "item,text\na,red, warm\nb,blue, cold\n").unwrap();
    let events = Events {
        files: vec![dir.path().join("log.csv")],
        items: vec![dir.path().join("items.csv")],
        ..Events::default()
    };
    let settings = Settings { skip_bad_rows: 100, ..plain() };
    let error = prepare(events, &settings, &dir.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("items.csv: none of the 2 rows can be used"), "{error}");
    assert!(error.contains("3 fields instead of 2"), "{error}");
}
