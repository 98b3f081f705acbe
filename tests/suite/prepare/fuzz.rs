//! Whatever stands in a file is read or refused: no panic, no hang.

use super::dialects::{columns, fixture, plain, prepare, rows};
use gems_engine::prepare::{Events, Reading, Settings, moment};
use proptest::prelude::*;
use serde_json::Value;
use std::fs;

/// What may stand for a value, valid or not.
const VALUES: &str = "\"a\"|\"b\"|\"\"|\"é\"|\" a \"|\"a\\tb\"|\"a\tb\"|\"a|a\"|1|12| 12|12 |0|-0|007|-5|1.0|1.5|1e3|1E+2|1e999|\
    9223372036854775807|9223372036854775808|18446744073709551616|123456789012345678|1234567890123456789|+1|.5|1.|--1|null|nulls|\
    true|false|[1]|{}||1,|1}|\u{c}1|1,\"user\":\"c\"|NaN";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_stands_in_a_file_is_read_or_refused(
        bytes in prop::collection::vec(prop::sample::select(b"\"\"\"\\\n\r\t,;|:{}[]e0123456789.-+TZ \x00\xff\xe9uNabc".to_vec()), 0..400),
        suffix in prop::sample::select(vec!["csv", "tsv", "txt", "jsonl", "json", "parquet", "csv.gz", "zst", "inter"]),
        header in any::<bool>(),
        switches in any::<[bool; 3]>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("log.{suffix}"));
        let head: &[u8] = if header { b"user,item,timestamp,query\n" } else { b"" };
        fs::write(&path, [head, &bytes].concat()).unwrap();
        let names: &[&str] = if switches[2] { &["user=1", "item=2", "timestamp=3"] } else { &[] };
        let reading = Reading { quotes: Some(switches[0]), escapes: switches[0] && switches[1], ..Reading::default() };
        let events = Events { files: vec![path], columns: columns(names), reading, ..Events::default() };
        let settings = Settings { skip_bad_rows: 1000, ..plain() };
        // No panic, no hang: whether it can be read is chance.
        let _ = prepare(events, &settings, &dir.path().join("out"));
    }

    #[test]
    fn a_plain_object_is_read_as_any_other(
        values in prop::collection::vec(prop::sample::select(VALUES.split('|').collect::<Vec<_>>()), 30),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, out) = (dir.path().join("log.jsonl"), dir.path().join("out"));
        let good = (0..6).map(|t| (["\"u\"", ["\"a\"", "\"b\""][t % 2], "null"], t));
        let any = values.chunks_exact(3).map(|v| [v[0], v[1], v[2]]).zip(6..);
        let rows: Vec<_> = good.chain(any).collect();
        // A field with an escape behind all others makes a row one that only the parser of all of JSON can read.
        let read = |more: &str| {
            let line = |([user, item, query], t): &([&str; 3], usize)| {
                format!("{{\"user\":{user}, \"item\" :{item},\"query\": {query} ,\"timestamp\":{t}{more}}}\n")
            };
            fs::write(&path, rows.iter().map(line).collect::<String>()).unwrap();
            let events = Events { files: vec![path.clone()], ..Events::default() };
            let settings = Settings { skip_bad_rows: 1000, ..plain() };
            let card = prepare(events, &settings, &out).map_err(|e| e.to_string())?;
            let split = |split: &str| fs::read_to_string(out.join(format!("{split}.jsonl"))).unwrap();
            Ok::<_, String>((card.read, ["train", "valid", "test"].map(split)))
        };
        prop_assert_eq!(read(""), read(",\"more\":\"\\n\""));
    }

    #[test]
    fn a_date_is_its_seconds_in_every_writing(
        days in 0u32..36_500, clock in 0i64..86_400, ahead in -1439i64..1440,
        separators in prop::sample::select(vec![("-", "T"), ("-", " "), ("/", " "), ("/", "t")]),
        zone in 0usize..4,
    ) {
        // Years and months are counted off one by one.
        let leap = |y: u32| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 0, days);
        while day >= 365 + u32::from(leap(year)) {
            (day, year) = (day - 365 - u32::from(leap(year)), year + 1);
        }
        let months = [31, 28 + u32::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        while day >= months[month] {
            (day, month) = (day - months[month], month + 1);
        }
        let (date, middle) = separators;
        let sign = if ahead < 0 { '-' } else { '+' };
        let (hours, minutes) = (ahead.abs() / 60, ahead.abs() % 60);
        let (zone, offset) = match zone {
            0 => (String::new(), 0),
            1 => (" UTC".into(), 0),
            2 => (format!("{sign}{hours:02}:{minutes:02}"), ahead * 60),
            _ => (format!(" {sign}{hours:02}{minutes:02}"), ahead * 60),
        };
        let (h, m, s) = (clock / 3600, clock / 60 % 60, clock % 60);
        let text = format!(
            "{year}{date}{:02}{date}{:02}{middle}{h:02}:{m:02}:{s:02}{zone}", month + 1, day + 1
        );
        let want = i64::from(days) * 86_400 + clock - offset;
        prop_assert_eq!(moment(&text, None).unwrap(), want, "{}", text);
    }

    #[test]
    fn a_path_leads_where_it_says(
        path in prop::collection::vec(prop::sample::select(vec!["a", "b", "c d", "0", "2"]), 1..5),
        rows_of in 3i64..6, beside in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log.jsonl");
        let nested = |id: String| {
            path.iter().rev().fold(Value::String(id), |inside, part| match part.parse::<usize>() {
                Ok(at) => {
                    let mut list = vec![serde_json::json!({"a": "wrong", "0": [null]}); at];
                    list.push(inside);
                    Value::Array(list)
                }
                Err(_) if beside => serde_json::json!({"x": {"a": "wrong"}, *part: inside, "0": "wrong"}),
                Err(_) => serde_json::json!({*part: inside}),
            })
        };
        let row = |t: i64| format!("{}\n", serde_json::json!({
            "user": "u", "timestamp": t, "query": "q", "0": "wrong", "deep": nested(format!("i{t}")),
        }));
        fs::write(&file, (0..rows_of).map(row).collect::<String>()).unwrap();
        let name = format!("item=deep.{}", path.join("."));
        let events = Events { files: vec![file], columns: columns(&[&name]), ..Events::default() };
        prepare(events, &plain(), &dir.path().join("out")).unwrap();
        let found: Vec<String> = rows(&dir.path().join("out")).into_iter().map(|r| r.item).collect();
        prop_assert_eq!(found, (0..rows_of).map(|t| format!("i{t}")).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_directory_says_is_read_whatever_it_says(
        values in prop::collection::btree_set("[a-z0-9 =%.:é+_]{1,12}", 3..6),
    ) {
        let values: Vec<String> = values.into_iter().map(|v| format!("v{}", v.trim())).collect();
        let values: Vec<String> = std::collections::BTreeSet::from_iter(values).into_iter().collect();
        let dir = tempfile::tempdir().unwrap();
        for (t, value) in values.iter().enumerate() {
            // As Hive writes them: what is special is a percent sign and two digits.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b" _.".contains(&b);
            let written: String = value
                .bytes()
                .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
                .collect();
            let part = dir.path().join(format!("log/what={written}"));
            fs::create_dir_all(&part).unwrap();
            fs::write(part.join("rows.csv"), format!("user,item,timestamp\nu,i{t},{t}\n")).unwrap();
        }
        // Two more rows, so that there is something of every split.
        fs::create_dir_all(dir.path().join("log/what=w")).unwrap();
        fs::write(dir.path().join("log/what=w/a.csv"), "user,item,timestamp\nu,x,98\nu,y,99\n").unwrap();
        let columns = columns(&["query=what"]);
        let events = Events { files: vec![dir.path().join("log")], columns, ..Events::default() };
        prepare(events, &plain(), &dir.path().join("out")).unwrap();
        let found: Vec<String> = rows(&dir.path().join("out")).into_iter().map(|r| r.query).collect();
        prop_assert_eq!(&found[..values.len()], &values[..]);
    }

    #[test]
    fn damaged_rows_and_files_are_errors_and_never_panics(
        at in 0usize..10_000, byte in any::<u8>(), cut in 0usize..10_000, kind in 0usize..4,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let python = b"{u'user': u'caf\\xe9', 'item': (1, 2), 'timestamp': [1.5, nan], \"query\": array([1], dtype=int)}\n";
        let json = b"[{\"user\": \"\\ud83d\\ude00\", \"item\": 18446744073709551615, \"timestamp\": \"2024-05-01T12:30:05.25+02:00\"}]";
        let (name, mut bytes) = match kind {
            0 => ("log.parquet", fs::read(fixture("types.parquet")).unwrap()),
            1 => ("log.json", python.repeat(3)),
            2 => ("log.json", json.to_vec()),
            _ => ("log.csv", fs::read(fixture("all-quoted.csv")).unwrap()),
        };
        let n = bytes.len();
        bytes[at * n / 10_000] ^= byte;
        bytes.truncate(n - (cut * n / 10_000) / 4);
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let named: &[&str] = if kind == 0 { &["user=who", "item=uint64", "timestamp=timestamp[ns]", "query=dictionary"] } else { &[] };
        let events = Events { files: vec![path], columns: columns(named), ..Events::default() };
        let _ = prepare(events, &Settings { skip_bad_rows: 1000, ..plain() }, &dir.path().join("out"));
    }

    #[test]
    fn fields_without_quotes_come_back_whatever_the_separator(
        fields in prop::collection::vec("[a-z\"'é][a-z\" \\\\'é]{0,8}", 3..20),
        separator in prop::sample::select(vec!["\t", "::", "|", "\u{1}", "~~", ";"]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.dat");
        let row = |(n, field): (usize, &String)| format!("u{separator}i{n}{separator}{n}{separator}{field}\n");
        let body: String = fields.iter().enumerate().map(row).collect();
        fs::write(&path, &body).unwrap();
        let columns = columns(&["user=1", "item=2", "timestamp=3", "query=4"]);
        let name = if separator == "\u{1}" { "\\x01" } else { separator };
        let reading = Reading { quotes: Some(false), separator: Some(name.into()), ..Reading::default() };
        let events = Events { files: vec![path], columns, reading, ..Events::default() };
        prepare(events, &plain(), &dir.path().join("out")).unwrap();
        let found: Vec<String> = rows(&dir.path().join("out")).into_iter().map(|r| r.query).collect();
        let want: Vec<String> = fields.iter().map(|f| f.trim().to_string()).collect();
        prop_assert_eq!(found, want);
    }
}
