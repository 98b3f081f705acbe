//! The report of a run: one HTML file that needs no network and no scripts.

use super::Line;
use super::comparison::{Comparison, Group, Measure, Verdict};
use super::curves::CurveFigure;
use super::figures::{figures, trade_off};
use super::format::{number, optional, percent, signed};
use super::heat::{HeatMap, maps};
use super::plot::{Figure, Series};
use super::report_table::ReportTable;
use super::template::{self, REPORT};
use crate::error::Result;
use crate::files::write_atomically;
use minijinja::{Value, context};
use std::borrow::Cow;
use std::path::Path;

/// What a report is made of. Whatever is empty is left out of it.
#[derive(Debug, Clone, Default)]
pub struct ReportData<'a> {
    /// What was run, in a few words.
    pub title: String,
    /// Facts of the run: (name, value).
    pub run: Vec<(String, String)>,
    /// Measured before training: `{"<task>": {"ndcg@10": ..}, "general": {"perplexity": ..}}`.
    pub before: Option<serde_json::Value>,
    /// The same after training.
    pub after: Option<serde_json::Value>,
    /// Which changes were tested, and what came out: only a tested change is called better or worse.
    pub tested: Vec<Tested>,
    /// Lines of `metrics.jsonl`.
    pub history: Cow<'a, [Line]>,
    /// Names of the adapted layers, in the order of the lists in `history`.
    pub layers: Vec<String>,
    /// What general text uses of the layers' inputs, and what of it is protected.
    pub spectrum: Option<CurveFigure>,
    /// Requests with their answers before and after: tables of texts.
    pub examples: Vec<ReportTable>,
    /// Further tables: slices, significance, comparisons.
    pub tables: Vec<ReportTable>,
    /// What the reader should know: warnings, limits, how to read the numbers.
    pub notes: Vec<String>,
}

/// A paired test of one metric before and after.
#[derive(Debug, Clone, PartialEq)]
pub struct Tested {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The p-value, corrected for all tests of the report.
    pub p: f64,
    /// 95 % interval of the mean change over requests.
    pub interval: Option<(f64, f64)>,
}

/// The largest p-value of a difference that is called one.
const SIGNIFICANT: f64 = 0.05;

/// Renders the report and writes it to `path`, whole or not at all.
///
/// # Errors
/// When it cannot be rendered or written.
pub fn write(data: &ReportData, path: &Path) -> Result<()> {
    write_atomically(path, render(data)?.as_bytes())
}

/// Renders the report as the text of an HTML file.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn render(data: &ReportData) -> Result<String> {
    let comparison = Comparison::new(data.before.as_ref(), data.after.as_ref());
    let figures = figures(&data.history).iter().map(figure).collect::<Result<Vec<_>>>()?;
    let trade_off = trade_off(&data.history).map(|figure| figure.values()).transpose()?;
    let general = (!comparison.general.measures.is_empty())
        .then(|| Group { name: "general knowledge".into(), measures: comparison.general.measures });
    let groups: Vec<&Group> = comparison.tasks.iter().chain(&general).collect();
    let values = context! {
        title => &data.title,
        facts => data.run.iter().map(|(name, value)| context! { name, value }).collect::<Vec<_>>(),
        headlines => groups.iter().filter_map(|group| headline(group, &data.tested)).collect::<Vec<_>>(),
        groups => groups.iter().map(|group| rows(group, &data.tested)).collect::<Vec<_>>(),
        figures,
        trade_off,
        spectrum => data.spectrum.as_ref().map(CurveFigure::values).transpose()?,
        maps => maps(&data.history, &data.layers).iter().map(map).collect::<Vec<_>>(),
        examples => data.examples.iter().map(table).collect::<Vec<_>>(),
        tables => data.tables.iter().map(table).collect::<Vec<_>>(),
        notes => &data.notes,
    };
    template::render(REPORT, values)
}

/// The group's first measure, large.
fn headline(group: &Group, tested: &[Tested]) -> Option<Value> {
    let measure = group.measures.first()?;
    Some(context! { group => &group.name, ..cells(group, measure, tested) })
}

fn rows(group: &Group, tested: &[Tested]) -> Value {
    context! { name => &group.name, measures => group.measures.iter().map(|m| cells(group, m, tested)).collect::<Vec<_>>() }
}

fn cells(group: &Group, measure: &Measure, tested: &[Tested]) -> Value {
    let test = tested.iter().find(|t| t.task == group.name && t.metric == measure.name);
    let (class, mark, verdict) = match (measure.verdict(), test.map(|t| t.p < SIGNIFICANT)) {
        (Some(Verdict::Same), _) => ("", "=", "unchanged"),
        (Some(Verdict::Better), Some(true)) => ("better", "▲", "better"),
        (Some(Verdict::Worse), Some(true)) => ("worse", "▼", "worse"),
        (_, Some(false)) => ("", "", "may be luck"),
        _ => ("", "", ""),
    };
    context! {
        name => &measure.name,
        before => optional(measure.before),
        after => optional(measure.after),
        has_before => measure.before.is_some(),
        change => measure.change().map(signed),
        relative => measure.relative().map(percent),
        interval => test.and_then(|t| t.interval).map(|(low, high)| format!("{} to {}", signed(low), signed(high))),
        class,
        mark,
        verdict,
    }
}

fn figure(figure: &Figure) -> Result<Value> {
    let smoothed = figure.series.iter().find(|series| series.is_smoothed());
    Ok(context! {
        title => &figure.title,
        caption => &figure.caption,
        smoothing => smoothed.map(Series::window),
        missing => figure.series.iter().map(|series| series.missing).sum::<usize>(),
        description => describe(figure),
        svg => Value::from_safe_string(figure.svg()?),
        series => figure.series.iter().map(legend).collect::<Vec<_>>(),
    })
}

/// What the plot shows, for those who do not see it.
fn describe(figure: &Figure) -> String {
    let parts = figure.series.iter().filter_map(|series| {
        let (first, last) = (series.points.first()?, series.points.last()?);
        let ends =
            format!("{} at step {} to {} at step {}", number(first.1), first.0, number(last.1), last.0);
        Some(format!("{} from {ends}", series.label))
    });
    format!("{}: {}.", figure.title, parts.collect::<Vec<_>>().join("; "))
}

fn legend(series: &Series) -> Value {
    let values = || series.points.iter().map(|point| point.1);
    let end = |point: Option<&(f64, f64)>| optional(point.map(|p| p.1));
    context! {
        label => &series.label,
        color => series.tone().hex(),
        stroke => series.stroke(),
        points => series.points.len(),
        missing => series.missing,
        first => end(series.points.first()),
        last => end(series.points.last()),
        least => number(values().fold(f64::INFINITY, f64::min)),
        most => number(values().fold(f64::NEG_INFINITY, f64::max)),
    }
}

fn map(map: &HeatMap) -> Value {
    context! {
        title => &map.title,
        caption => &map.caption,
        legend => map.legend(),
        description => map.described(),
        svg => Value::from_safe_string(map.svg()),
    }
}

fn table(table: &ReportTable) -> Value {
    context! {
        title => &table.title,
        caption => &table.caption,
        header => &table.header,
        rows => table.rows.iter().map(Value::from).collect::<Vec<_>>(),
    }
}
