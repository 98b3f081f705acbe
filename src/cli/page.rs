//! A run's report: what is put on the page, from the files of the run.

use super::measure::{ANSWERS, PER_REQUEST, SLICES};
use super::settings;
use crate::error::Result;
use crate::eval::significance;
use crate::files::write_atomically;
use crate::report::{self, Curve, CurveFigure, CurvePoint, Line, Overview, ReportData, ReportTable, Tested};
use crate::run;
use serde_json::{Value, json};
use std::path::Path;

/// What a report needs to know of a run and no other file says: the device, the names of the adapted layers, the spectra
/// of general text.
const ABOUT: &str = "about.json";

/// Keeps what the run is done on, the names of its adapted layers, and the curves of `protection::spectra`.
pub fn keep_about(run: &Path, device: &str, layers: &[&str], spectrum: &[Value]) -> Result<()> {
    let about = json!({"device": device, "layers": layers, "spectrum": spectrum});
    write_atomically(&run.join(ABOUT), about.to_string().as_bytes())
}

/// Writes `report.html` of a run from an overview of its metrics log, and from its `result` once it has one.
pub fn write(run: &Path, overview: &Overview, result: Option<&Value>) -> Result<()> {
    let json = |name: &str| -> Value {
        let text = std::fs::read_to_string(run.join(name)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let config = settings::of(run)?;
    let (training, history) = (overview.training(), overview.lines());
    let before = result.map_or_else(|| json("before.json"), |result| result["before"].clone());
    let after = result.map_or(Value::Null, |result| result["after"].clone());
    let (about, sources) = (json(ABOUT), json("sources.json"));
    let layers = about["layers"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut notes: Vec<String> = NOTES.iter().map(|n| n.to_string()).collect();
    if result.is_none() {
        let step = history.iter().filter_map(|line| line.get("step")?.as_u64()).max().unwrap_or(0);
        notes.insert(0, format!("The run goes on: this is what was known after step {step}."));
    }
    let data = ReportData {
        title: run.file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned()),
        run: [facts(&config, &training, history), origin(run, &about, &sources)].concat(),
        tested: tested(&before, &after),
        examples: examples(&before, &after),
        spectrum: spectrum(&about["spectrum"]),
        tables: slices(&before, &after)
            .into_iter()
            .chain(result.and_then(time))
            .chain([settings_table(&config)])
            .collect(),
        before: Some(before).filter(Value::is_object),
        after: Some(after).filter(Value::is_object),
        layers: layers.map(str::to_string).collect(),
        history: history.into(),
        notes,
    };
    report::write(&data, &run.join("report.html"))
}

/// Paired tests of what a run changed, request by request.
fn tested(before: &Value, after: &Value) -> Vec<Tested> {
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let mut tests = Vec::new();
    for (task, metrics) in after[PER_REQUEST].as_object().into_iter().flatten() {
        for (metric, values) in metrics.as_object().into_iter().flatten() {
            let (before, after) = (numbers(&before[PER_REQUEST][task][metric]), numbers(values));
            if before.is_empty() || before.len() != after.len() {
                continue;
            }
            let differences: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            // Of many requests fewer patterns are enough, and soon done.
            let patterns = (200_000_000 / differences.len()).clamp(2000, 10_000);
            let p = significance::randomisation(&differences, patterns, 0);
            let interval = Some(significance::bootstrap(&differences, patterns, 0.95, 0));
            tests.push(Tested { task: task.clone(), metric: metric.clone(), p, interval });
        }
    }
    let p: Vec<f64> = tests.iter().map(|t| t.p).collect();
    tests.iter_mut().zip(significance::holm(&p)).for_each(|(test, p)| test.p = p);
    tests
}

/// Of an answer: its rank is at least the one told.
const LATER: &str = "rank_or_later";
/// Requests of each kind that a task shows.
const EXAMPLES: usize = 5;

/// Of every task the requests that lost most places, then those that gained most.
fn examples(before: &Value, after: &Value) -> Vec<ReportTable> {
    let tasks = after[ANSWERS].as_object().into_iter().flatten();
    let table = |(task, answers): (&String, &Value)| {
        let (now, then) = (answers.as_array()?, before[ANSWERS][task].as_array()?);
        let rank = |answer: &Value| answer["rank"].as_f64();
        // Of two that stand somewhere behind the best nobody knows which is better.
        let is_known = |then: &Value, now: &Value| then[LATER].is_null() || now[LATER].is_null();
        let pair = |(then, now)| {
            is_known(then, now).then_some(())?;
            Some((rank(now)?.ln() - rank(then)?.ln(), then, now))
        };
        let mut pairs: Vec<(f64, &Value, &Value)> = then.iter().zip(now).filter_map(pair).collect();
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (worse, better) = (pairs.iter().filter(|p| p.0 > 0.0), pairs.iter().rev().filter(|p| p.0 < 0.0));
        let rows: Vec<Vec<String>> = worse
            .take(EXAMPLES)
            .chain(better.take(EXAMPLES))
            .map(|(_, then, now)| example(then, now))
            .collect();
        let header = ["request", "wanted", "rank before", "rank after", "answers before", "answers after"];
        (!rows.is_empty()).then(|| ReportTable {
            title: format!("Requests of {task}"),
            caption: format!(
                "Of the first {} test requests those that lost most places, then those that gained most.",
                pairs.len()
            ),
            header: header.map(str::to_string).to_vec(),
            rows,
        })
    };
    tasks.filter_map(table).collect()
}

fn example(then: &Value, now: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list = |value: &Value| {
        let all = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.enumerate().map(|(at, item)| format!("{}. {item}", at + 1)).collect::<Vec<_>>().join("  ")
    };
    let rank = |answer: &Value| {
        let rank = answer["rank"].as_u64().unwrap_or(0);
        if answer[LATER].is_null() { rank.to_string() } else { format!("{rank} or later") }
    };
    vec![
        text(&now["asked"]),
        text(&now["wanted"]),
        rank(then),
        rank(now),
        list(&then["top"]),
        list(&now["top"]),
    ]
}

const NOTES: [&str; 5] = [
    "Better and worse are said only where a paired randomisation test over the requests finds a difference \
     (p below 0.05 after Holm's correction for all tests of this page). Intervals are of the mean change over requests, \
     by bootstrap, not corrected.",
    "Ranking metrics are means over test requests, by the standard definitions, over all candidates.",
    "Perplexity, KL (base to tuned, nats) and item mass are of held-out general text; perplexity and KL are over \
     the base model's own vocabulary. During training they are of its first few thousand tokens.",
    "Compare forgetting of two methods at equal ranking quality or equal step length: a longer step changes both.",
    "The page holds texts of items, queries and histories from the data.",
];

/// What the run is and did.
fn facts(config: &toml::Table, training: &Value, history: &[Line]) -> Vec<(String, String)> {
    let setting = |section: &str, key: &str| {
        let value = config.get(section).and_then(|s| s.get(key));
        value.map_or(String::new(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_string))
    };
    // The last part of a path: the machine that it was on is nobody's business.
    let name = |section: &str| {
        let path = setting(section, "path");
        Path::new(&path).file_name().map_or(path.clone(), |n| n.to_string_lossy().into_owned())
    };
    let number = |key: &str| training[key].as_f64().unwrap_or(0.0);
    let best = history.iter().rfind(|line| line.get("best") == Some(&Value::Bool(true)));
    let best = best.and_then(|line| line.get("step")?.as_u64());
    let mut facts = vec![
        ("model".to_string(), name("model")),
        ("data".into(), name("data")),
        ("method".into(), setting("gems", "method")),
        (
            "ranks, shared and a task".into(),
            format!("{}, {}", setting("gems", "rank"), setting("gems", "task_rank")),
        ),
        ("null space".into(), setting("null_space", "side")),
        ("learning rate".into(), setting("train", "lr")),
        ("seed".into(), config.get("seed").map_or(String::new(), ToString::to_string)),
        ("steps".into(), format!("{} of {}", number("steps"), setting("train", "steps"))),
        ("best step".into(), best.map_or("—".into(), |step| step.to_string())),
        ("tokens".into(), format!("{:.0}", number("tokens"))),
        ("seconds in steps".into(), format!("{:.1}", number("seconds"))),
        ("peak memory of tensors".into(), format!("{:.1} MB", number("peak_memory_bytes") / 1e6)),
    ];
    let cosines = training.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("cosine."));
    facts.extend(cosines.map(|(k, v)| {
        (format!("mean {}", k.replace('.', " ")), format!("{:+.3}", v.as_f64().unwrap_or(0.0)))
    }));
    facts
}

/// When and on what the run was done, and the fingerprints of what it was made of.
fn origin(path: &Path, about: &Value, sources: &Value) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut put = |name: &str, value: Option<String>| facts.extend(value.map(|v| (name.to_string(), v)));
    let text = |value: &Value| value.as_str().map(str::to_string);
    put("device", text(&about["device"]));
    let started = run::events(path).unwrap_or_default().into_iter().next();
    put("started", started.as_ref().and_then(|e| e.get("unix_time")?.as_u64()).map(date));
    put("version", started.as_ref().and_then(|e| text(e.get("version")?)));
    let print = |value: &Value| value.as_str().map(|hash| hash.chars().take(12).collect::<String>());
    put("fingerprint of the base model", print(&sources["model"]));
    put("of the catalogue", print(&sources["catalogue"]));
    for split in ["train", "test"] {
        let of = &sources["records"][split];
        let told = print(&of["blake3"]).zip(of["count"].as_u64());
        put(
            &format!("of the {split} records"),
            told.map(|(hash, count)| format!("{hash} ({count} records)")),
        );
    }
    facts
}

/// A day of the proleptic Gregorian calendar and its time, UTC (Hinnant's `civil_from_days`).
fn date(unix_time: u64) -> String {
    let (days, seconds) = (unix_time / 86_400 + 719_468, unix_time % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

/// How kinds of requests fare; the test split only.
fn slices(before: &Value, after: &Value) -> Option<ReportTable> {
    let number = |slice: &Value, metric: &str| {
        slice["metrics"][metric].as_f64().map_or("—".into(), |value| format!("{value:.4}"))
    };
    let mut rows = Vec::new();
    for (task, of_task) in after[SLICES].as_object().into_iter().flatten() {
        for (name, now) in of_task.as_object().into_iter().flatten() {
            let then = &before[SLICES][task][name];
            let metrics = ["ndcg@10", "hit@10"].iter().flat_map(|m| [number(then, m), number(now, m)]);
            rows.push(
                [task.clone(), name.clone(), now["requests"].to_string()]
                    .into_iter()
                    .chain(metrics)
                    .collect(),
            );
        }
    }
    let header = ["task", "requests", "how many", "ndcg@10 before", "after", "hit@10 before", "after"];
    (!rows.is_empty()).then(|| ReportTable {
        title: "Kinds of requests".into(),
        caption: "By how often the wanted item is a target in training (head: the most frequent items that make up half of \
                  all targets; cold: never) and by items in the history. Means, without a test."
            .into(),
        header: header.map(str::to_string).to_vec(),
        rows,
    })
}

/// How much of the energy of general text how few directions hold, and where the null space cuts.
fn spectrum(kept: &Value) -> Option<CurveFigure> {
    let curve = |kind: &Value| {
        let point = |point: &Value| {
            let (x, y) = (point[0].as_f64()?, point[1].as_f64()?);
            let label = format!("{x} directions");
            Some(CurvePoint {
                label,
                x,
                y,
                x_interval: None,
                y_interval: None,
                marked: kind["cut"] == point[0],
            })
        };
        let points = kind["points"].as_array().into_iter().flatten().filter_map(point).collect();
        Curve { label: kind["name"].as_str().unwrap_or_default().into(), points }
    };
    let curves: Vec<Curve> = kept.as_array().into_iter().flatten().map(curve).collect();
    (!curves.is_empty()).then(|| CurveFigure {
        title: "Energy of general text in the leading directions".into(),
        caption: "Share of the second moment's trace, by what the inputs serve, as a mean over the layers. Ringed: as many \
                  as the null space protects (also a mean)."
            .into(),
        x: "leading directions".into(),
        linear: false,
        curves,
    })
}

/// Where the time went.
fn time(result: &Value) -> Option<ReportTable> {
    let phases = result["phases"].as_object().filter(|phases| !phases.is_empty())?;
    let all: f64 = phases.values().filter_map(Value::as_f64).sum();
    let row = |(name, seconds): (&String, &Value)| {
        let seconds = seconds.as_f64().unwrap_or(0.0);
        vec![name.clone(), format!("{seconds:.1}"), format!("{:.0} %", 100.0 * seconds / all.max(1e-9))]
    };
    Some(ReportTable {
        title: "Time".into(),
        caption: "Of the process that ended the run.".into(),
        header: vec!["phase".into(), "seconds".into(), "share".into()],
        rows: phases.iter().map(row).collect(),
    })
}

fn settings_table(config: &toml::Table) -> ReportTable {
    let settings = settings::shareable(config).into_iter();
    ReportTable {
        title: "Settings".into(),
        caption: "As resolved, with the last parts of paths; config.toml of the run has them whole.".into(),
        header: vec!["setting".into(), "value".into()],
        rows: settings.map(|(name, value)| vec![name, value.to_string()]).collect(),
    }
}
