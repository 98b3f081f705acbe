//! Tests of `report`.

use gems_engine::error::Kind;
use gems_engine::report::{
    EventWriter, Line, MetricsLog, Progress, ReportData, ReportTable, before_after, print_before_after, read,
    render, training_message, write,
};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Arc, Mutex};

fn line(value: Value) -> Line {
    value.as_object().unwrap().clone()
}

mod log {
    use super::*;

    fn steps(lines: &[Line]) -> Vec<u64> {
        lines.iter().map(|l| l["step"].as_u64().unwrap()).collect()
    }

    #[test]
    fn lines_come_back_as_written_and_nan_as_null() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert!(read(&path).unwrap().is_empty());
        let mut log = MetricsLog::open(&path, 0).unwrap();
        let first = line(json!({"step": 1, "loss": 0.1 + 0.2, "loss.<b>": f64::NAN, "lr": f64::INFINITY}));
        log.write(&first).unwrap();
        log.write(&line(json!({"step": 2, "loss": 1e-300}))).unwrap();
        log.sync().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = "{\"step\":1,\"loss\":0.30000000000000004,\"loss.<b>\":null,\"lr\":null}\n\
                        {\"step\":2,\"loss\":1e-300}\n";
        assert_eq!(text, expected);
        assert_eq!(read(&path).unwrap()[0], first);
    }

    #[test]
    fn a_resumed_log_equals_the_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, resumed) = (dir.path().join("whole"), dir.path().join("resumed"));
        let write = |log: &mut MetricsLog, steps: std::ops::RangeInclusive<u64>| {
            for step in steps {
                log.write(&line(json!({"step": step, "loss": 1.0 / step as f64}))).unwrap();
                if step % 2 == 0 {
                    log.write(&line(json!({"step": step, "valid.rec.ndcg@10": 0.5}))).unwrap();
                }
            }
        };
        write(&mut MetricsLog::open(&whole, 0).unwrap(), 1..=6);
        write(&mut MetricsLog::open(&resumed, 0).unwrap(), 1..=5);
        std::fs::OpenOptions::new()
            .append(true)
            .open(&resumed)
            .unwrap()
            .write_all(b"{\"step\":6,\"lo")
            .unwrap();
        // The checkpoint is that of step 4.
        write(&mut MetricsLog::open(&resumed, 4).unwrap(), 5..=6);
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&resumed).unwrap());
        // The same on a log that is open.
        let mut log = MetricsLog::open(&resumed, 6).unwrap();
        log.truncate_after(3).unwrap();
        write(&mut log, 4..=6);
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&resumed).unwrap());
    }

    #[test]
    fn torn_last_lines_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let tails: [&[u8]; 6] =
            [b"{\"step\":", b"\0\0\0\0", b"\xff\xfe", b"{\"step\":2}", b"[1]\n", b"{\"a\":1\n\n \n"];
        for tail in tails {
            std::fs::write(&path, [b"{\"step\":1}\n".as_slice(), tail].concat()).unwrap();
            let whole = serde_json::from_slice::<Line>(tail).is_ok();
            let expected: &[u64] = if whole { &[1, 2] } else { &[1] };
            assert_eq!(steps(&read(&path).unwrap()), expected, "{tail:?}");
            // What is appended is a line of its own, whatever was there before.
            let mut log = MetricsLog::open(&path, 9).unwrap();
            log.write(&line(json!({"step": 9}))).unwrap();
            let found = steps(&read(&path).unwrap());
            assert_eq!(found, [expected, &[9]].concat(), "{tail:?}");
        }
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n\nnonsense\n{\"step\":2}\n").unwrap();
        for error in [read(&path).unwrap_err(), MetricsLog::open(&path, 2).unwrap_err()] {
            assert_eq!(error.kind, Kind::Data);
            assert!(error.to_string().contains("metrics.jsonl, line 3"), "{error}");
        }
        assert!(std::fs::read_to_string(&path).unwrap().contains("nonsense"), "nothing is thrown away");
    }

    #[test]
    fn an_unwritable_place_is_an_io_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = MetricsLog::open(&dir.path().join("none/metrics.jsonl"), 0).unwrap_err();
        assert_eq!(error.kind, Kind::Io);
        assert!(read(dir.path()).is_err(), "a directory is no log");
    }
}

mod tensorboard {
    use super::*;

    /// CRC-32C bit by bit, from its polynomial (reflected 0x82f63b78).
    fn crc32c(data: &[u8]) -> u32 {
        !data.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
        })
    }

    fn masked(data: &[u8]) -> u32 {
        let crc = crc32c(data);
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }

    /// The records of a TFRecord file, every checksum checked.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(file[8..12].try_into().unwrap()), masked(&file[..8]));
            let data = &file[12..12 + length];
            let crc = u32::from_le_bytes(file[12 + length..16 + length].try_into().unwrap());
            assert_eq!(crc, masked(data));
            records.push(data.to_vec());
            file = &file[16 + length..];
        }
        records
    }

    /// One field of a protobuf message: its number and its bytes (a varint as eight).
    fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(data: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = data[0];
                *data = &data[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut found = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let length = match key & 7 {
                0 => {
                    found.push((key >> 3, varint(&mut data).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut data) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, data[..length].to_vec()));
            data = &data[length..];
        }
        found
    }

    fn get(message: &[u8], number: u64) -> Option<Vec<u8>> {
        fields(message).into_iter().find(|(n, _)| *n == number).map(|(_, bytes)| bytes)
    }

    fn step(event: &[u8]) -> u64 {
        u64::from_le_bytes(get(event, 2).unwrap().try_into().unwrap())
    }

    fn scalars(event: &[u8]) -> Vec<(String, f32)> {
        let values = fields(&get(event, 5).unwrap());
        let scalar = |value: Vec<u8>| {
            let number = f32::from_le_bytes(get(&value, 2).unwrap().try_into().unwrap());
            (String::from_utf8(get(&value, 1).unwrap()).unwrap(), number)
        };
        values.into_iter().map(|(_, value)| scalar(value)).collect()
    }

    #[test]
    fn the_checksum_of_the_test_is_the_standard_one() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn events_decode_to_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventWriter::open(&dir.path().join("tensorboard"), None).unwrap();
        let name = "task \u{1f50d}.".repeat(30);
        let first =
            json!({"step": 1, "loss": 2.5, "loss.a.b": -0.125, "best": true, "why": "text", name.clone(): 3});
        events.write(&line(first)).unwrap();
        events.write(&line(json!({"step": 3_000_000_000u64, "lr": null}))).unwrap();
        events.write(&line(json!({}))).unwrap();
        let records = records(&std::fs::read(events.path()).unwrap());
        assert_eq!(records.len(), 4);
        assert_eq!(get(&records[0], 3).unwrap(), b"brain.Event:2");
        let time = f64::from_le_bytes(get(&records[1], 1).unwrap().try_into().unwrap());
        assert!(time > 1.7e9 && time < 1e11, "seconds since 1970: {time}");
        assert_eq!(step(&records[1]), 1);
        let expected =
            [("loss".to_string(), 2.5), ("loss/a.b".to_string(), -0.125), (name.replacen('.', "/", 1), 3.0)];
        assert_eq!(scalars(&records[1]), expected);
        assert_eq!(step(&records[2]), 3_000_000_000);
        assert!(scalars(&records[2])[0].1.is_nan());
        assert!(scalars(&records[3]).is_empty());
    }

    #[test]
    fn a_resumed_run_writes_a_later_file_that_takes_steps_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::open(dir.path(), None).unwrap().path().to_path_buf();
        let second = EventWriter::open(dir.path(), Some(4)).unwrap().path().to_path_buf();
        assert!(first < second);
        let records = records(&std::fs::read(second).unwrap());
        assert_eq!(step(&records[1]), 5);
        let session = get(&records[1], 7).unwrap();
        assert_eq!(fields(&session), [(1, 1u64.to_le_bytes().to_vec())]);
    }

    #[test]
    fn a_file_in_the_way_is_an_io_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(EventWriter::open(file.path(), None).unwrap_err().kind, Kind::Io);
    }
}

mod progress {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn shown(total: u64, act: impl FnOnce(&mut Progress)) -> String {
        let sink = Sink::default();
        act(&mut Progress::to_writer("rank", total, Box::new(sink.clone())));
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn fast_work_takes_one_plain_line() {
        let text = shown(1000, |progress| {
            for position in 1..=1000 {
                progress.tick(position, || format!("at {position}"));
            }
            progress.finish();
            progress.finish();
        });
        assert_eq!(text, "rank: 1000/1000 (100 %): at 1000\n");
    }

    #[test]
    fn slow_work_says_how_far_it_is_and_how_long_it_takes() {
        let text = shown(4, |progress| {
            std::thread::sleep(std::time::Duration::from_millis(1050));
            progress.tick(1, String::new);
            progress.tick(2, String::new);
            progress.note("a word");
        });
        assert_eq!(text, "rank: 1/4 (25 %), 3 seconds left\na word\n");
    }

    #[test]
    fn odd_totals_and_positions_do_no_harm() {
        let unknown = shown(0, |progress| {
            progress.tick(7, || "items".into());
            progress.finish();
        });
        assert_eq!(unknown, "rank: 7: items\n");
        let beyond = shown(5, |progress| {
            progress.tick(u64::MAX, String::new);
            progress.tick(3, String::new);
            progress.finish();
        });
        assert_eq!(beyond.lines().count(), 1);
        assert_eq!(shown(5, |progress| progress.finish()), "");
        let mut quiet = Progress::new("quiet", 3, true);
        quiet.tick(1, || panic!("a message nobody sees is not made"));
        quiet.note("nothing");
        quiet.finish();
    }

    #[test]
    fn a_resumed_run_counts_its_time_from_where_it_began() {
        let sink = Sink::default();
        let mut progress = Progress::to_writer("train", 1000, Box::new(sink.clone())).starting_at(900);
        progress.finish();
        std::thread::sleep(std::time::Duration::from_millis(1050));
        progress.tick(950, String::new);
        // 50 steps took a second, so do the 50 left: not the 0.06 seconds that 950 steps a second give.
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "train: 950/1000 (95 %), 1 second left\n");
    }

    #[test]
    fn the_message_of_a_step_names_losses_gates_speed_and_memory() {
        let step = json!({
            "step": 3, "loss": 2.0, "loss.rec": 1.5, "loss.search": 2.5, "gate.rec": 0.25, "gate.search": null,
            "tokens_per_second": 12345.6, "memory_bytes": 1.5 * 1024.0 * 1024.0 * 1024.0,
        });
        let message = training_message(&line(step));
        assert_eq!(message, "loss rec 1.500 search 2.500 · gates rec 0.250 · 12,346 tok/s · 1.50 GiB");
        assert_eq!(training_message(&line(json!({"loss": 0.5}))), "loss 0.500");
        assert_eq!(training_message(&Line::new()), "");
    }
}

mod table {
    use super::*;

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
        for nothing in
            [json!({}), json!(null), json!([1]), json!({"rec": {}}), json!({"rec": {"slices": {}}})]
        {
            assert_eq!(before_after(None, &nothing), "");
            assert_eq!(printed(Some(&nothing), &nothing), "");
        }
        let steering = json!({"re\u{1b}[31mc\n": {"ndcg@10": 0.5}});
        let text = printed(None, &steering);
        assert!(!text.contains('\u{1b}') && text.contains("0.5000"), "{text:?}");
    }
}

mod html {
    use super::*;

    /// A run of two tasks as the trainer logs it.
    fn run(tasks: &[&str], steps: u64) -> ReportData {
        let mut history = Vec::new();
        for step in 1..=steps {
            let t = step as f64 / steps as f64;
            let mut values = line(json!({"step": step, "loss": 3.0 - t, "lr": 1e-3 * (1.0 - t)}));
            for (i, task) in tasks.iter().enumerate() {
                values.insert(format!("loss.{task}"), json!(3.0 - t + 0.1 * i as f64));
                for other in &tasks[i + 1..] {
                    values.insert(format!("cosine.{task}.{other}"), json!(0.2 - t));
                }
            }
            values.extend(line(json!({"energy.shared": 0.9, "room": 0.7, "update_norm": 0.01,
                "tokens_per_second": 1e4, "memory_bytes": 1e9, "gate.x": 0.5})));
            history.push(values);
            if step % 10 == 0 {
                let valid = tasks.iter().map(|task| (format!("valid.{task}.ndcg@10"), json!(t)));
                history.push(Line::from_iter([("step".to_string(), json!(step))].into_iter().chain(valid)));
            }
        }
        let results = |gain: f64| {
            let mut all: serde_json::Map<String, Value> =
                tasks.iter().map(|task| (task.to_string(), json!({"ndcg@10": 0.1 * gain}))).collect();
            all.insert("general".into(), json!({"perplexity": 10.0 + gain, "kl": 0.01 * gain}));
            Some(Value::Object(all))
        };
        ReportData {
            title: "GEMS on a test".into(),
            run: vec![("model".into(), "tiny".into())],
            before: results(1.0),
            after: results(2.0),
            history,
            tables: Vec::new(),
            notes: vec!["One seed.".into()],
        }
    }

    /// Checks that every element is closed in its order (HTML's void elements aside), and that the page
    /// loads nothing and runs nothing.
    fn check(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        let body = &page[page.find("<html").unwrap()..];
        let style = body.find("<style>").unwrap()..body.find("</style>").unwrap();
        for (at, _) in body.match_indices('<').filter(|(at, _)| !(style.start < *at && *at < style.end)) {
            let tag = &body[at + 1..at + body[at..].find('>').expect("every tag ends")];
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap();
            match tag {
                _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "at {}", &body[at..at + 40]),
                _ if tag.ends_with('/') || ["meta", "br"].contains(&name) => {}
                _ => open.push(name),
            }
        }
        assert!(open.is_empty(), "not closed: {open:?}");
        for active in ["<script", "<link", "<img", "<iframe", "src=", "href=", "@import", "url(", "onload"] {
            assert!(!page.contains(active), "{active}");
        }
        let namespace = "http://www.w3.org/2000/svg";
        assert_eq!(
            page.matches("http").count(),
            page.matches(namespace).count(),
            "no address but SVG's name"
        );
        assert!(!page.contains("NaN") && !page.contains("inf\"") && !page.contains("undefined"));
    }

    #[test]
    fn a_run_has_its_results_and_all_its_figures() {
        let page = render(&run(&["rec", "search"], 50)).unwrap();
        check(&page);
        let titles = [
            "Loss",
            "Validation ndcg@10",
            "Learning rate",
            "Gradient cosine between tasks",
            "Energy each basis keeps",
            "Energy the null space leaves",
            "Gates",
            "Update norm",
            "Tokens per second",
            "Memory",
        ];
        for title in titles {
            assert_eq!(page.matches(&format!("<h3>{title}</h3>")).count(), 1, "{title}");
        }
        assert_eq!(
            page.matches("</svg></div>").count() + page.matches("</svg>\n</div>").count(),
            titles.len()
        );
        for text in ["GEMS on a test", "<dd>tiny</dd>", "+100 %", "0.1000", "0.2000", "+9.1 %", "One seed."] {
            assert!(page.contains(text), "{text}");
        }
        assert!(page.contains("rec · search"), "a pair of tasks is named as one");
        // Half the perplexity would be better; more is worse.
        assert!(page.contains("▼ worse") && page.contains("▲ better"));
    }

    #[test]
    fn whatever_is_missing_is_left_out() {
        let empty = render(&ReportData::default()).unwrap();
        check(&empty);
        assert!(empty.contains("No training steps were recorded.") && !empty.contains("Results"));
        let one = render(&run(&["rec"], 1)).unwrap();
        check(&one);
        assert!(one.contains("<circle"), "a single point is visible");
        assert!(!one.contains("Gradient cosine"), "one task has no conflict");
        let after_only = render(&ReportData { before: None, ..run(&["rec"], 2) }).unwrap();
        check(&after_only);
        assert!(!after_only.contains(">before "));
    }

    #[test]
    fn texts_are_escaped_wherever_they_come_from() {
        let evil = "<script>alert(\"1\")</script>&'";
        let mut data = run(&[evil, "search"], 20);
        data.title = evil.into();
        data.run.push((evil.into(), evil.into()));
        data.notes.push(evil.into());
        let cells = || vec![evil.to_string(), evil.to_string()];
        let (title, caption) = (evil.to_string(), evil.to_string());
        data.tables.push(ReportTable { title, caption, header: cells(), rows: vec![cells(), vec![]] });
        data.history.push(line(
            json!({"step": 21, format!("valid.{evil}.{evil}"): 0.5, format!("energy.{evil}"): 1}),
        ));
        let page = render(&data).unwrap();
        check(&page);
        assert!(page.contains("&lt;script&gt;alert("), "shown as text");
    }

    #[test]
    fn values_that_are_no_numbers_are_counted_and_passed_over() {
        let mut data = run(&["rec", "search"], 30);
        data.history[3].insert("loss.rec".into(), Value::Null);
        data.history[4].insert("loss.rec".into(), json!("text"));
        data.history.push(line(json!({"loss": 1.0})));
        data.history.push(line(json!({"step": "x", "lr": null, "cosine.rec.search": 1e308})));
        data.after =
            Some(json!({"rec": {"ndcg@10": null, "name": "text"}, "odd": 3, "general": {"kl": 1e-9}}));
        let page = render(&data).unwrap();
        check(&page);
        assert!(page.contains("2 values were not finite.") && page.contains("1 value was not finite."));
        data.history = vec![line(json!({"step": 1, "loss": null}))];
        check(&render(&data).unwrap());
    }

    #[test]
    fn five_tasks_and_a_long_run_stay_readable_and_small() {
        let tasks = ["rec", "search", "ads.cold", "ads", "notes"];
        let page = render(&run(&tasks, 20_000)).unwrap();
        check(&page);
        assert!(
            page.contains("ads.cold · notes") && page.contains("rec · ads.cold"),
            "dots in names of tasks"
        );
        assert!(page.contains("bold: mean of 800 steps"));
        // Ten pairs, eight colours: the last two are dashed.
        assert!(page.contains("stroke-width=\"5\""));
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
    }

    #[test]
    fn lines_run_where_the_values_are() {
        let history =
            (0..=100).map(|step| line(json!({"step": step, "tokens_per_second": step * step}))).collect();
        let page = render(&ReportData { history, ..ReportData::default() }).unwrap();
        let points = page.split("points=\"").filter_map(|part| part.split('"').next());
        let curve = points.max_by_key(|p| p.len()).unwrap();
        let points: Vec<(f64, f64)> = curve
            .split_whitespace()
            .map(|pair| pair.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert_eq!(points.len(), 101);
        let at = |part: f64, ends: (f64, f64)| ends.0 + part * (ends.1 - ends.0);
        let (x, y) = ((points[0].0, points[100].0), (points[0].1, points[100].1));
        for (step, point) in points.iter().enumerate() {
            let t = step as f64 / 100.0;
            let expected = (at(t, x), at(t * t, y));
            assert!(
                (point.0 - expected.0).abs() <= 1.0 && (point.1 - expected.1).abs() <= 1.0,
                "{step}: {point:?}"
            );
        }
        assert!(x.1 > x.0 && y.1 < y.0, "up is more");
    }

    #[test]
    fn the_file_is_what_was_rendered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        let data = run(&["rec", "search"], 5);
        write(&data, &path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), render(&data).unwrap());
        assert_eq!(write(&data, &dir.path().join("none/report.html")).unwrap_err().kind, Kind::Io);
    }
}
