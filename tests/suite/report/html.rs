//! `report.html`.

use super::line;
use gems_engine::error::Kind;
use gems_engine::report::{Line, ReportData, ReportTable, Tested, render, write};
use serde_json::{Value, json};

/// A run of two tasks as the trainer logs it.
fn run(tasks: &[&str], steps: u64) -> ReportData<'static> {
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
            "tokens_per_second": 1e4, "memory_bytes": 1e9, "gate.x": 0.5 + 0.1 * t})));
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
        tested: tasks.first().map(|task| tested(task, 0.01)).into_iter().collect(),
        history: history.into(),
        notes: vec!["One seed.".into()],
        ..ReportData::default()
    }
}

fn tested(task: &str, p: f64) -> Tested {
    Tested { task: task.into(), metric: "ndcg@10".into(), p, interval: Some((0.05, 0.15)) }
}

/// Checks that every element is closed in its order (HTML's void elements aside), and that the page
/// loads nothing and runs nothing.
pub fn check(page: &str) {
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
    assert_eq!(page.matches("http").count(), page.matches(namespace).count(), "no address but SVG's name");
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
    assert_eq!(page.matches("</svg></div>").count() + page.matches("</svg>\n</div>").count(), titles.len());
    for text in
        ["GEMS on a test", "<dd>tiny</dd>", "+100 %", "0.1000", "0.2000", "+0.0500 to +0.1500", "One seed."]
    {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("rec · search"), "a pair of tasks is named as one");
}

#[test]
fn only_what_a_test_found_is_called_better_or_worse() {
    let page = |before: f64, after: f64, tests: Vec<Tested>| {
        let results =
            |value: f64| Some(json!({"rec": {"ndcg@10": value}, "general": {"perplexity": 9.0 + value}}));
        render(&ReportData {
            before: results(before),
            after: results(after),
            tested: tests,
            ..run(&["rec"], 2)
        })
        .unwrap()
    };
    let said = |page: &str| ["▲", "▼", "may be luck"].map(|word| page.contains(word));
    assert_eq!(said(&page(0.1, 0.2, vec![tested("rec", 0.01)])), [true, false, false]);
    assert_eq!(said(&page(0.2, 0.1, vec![tested("rec", 0.01)])), [false, true, false]);
    assert_eq!(said(&page(0.1, 0.2, vec![tested("rec", 0.2)])), [false, false, true]);
    // Not tested, or of another task: no word.
    assert_eq!(said(&page(0.1, 0.2, vec![])), [false, false, false]);
    assert_eq!(said(&page(0.1, 0.2, vec![tested("search", 0.01)])), [false, false, false]);
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
    data.history
        .to_mut()
        .push(line(json!({"step": 21, format!("valid.{evil}.{evil}"): 0.5, format!("energy.{evil}"): 1})));
    let page = render(&data).unwrap();
    check(&page);
    assert!(page.contains("&lt;script&gt;alert("), "shown as text");
}

#[test]
fn values_that_are_no_numbers_are_counted_and_passed_over() {
    let mut data = run(&["rec", "search"], 30);
    let history = data.history.to_mut();
    history[3].insert("loss.rec".into(), Value::Null);
    history[4].insert("loss.rec".into(), json!("text"));
    history.push(line(json!({"loss": 1.0})));
    history.push(line(json!({"step": "x", "lr": null, "cosine.rec.search": 1e308})));
    data.after = Some(json!({"rec": {"ndcg@10": null, "name": "text"}, "odd": 3, "general": {"kl": 1e-9}}));
    let page = render(&data).unwrap();
    check(&page);
    assert!(page.contains("2 values were not finite.") && page.contains("1 value was not finite."));
    data.history = vec![line(json!({"step": 1, "loss": null}))].into();
    check(&render(&data).unwrap());
}

#[test]
fn five_tasks_and_a_long_run_stay_readable_and_small() {
    let tasks = ["rec", "search", "ads.cold", "ads", "notes"];
    let page = render(&run(&tasks, 20_000)).unwrap();
    check(&page);
    assert!(page.contains("ads.cold · notes") && page.contains("rec · ads.cold"), "dots in names of tasks");
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
