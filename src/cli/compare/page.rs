//! The page of several runs: curves over each other, ranking against forgetting, what differs, paired tests.

use crate::cli::measure::PER_REQUEST;
use crate::error::Result;
use crate::eval::significance;
use crate::report::{self, Curve, CurveFigure, CurvePage, CurvePoint, Line, ReportTable};
use serde_json::{Map, Value};
use std::path::Path;

/// The metric that stands for ranking.
const METRIC: &str = "ndcg@10";
/// Patterns and resamples of a test.
const PATTERNS: usize = 5000;
/// Points of a curve: more a plot cannot show.
const POINTS: usize = 200;

/// Writes the page of `runs`, as `compare` has read them.
pub(super) fn write(runs: &[(String, Value)], notes: &[String], path: &Path) -> Result<()> {
    let tasks = tasks(runs);
    let histories: Vec<Vec<Line>> = (runs.iter())
        .map(|(_, run)| {
            report::read(&Path::new(run["run"].as_str().unwrap_or_default()).join("metrics.jsonl"))
        })
        .collect::<Result<_>>()?;
    let mut figures: Vec<CurveFigure> = tasks.iter().map(|task| trade_off(runs, task)).collect();
    let mut curves = vec![("loss".to_string(), "Loss".to_string(), "Mean over the labels of a step.")];
    let validation = "On validation records.";
    curves.extend(
        tasks
            .iter()
            .map(|t| (format!("valid.{t}.{METRIC}"), format!("Validation {METRIC} of {t}"), validation)),
    );
    let divergence = "KL from the base model on general text at every validation, nats a token.";
    curves.push(("valid.general.kl".into(), "Divergence".into(), divergence));
    curves.push((
        "update_norm".into(),
        "Update norm".into(),
        "Of a step: a longer step changes both gain and forgetting.",
    ));
    figures
        .extend(curves.iter().map(|(key, title, caption)| over_steps(runs, &histories, key, title, caption)));
    figures.retain(|figure| figure.curves.iter().any(|curve| !curve.points.is_empty()));
    let tables = tests(runs, &tasks).into_iter().map(|t| (t, false));
    let page = CurvePage {
        kind: "comparison".into(),
        heading: "Curves".into(),
        title: runs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" · "),
        figures,
        tables: [(measures(runs, &tasks), false)]
            .into_iter()
            .chain(tables)
            .chain([(differing(runs), false)])
            .collect(),
        notes: notes.iter().cloned().chain(READING.map(str::to_string)).collect(),
        ..CurvePage::default()
    };
    page.write(path)
}

const READING: [&str; 2] = [
    "A cell of the tests is the row's mean minus the column's, and the p-value of a paired randomisation test over the \
     requests, after Holm's correction for all tests of the page. It says whether these two models differ, not whether their \
     methods do: that takes several seeds and learning rates (race).",
    "Runs are tested where they ranked the same test records.",
];

/// The tasks that all runs measured per request.
fn tasks(runs: &[(String, Value)]) -> Vec<String> {
    let Some((_, first)) = runs.first() else { return Vec::new() };
    let names = first[PER_REQUEST].as_object().into_iter().flatten().map(|(task, _)| task.clone());
    names.filter(|task| runs.iter().all(|(_, run)| run[task][METRIC].is_number())).collect()
}

fn requests(run: &Value, task: &str) -> Vec<f64> {
    let values = run[PER_REQUEST][task][METRIC].as_array();
    values.into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// A point a run.
fn trade_off(runs: &[(String, Value)], task: &str) -> CurveFigure {
    let curve = |(name, run): &(String, Value)| {
        let point = || {
            let values = requests(run, task);
            let interval = (!values.is_empty()).then(|| significance::bootstrap(&values, PATTERNS, 0.95, 0));
            Some(CurvePoint {
                label: "after".into(),
                x: run["general"]["kl"].as_f64()?,
                y: run[task][METRIC].as_f64()?,
                x_interval: None,
                y_interval: interval,
                marked: false,
            })
        };
        Curve { label: name.clone(), points: point().into_iter().collect() }
    };
    CurveFigure {
        title: format!("{METRIC} of {task} against divergence"),
        caption: "Of test records and held-out general text. Up and to the left is better; bars are 95 % intervals over \
                  requests."
            .into(),
        x: "KL from the base model, nats a token".into(),
        linear: true,
        curves: runs.iter().map(curve).collect(),
    }
}

/// A line a run.
fn over_steps(
    runs: &[(String, Value)],
    histories: &[Vec<Line>],
    key: &str,
    title: &str,
    caption: &str,
) -> CurveFigure {
    let point = |line: &Line| {
        let (x, y) = (line.get("step")?.as_f64()?, line.get(key)?.as_f64()?);
        let (x_interval, y_interval) = (None, None);
        Some(CurvePoint { label: "step".into(), x, y, x_interval, y_interval, marked: false })
    };
    let curve = |((name, _), history): (&(String, Value), &Vec<Line>)| {
        let all: Vec<CurvePoint> = history.iter().filter_map(point).collect();
        let stride = all.len().div_ceil(POINTS).max(1);
        Curve { label: name.clone(), points: all.into_iter().step_by(stride).collect() }
    };
    CurveFigure {
        title: title.into(),
        caption: caption.into(),
        x: "step".into(),
        linear: true,
        curves: runs.iter().zip(histories).map(curve).collect(),
    }
}

fn named(runs: &[(String, Value)], corner: &str) -> Vec<String> {
    std::iter::once(corner.to_string()).chain(runs.iter().map(|(name, _)| name.clone())).collect()
}

/// What was measured after training.
fn measures(runs: &[(String, Value)], tasks: &[String]) -> ReportTable {
    let of_task = |task: &String| (task.clone(), METRIC.to_string());
    let keys =
        tasks.iter().map(of_task).chain(["perplexity", "kl"].map(|m| ("general".to_string(), m.to_string())));
    let row = |(group, metric): (String, String)| {
        let value = |(_, run): &(String, Value)| {
            run[&group][&metric].as_f64().map_or("—".into(), |v| format!("{v:.4}"))
        };
        std::iter::once(format!("{group} {metric}")).chain(runs.iter().map(value)).collect()
    };
    ReportTable {
        title: "Measures".into(),
        caption: "After training.".into(),
        header: named(runs, "measure"),
        rows: keys.map(row).collect(),
    }
}

/// Settings that are not the same in all runs.
fn differing(runs: &[(String, Value)]) -> ReportTable {
    let mut keys = Map::new();
    for (_, run) in runs {
        keys.extend(
            run["settings"].as_object().into_iter().flatten().map(|(key, _)| (key.clone(), Value::Null)),
        );
    }
    let differs =
        |key: &&String| runs.iter().any(|(_, run)| run["settings"][*key] != runs[0].1["settings"][*key]);
    let row = |key: &String| {
        let value = |(_, run): &(String, Value)| match &run["settings"][key] {
            Value::Null => "—".to_string(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        std::iter::once(key.clone()).chain(runs.iter().map(value)).collect()
    };
    ReportTable {
        title: "Settings that differ".into(),
        caption: String::new(),
        header: named(runs, "setting"),
        rows: keys.keys().filter(differs).map(row).collect(),
    }
}

/// Of every task every run against every other.
fn tests(runs: &[(String, Value)], tasks: &[String]) -> Vec<ReportTable> {
    let same = |a: &Value, b: &Value| {
        let records = |run: &Value| -> Option<Value> {
            let path = Path::new(run["run"].as_str()?).join("sources.json");
            let sources: Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
            Some(sources["records"]["test"]["blake3"].clone())
        };
        records(a).is_some() && records(a) == records(b)
    };
    // (task, row, column, mean difference, p)
    let mut found: Vec<(usize, usize, usize, f64, f64)> = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        for row in 0..runs.len() {
            for column in 0..row {
                let (a, b) = (requests(&runs[row].1, task), requests(&runs[column].1, task));
                if a.is_empty() || a.len() != b.len() || !same(&runs[row].1, &runs[column].1) {
                    continue;
                }
                let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
                let mean = differences.iter().sum::<f64>() / differences.len() as f64;
                let p = significance::randomisation(&differences, PATTERNS, 0);
                found.push((number, row, column, mean, p));
            }
        }
    }
    let adjusted = significance::holm(&found.iter().map(|f| f.4).collect::<Vec<_>>());
    let table = |(number, task): (usize, &String)| {
        let mut rows: Vec<Vec<String>> = runs.iter().map(|(name, _)| vec![name.clone()]).collect();
        rows.iter_mut().for_each(|row| row.resize(runs.len() + 1, String::new()));
        for ((_, row, column, mean, _), p) in found.iter().zip(&adjusted).filter(|(f, _)| f.0 == number) {
            let p = if *p < 0.001 { "p < .001".to_string() } else { format!("p = {p:.3}") };
            rows[*row][column + 1] = format!("{mean:+.4}, {p}");
        }
        ReportTable {
            title: format!("Paired tests, {METRIC} of {task}"),
            caption: "Row minus column.".into(),
            header: named(runs, ""),
            rows,
        }
    };
    let some = !found.is_empty();
    tasks.iter().enumerate().filter(|_| some).map(table).collect()
}
