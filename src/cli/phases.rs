//! Where the time of a command goes.

use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Seconds of every phase of this process, in order.
#[derive(Default)]
pub struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    /// Does the work of a phase.
    pub fn time<T>(&mut self, phase: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.add(phase, start.elapsed());
        done
    }
    /// Adds what a phase took.
    pub fn add(&mut self, phase: &'static str, spent: Duration) {
        match self.0.iter_mut().find(|(name, _)| *name == phase) {
            Some((_, so_far)) => *so_far += spent,
            None => self.0.push((phase, spent)),
        }
    }
    /// Seconds by phase, to the millisecond.
    pub fn json(&self) -> Value {
        let seconds = |spent: &Duration| json!((spent.as_secs_f64() * 1e3).round() / 1e3);
        Value::Object(
            self.0.iter().map(|(phase, spent)| ((*phase).into(), seconds(spent))).collect::<Map<_, _>>(),
        )
    }
}
