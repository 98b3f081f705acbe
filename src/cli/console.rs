//! What is shown and kept while a run goes on: progress, `metrics.jsonl`, TensorBoard events.

use crate::error::Result;
use crate::gems::RefreshReport;
use crate::report::{EventWriter, Line, MetricsLog, Progress, training_message};
use crate::train::run::RunDirectory;
use crate::train::{Listener, StepRecord, refresh_json};
use serde_json::{Map, json};
use std::collections::BTreeMap;

/// Listens to a training run.
pub struct Console {
    tasks: Vec<String>,
    log: MetricsLog,
    events: EventWriter,
    progress: Progress,
}

impl Console {
    /// Of a run of `steps` steps that begins after step `done`; `resumed` says that it goes on.
    pub fn open(
        run: &RunDirectory,
        tasks: &[String],
        (done, steps): (u64, u64),
        resumed: bool,
        quiet: bool,
    ) -> Result<Self> {
        Ok(Self {
            tasks: tasks.to_vec(),
            log: MetricsLog::open(&run.join("metrics.jsonl"), done)?,
            events: EventWriter::open(&run.join("tensorboard"), resumed.then_some(done))?,
            progress: Progress::new("training", steps, quiet).starting_at(done),
        })
    }
    /// The end of the progress display.
    pub fn finish(&mut self) {
        self.progress.finish();
    }
    fn write(&mut self, line: &Line) -> Result<()> {
        self.log.write(line)?;
        self.events.write(line)
    }
}

impl Listener for Console {
    fn probed(&mut self, refresh: &RefreshReport) -> Result<()> {
        let mut line = Map::from_iter([("step".to_string(), json!(0))]);
        line.extend(refresh_json(refresh, &self.tasks));
        self.write(&line)
    }
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        let line = record.to_json(&self.tasks);
        self.progress.tick(record.step, || training_message(&line));
        self.write(&line)
    }
    fn validated(&mut self, step: u64, metrics: &BTreeMap<String, f64>, best: bool) -> Result<()> {
        let mut line = Map::from_iter([("step".to_string(), json!(step)), ("best".to_string(), json!(best))]);
        line.extend(metrics.iter().map(|(k, v)| (format!("valid.{k}"), json!(v))));
        self.write(&line)
    }
    fn saved(&mut self, _: u64) -> Result<()> {
        self.log.sync()
    }
    fn note(&mut self, text: &str) {
        self.progress.note(text);
    }
}
