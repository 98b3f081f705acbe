//! What the loop tells while it runs: a record of every step, and who listens.

use crate::distributed::Costs;
use crate::error::Result;
use crate::gems::{Competition, LayerReport, RefreshReport, StepReport};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What the loop tells about a step.
#[derive(Debug, Clone, Default)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Mean loss over all labels.
    pub loss: f64,
    /// Mean loss of every task; NaN where it had no label.
    pub losses: Vec<f64>,
    /// Learning rate of the adapted layers.
    pub lr: f64,
    /// Tokens of the step (rows of all packings).
    pub tokens: usize,
    /// Examples whose history (or query) was cut to fit the context.
    pub shortened: usize,
    /// Wall time of the step.
    pub seconds: f64,
    /// Live and peak bytes of tensors.
    pub memory: (usize, usize),
    /// What the method did.
    pub report: StepReport,
    /// Steps skipped so far because a loss or gradient was not finite.
    pub skipped: u64,
    /// A validation follows.
    pub validates: bool,
    /// How many ranks did the step, and what sums over them cost this one; of one process, nothing.
    pub ranks: Option<(usize, Costs)>,
}

impl StepRecord {
    /// The line of `metrics.jsonl`.
    pub fn to_json(&self, tasks: &[String]) -> Map<String, Value> {
        let mut line = Map::new();
        let mut put = |key: String, value: f64| line.insert(key, number(value));
        put("loss".into(), self.loss);
        for (task, loss) in tasks.iter().zip(&self.losses).filter(|(_, l)| l.is_finite()) {
            put(format!("loss.{task}"), *loss);
        }
        put("lr".into(), self.lr);
        let r = &self.report;
        put("gradient_norm".into(), r.gradient_norm);
        put("update_norm".into(), r.update_norm);
        put("clip".into(), r.clip);
        for (task, gate) in tasks.iter().zip(&r.gates) {
            put(format!("gate.{task}"), *gate);
        }
        for (task, norm) in tasks.iter().zip(&r.task_norms) {
            put(format!("task_norm.{task}"), *norm);
        }
        for (i, j, cosine) in &r.competition.cosines {
            put(format!("cosine.{}.{}", tasks[*i], tasks[*j]), *cosine);
        }
        for (task, alignment) in tasks.iter().zip(&r.competition.alignments).filter(|_| tasks.len() > 1) {
            put(format!("alignment.{task}"), *alignment);
        }
        if let Some((tokens, kl)) = r.rehearsed {
            put("rehearsal.kl".into(), kl);
            put("rehearsal.tokens".into(), tokens as f64);
        }
        if let Some(refresh) = &r.refresh {
            line.extend(refresh_json(refresh, tasks));
        }
        let mut put = |key: &str, value: f64| line.insert(key.into(), number(value));
        put("tokens_per_second", self.tokens as f64 / self.seconds.max(1e-9));
        put("step_ms", self.seconds * 1e3);
        put("tokens", self.tokens as f64);
        put("shortened", self.shortened as f64);
        put("memory_bytes", self.memory.0 as f64);
        put("peak_memory_bytes", self.memory.1 as f64);
        if let Some((ranks, costs)) = self.ranks {
            put("ranks", ranks as f64);
            put("exchange_bytes", costs.bytes as f64);
            put("exchange_bytes_outside", costs.outside as f64);
            put("exchange_ms", costs.exchange.as_secs_f64() * 1e3);
            put("wait_ms", costs.wait.as_secs_f64() * 1e3);
            put("slowest_rank", costs.slowest as f64);
        }
        let mut all = Map::from_iter([("step".to_string(), json!(self.step))]);
        if !r.finite {
            all.insert("skipped".into(), json!(self.skipped));
        }
        all.extend(line);
        all.extend(by_layer(&r.layers, tasks));
        all
    }
}

/// How far each layer was moved and how the tasks compete in it: lists in the order of the adapted layers, to four digits
/// and to four decimals.
fn by_layer(layers: &[LayerReport], tasks: &[String]) -> Map<String, Value> {
    let list = |of: &dyn Fn(&Competition) -> Option<f64>| {
        let value =
            |layer: &LayerReport| number((of(&layer.competition).unwrap_or(f64::NAN) * 1e4).round() / 1e4);
        Value::Array(layers.iter().map(value).collect())
    };
    let mut all = Map::new();
    if layers.len() > 1 {
        let changes = layers.iter().map(|layer| number(digits(layer.change)));
        all.insert("layers.update_norm".into(), Value::Array(changes.collect()));
    }
    if tasks.len() < 2 || layers.is_empty() {
        return all;
    }
    for (i, first) in tasks.iter().enumerate() {
        for (j, second) in tasks.iter().enumerate().skip(i + 1) {
            let cosine = move |layer: &Competition| {
                layer.cosines.iter().find(|(a, b, _)| (*a, *b) == (i, j)).map(|(_, _, cosine)| *cosine)
            };
            all.insert(format!("layers.cosine.{first}.{second}"), list(&cosine));
        }
        all.insert(format!("layers.alignment.{first}"), list(&|layer| layer.alignments.get(i).copied()));
    }
    all
}

/// What a refresh found, as keys of a metrics line: means, and of several layers their lists, to four digits.
pub fn refresh_json(refresh: &RefreshReport, tasks: &[String]) -> Map<String, Value> {
    let mut line = Map::from_iter([("room".to_string(), number(refresh.room))]);
    let list =
        |values: &mut dyn Iterator<Item = f64>| Value::Array(values.map(|v| number(digits(v))).collect());
    let several = refresh.rooms.len() > 1;
    if several {
        line.insert("layers.room".into(), list(&mut refresh.rooms.iter().map(|r| r.1)));
    }
    if let Some(lost) = refresh.lost {
        line.insert("remainder_lost".into(), number(lost));
    }
    for (s, energy) in refresh.energy.iter().enumerate() {
        let name = if s == 0 { "shared" } else { tasks.get(s - 1).map_or("?", String::as_str) };
        line.insert(format!("energy.{name}"), number(*energy));
        if several {
            let of_layers = &mut refresh.energies.iter().map(|of| of.get(s).copied().unwrap_or(f64::NAN));
            line.insert(format!("layers.energy.{name}"), list(of_layers));
        }
    }
    line
}

/// To four digits.
fn digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// What a run reports to, while it runs.
pub trait Listener {
    /// The first bases were found.
    fn probed(&mut self, refresh: &RefreshReport) -> Result<()>;
    /// A step ended.
    fn step(&mut self, record: &StepRecord) -> Result<()>;
    /// A validation ended: metrics by name.
    fn validated(&mut self, step: u64, metrics: &BTreeMap<String, f64>, best: bool) -> Result<()>;
    /// A checkpoint is about to be written: what was told before must be on the disk.
    fn flush(&mut self) -> Result<()>;
    /// A checkpoint was written.
    fn saved(&mut self, step: u64) -> Result<()>;
    /// Something the user should know.
    fn note(&mut self, text: &str);
}

/// Listens to nothing: of a rank that another one talks for.
pub struct Silent;

impl Listener for Silent {
    fn probed(&mut self, _: &RefreshReport) -> Result<()> {
        Ok(())
    }
    fn step(&mut self, _: &StepRecord) -> Result<()> {
        Ok(())
    }
    fn validated(&mut self, _: u64, _: &BTreeMap<String, f64>, _: bool) -> Result<()> {
        Ok(())
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
    fn saved(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
    fn note(&mut self, _: &str) {}
}
