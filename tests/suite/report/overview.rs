//! What a page shows of a long metrics log, kept up while the run goes on.

use super::line;
use gems_engine::report::{Line, MetricsLog, Overview, ReportData, read, read_overview, render};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// The line of a step of a run with refreshes and validations, some of which are the best so far.
fn logged(step: u64) -> Line {
    let wave = (step as f64).sin();
    let mut all = line(json!({
        "step": step, "loss": 2.0 + wave, "loss.rec": 2.0 + wave, "tokens": 64.0, "step_ms": 1.0 + wave * wave,
        "cosine.rec.search": wave, "update_norm": if step.is_multiple_of(11) { Value::Null } else { json!(0.1 / step as f64) },
        "peak_memory_bytes": 1e6 + (step % 7) as f64, "layers.update_norm": [wave, 0.1],
    }));
    if step.is_multiple_of(5) {
        all.insert("room".into(), json!(0.5 + 0.1 * wave));
    }
    if step.is_multiple_of(3) {
        all.insert("best".into(), json!(step.is_multiple_of(4)));
        all.insert("valid.rec.ndcg@10".into(), json!(0.3 + 0.1 * wave));
    }
    all
}

fn number(line: &Line, name: &str) -> Option<f64> {
    line.get(name).and_then(Value::as_f64)
}

/// Of a kind's lines every so many-th, by the smallest power of two that leaves 500 of them, and the last one.
fn evenly(lines: &[Line]) -> Vec<Line> {
    let stride = (0..).map(|n| 1 << n).find(|n| lines.len().div_ceil(*n) <= 500).unwrap();
    let last = lines.len().saturating_sub(1);
    let chosen = lines.iter().enumerate().filter(|(at, _)| at % stride == 0 || *at == last);
    chosen.map(|(_, line)| line.clone()).collect()
}

/// What is asked of an overview, from all lines at once.
fn shown(lines: &[Line]) -> Vec<Line> {
    let best = |line: &Line| line.get("best") == Some(&json!(true));
    let validated = |line: &Line| line.contains_key("valid.rec.ndcg@10");
    let kind = |line: &Line| match (best(line), validated(line), line.contains_key("room")) {
        (true, ..) => 0,
        (_, true, _) => 1,
        (.., true) => 2,
        _ => 3,
    };
    let of = |wanted: u8| lines.iter().filter(|line| kind(line) == wanted).cloned().collect::<Vec<_>>();
    let mut shown: Vec<Line> = (0..4).flat_map(|wanted| evenly(&of(wanted))).collect();
    shown.sort_by_key(|line| line["step"].as_u64());
    shown
}

fn page(overview: &Overview) -> String {
    let history = overview.lines().into();
    render(&ReportData { history, layers: vec!["a".into(), "b".into()], ..ReportData::default() }).unwrap()
}

/// Runs on to step `last`, as one that goes on after step `keep`; then it is killed.
fn run_on(path: &Path, keep: u64, last: u64, torn: &[u8]) -> MetricsLog {
    let mut log = MetricsLog::open(path, keep).unwrap();
    for step in keep + 1..=last {
        log.write(&logged(step)).unwrap();
    }
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(torn).unwrap();
    log
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However often a run is killed and gone on with, and whatever is left of the log's end, what it keeps for its page is
    /// what the file says: the same lines, sums and bytes of a page.
    #[test]
    fn a_page_written_live_is_that_of_the_file(
        parts in prop::collection::vec((0.0f64..1.0, 0u64..9000, 0usize..5), 1..5),
        short in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut last = 0;
        for (share, steps, tear) in parts {
            let torn: &[u8] =
                [&b""[..], b"{\"step\":", b"\0\0\0\0\n\0", b"\n \n", b"{\"st\0\n{\"step\":99999}\n"][tear];
            let keep = (last as f64 * share) as u64;
            last = keep + if short { steps % 40 } else { steps };
            let log = run_on(&path, keep, last, torn);
            let live = log.overview();
            let whole: Vec<Line> = (1..=last).map(logged).collect();
            prop_assert_eq!(live.lines(), &shown(&whole)[..]);
            // What was torn is cut off by who goes on.
            drop(MetricsLog::open(&path, last).unwrap());
            prop_assert_eq!(&read(&path).unwrap(), &whole);
            let from_file = read_overview(&path).unwrap();
            prop_assert_eq!(live.lines(), from_file.lines());
            prop_assert_eq!(live.training(), from_file.training());
            prop_assert_eq!(page(live), page(&from_file));
        }
    }
}

#[test]
fn sums_are_over_all_steps() {
    let whole: Vec<Line> = (1..=7000).map(logged).collect();
    let mut overview = Overview::default();
    whole.iter().for_each(|line| overview.add(line.clone()));
    overview.add(line(json!({"step": 7000, "valid.rec.ndcg@10": 0.5, "tokens": 1e9})));
    let training = overview.training();
    let values = |name: &str| whole.iter().filter_map(|line| number(line, name)).collect::<Vec<f64>>();
    let mean = |name: &str| values(name).iter().sum::<f64>() / values(name).len() as f64;
    assert_eq!(training["steps"], 7000);
    assert_eq!(training["tokens"], 7000 * 64, "a validation by itself is no step");
    assert_eq!(training["seconds"], json!(values("step_ms").iter().sum::<f64>() / 1e3));
    assert_eq!(training["peak_memory_bytes"], 1e6 + 6.0);
    assert_eq!(training["mean_update_norm"], json!(mean("update_norm")), "of those that have one");
    assert_eq!(training["cosine.rec.search"], json!(mean("cosine.rec.search")));
    assert_eq!(Overview::default().training()["steps"], 0);
}

/// However long the run, however often it gets better.
#[test]
fn it_has_a_bound() {
    let mut overview = Overview::default();
    for step in 1..=60_000u64 {
        overview.add(line(json!({"step": step, "loss": 1.0})));
        overview.add(line(json!({"step": step, "valid.rec.loss": 1.0 / step as f64, "best": true})));
        let most = overview.lines().len();
        assert!(most <= 4 * 501, "{most} lines after step {step}");
    }
    assert_eq!(overview.lines()[overview.lines().len() - 1]["step"], 60_000);
}
