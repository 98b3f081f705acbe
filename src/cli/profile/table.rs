//! The table of a profile: what takes time, against what it must take.

use crate::backend::trace::{Ended, Record};
use crate::backend::work::{Peaks, Work};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// All launches of one kernel (or calls of one operation) in a step, on average.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The kernel or operation.
    pub name: String,
    /// Calls a step.
    pub calls: f64,
    /// Milliseconds a step on the device; `None` where it computes nothing.
    pub ms: Option<f64>,
    /// Its share of all of them, in percent.
    pub share: Option<f64>,
    /// GB/s of the bytes that it must move.
    pub gb_per_s: Option<f64>,
    /// TFLOP/s.
    pub tflop_per_s: Option<f64>,
    /// The floor's share of the time, in percent.
    pub percent_of_floor: Option<f64>,
    /// Milliseconds a step above the floor.
    pub lost_ms: Option<f64>,
    /// GB that it must move a step.
    pub gb: f64,
    /// GFLOP that it must compute a step.
    pub gflop: f64,
    /// Microseconds a call that the host spends on launching it.
    pub host_us: f64,
}

#[derive(Default)]
struct Sum {
    calls: usize,
    seconds: Option<f64>,
    host: f64,
    work: Work,
    floor: f64,
}

/// Rows by name, the largest loss first (without times: the most calls first).
pub fn rows(records: &[Record], steps: usize, peaks: Option<&Peaks>) -> Vec<Row> {
    let mut sums = BTreeMap::<&str, Sum>::new();
    for r in records {
        let sum = sums.entry(&r.name).or_default();
        let work = r.work.unwrap_or_default();
        sum.calls += 1;
        sum.host += r.host;
        sum.seconds = r.seconds.map(|s| s + sum.seconds.unwrap_or(0.0)).or(sum.seconds);
        sum.work = sum.work + work;
        // Floors add up call by call: one may be bound by memory, another by arithmetic.
        sum.floor += peaks.map_or(0.0, |p| work.floor(p));
    }
    let steps = steps.max(1) as f64;
    let all: f64 = sums.values().filter_map(|s| s.seconds).sum();
    let row = |(name, s): (&&str, &Sum)| {
        let rate = |amount: u64, unit: f64| s.seconds.filter(|t| *t > 0.0).map(|t| amount as f64 / t / unit);
        let floor = s.seconds.filter(|t| *t > 0.0 && peaks.is_some());
        Row {
            name: name.to_string(),
            calls: s.calls as f64 / steps,
            ms: s.seconds.map(|t| t / steps * 1e3),
            share: s.seconds.filter(|_| all > 0.0).map(|t| 100.0 * t / all),
            gb_per_s: rate(s.work.bytes, 1e9),
            tflop_per_s: rate(s.work.flops, 1e12),
            percent_of_floor: floor.map(|t| 100.0 * s.floor / t),
            lost_ms: floor.map(|t| (t - s.floor) / steps * 1e3),
            gb: s.work.bytes as f64 / steps / 1e9,
            gflop: s.work.flops as f64 / steps / 1e9,
            host_us: s.host / s.calls as f64 * 1e6,
        }
    };
    let mut rows: Vec<Row> = sums.iter().map(row).collect();
    let key = |r: &Row| r.lost_ms.or(r.ms).unwrap_or(r.calls);
    rows.sort_by(|a, b| key(b).total_cmp(&key(a)));
    rows
}

/// Milliseconds a step by phase: the spans right inside a step, and all launches in them.
pub fn phases(records: &[Record], steps: usize) -> BTreeMap<String, f64> {
    let mut phases = BTreeMap::new();
    for r in records {
        let phase = r.place.split('/').nth(1).unwrap_or("other");
        *phases.entry(phase.to_string()).or_insert(0.0) +=
            r.seconds.unwrap_or(0.0) / steps.max(1) as f64 * 1e3;
    }
    phases
}

/// The rows as text, at most `most` of them.
pub fn text(rows: &[Row], most: usize) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "kernel", "calls", "ms", "share", "GB/s", "TFLOP/s", "of floor", "lost ms", "GB", "GFLOP", "host µs",
    ]);
    let number = |v: Option<f64>, digits: usize| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
    let percent = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.1} %"));
    for r in rows.iter().take(most) {
        table.add_row([
            r.name.clone(),
            number(Some(r.calls), 0),
            number(r.ms, 3),
            percent(r.share),
            number(r.gb_per_s, 1),
            number(r.tflop_per_s, 3),
            percent(r.percent_of_floor),
            number(r.lost_ms, 3),
            number(Some(r.gb), 3),
            number(Some(r.gflop), 1),
            number(Some(r.host_us), 1),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
    table.to_string()
}

/// A trace that Perfetto and chrome://tracing open: the host's spans, and the device's launches.
pub fn chrome(records: &[Record], spans: &[Ended]) -> Value {
    let us = |seconds: f64| seconds * 1e6;
    let track = |thread: u32, name: &str| json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": thread, "args": {"name": name}});
    let mut events = vec![track(1, "host: phases and layers"), track(2, "device: kernels")];
    events.extend(spans.iter().map(
        |s| json!({"ph": "X", "name": s.name, "pid": 1, "tid": 1, "ts": us(s.start), "dur": us(s.seconds)}),
    ));
    events.extend(records.iter().map(|r| {
        let work = r.work.unwrap_or_default();
        let arguments = json!({
            "place": r.place, "blocks": r.blocks, "bytes": work.bytes, "flops": work.flops,
            "host_us": us(r.host),
        });
        let seconds = r.seconds.unwrap_or(r.host);
        json!({"ph": "X", "name": r.name, "pid": 1, "tid": 2, "ts": us(r.at.unwrap_or(r.start)),
            "dur": us(seconds), "args": arguments})
    }));
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}
