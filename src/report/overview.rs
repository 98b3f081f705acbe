//! What is kept of a metrics log for its page: evenly chosen lines, and sums over all. However long a run, it stays as large.

use super::Line;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// An overview of a metrics log. Lines that are added one by one make the same one as the file that they are in.
#[derive(Debug, Default)]
pub struct Overview {
    shown: Vec<Line>,
    /// Of every line that is shown, of what kind it is.
    kinds: Vec<usize>,
    counts: [Count; 4],
    totals: Totals,
}

/// Lines of a kind that are shown at most, beside the last one: a plot shows no more points.
const SHOWN: u64 = 500;

/// Lines of a kind: how many came, how many of these are evenly chosen, every so many-th (two to the power of `halved`).
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    came: u64,
    chosen: u64,
    halved: u32,
    /// The last one is shown only until the next one comes.
    passing: bool,
}

/// Sums over the steps of a log.
#[derive(Debug, Default)]
struct Totals {
    steps: u64,
    peak_memory_bytes: f64,
    /// Of every name the sum of its values, and how many there are.
    sums: BTreeMap<String, (f64, u64)>,
}

impl Overview {
    /// Adds the next line of the log.
    pub fn add(&mut self, line: Line) {
        self.totals.add(&line);
        let kind = kind(&line);
        if self.counts[kind].passing {
            self.forget_last(kind);
        }
        let count = &mut self.counts[kind];
        let chosen = count.came.is_multiple_of(1 << count.halved);
        if chosen && count.chosen == SHOWN {
            (count.chosen, count.halved) = (SHOWN / 2, count.halved + 1);
            self.forget_every_second(kind);
        }
        let count = &mut self.counts[kind];
        count.came += 1;
        count.chosen += u64::from(chosen);
        count.passing = !chosen;
        self.shown.push(line);
        self.kinds.push(kind);
    }

    /// The lines that a page shows, in the order of the log: evenly chosen ones of steps, of refreshes, of validations and of new bests,
    /// and the last one of each.
    pub fn lines(&self) -> &[Line] {
        &self.shown
    }

    /// Facts of a run's training: steps, tokens, seconds, peak memory, mean length of a step, and the mean cosine between the
    /// gradients of each pair of tasks.
    pub fn training(&self) -> Value {
        self.totals.facts()
    }

    fn forget_last(&mut self, kind: usize) {
        if let Some(at) = self.kinds.iter().rposition(|of| *of == kind) {
            self.kinds.remove(at);
            self.shown.remove(at);
        }
    }

    fn forget_every_second(&mut self, kind: usize) {
        let mut place = 0;
        let stays = |of: &usize| {
            place += usize::from(*of == kind);
            *of != kind || !place.is_multiple_of(2)
        };
        let stays: Vec<bool> = self.kinds.iter().map(stays).collect();
        let (mut of_kinds, mut of_lines) = (stays.iter(), stays.iter());
        self.kinds.retain(|_| of_kinds.next() == Some(&true));
        self.shown.retain(|_| of_lines.next() == Some(&true));
    }
}

/// Kinds are thinned each by itself: rare ones would be lost among the others.
fn kind(line: &Line) -> usize {
    if line.get("best") == Some(&Value::Bool(true)) {
        3
    } else if line.keys().any(|key| key.starts_with("valid.")) {
        2
    } else {
        usize::from(line.contains_key("room"))
    }
}

/// What is summed over a run's steps, beside the cosines.
const SUMMED: [&str; 3] = ["tokens", "step_ms", "update_norm"];

impl Totals {
    fn add(&mut self, line: &Line) {
        if !line.contains_key("loss") {
            return;
        }
        self.steps += 1;
        let peak = line.get("peak_memory_bytes").and_then(Value::as_f64).unwrap_or(0.0);
        self.peak_memory_bytes = self.peak_memory_bytes.max(peak);
        for (name, value) in line {
            let summed = SUMMED.contains(&name.as_str()) || name.starts_with("cosine.");
            if let Some(value) = value.as_f64().filter(|_| summed) {
                let (sum, count) = self.sums.entry(name.clone()).or_default();
                *sum += value;
                *count += 1;
            }
        }
    }

    fn facts(&self) -> Value {
        let sum = |name: &str| self.sums.get(name).map_or(0.0, |(sum, _)| *sum);
        let mean = |(sum, count): (f64, u64)| sum / count.max(1) as f64;
        let norm = mean(self.sums.get("update_norm").copied().unwrap_or_default());
        let mut facts = Map::new();
        let mut put = |name: &str, value: Value| facts.insert(name.into(), value);
        put("steps", json!(self.steps));
        put("tokens", json!(sum("tokens") as u64));
        put("seconds", json!(sum("step_ms") / 1e3));
        put("peak_memory_bytes", json!(self.peak_memory_bytes));
        put("mean_update_norm", json!(norm));
        let pairs = self.sums.iter().filter(|(name, _)| name.starts_with("cosine."));
        facts.extend(pairs.map(|(pair, of)| (pair.clone(), json!(mean(*of)))));
        Value::Object(facts)
    }
}
