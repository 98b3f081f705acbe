//! What is shown and kept while a run goes on: progress, `metrics.jsonl`, TensorBoard events, `log.txt`.

use super::{page, settings};
use crate::error::Result;
use crate::gems::RefreshReport;
use crate::report::{EventWriter, Journal, Line, MetricsLog, Progress, training_message};
use crate::train::{Listener, StepRecord, refresh_json};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Listens to a training run.
pub struct Console<'a> {
    run: PathBuf,
    journal: &'a Journal,
    tasks: Vec<String>,
    log: MetricsLog,
    events: EventWriter,
    progress: Progress,
    /// Whether each line of the log goes to standard output too.
    stream: bool,
    /// What belongs to a step whose line is not written yet: a line of the log is all there is of a step.
    held: Line,
}

impl<'a> Console<'a> {
    /// Of a run of `steps` steps that goes on after step `done`. What was kept of later steps is dropped. Progress is shown,
    /// or with `json` given out line by line.
    pub fn open(
        run: &Path,
        journal: &'a Journal,
        tasks: &[String],
        (done, steps): (u64, u64),
        json: bool,
    ) -> Result<Self> {
        let events = run.join("tensorboard");
        let resumed = events.is_dir().then_some(done);
        let mut events = EventWriter::open(&events, resumed)?;
        events.settings(&settings::shareable(&settings::of(run)?), &compared(tasks))?;
        Ok(Self {
            run: run.to_path_buf(),
            journal,
            tasks: tasks.to_vec(),
            log: MetricsLog::open(&run.join("metrics.jsonl"), done)?,
            events,
            progress: Progress::new("training", steps, json).starting_at(done),
            stream: json,
            held: Line::new(),
        })
    }
    /// The end of the progress display, and of the log; `ended`: of the run too.
    pub fn finish(&mut self, ended: bool) -> Result<()> {
        self.progress.finish();
        self.write()?;
        if ended { self.events.finish() } else { Ok(()) }
    }
    fn write(&mut self) -> Result<()> {
        let line = std::mem::take(&mut self.held);
        // What the first bases are like waits for the first step.
        if !line.contains_key("step") {
            self.held = line;
            return Ok(());
        }
        self.log.write(&line)?;
        if self.stream {
            // Whoever listened may be gone: that is no reason to stop.
            let _ = writeln!(std::io::stdout(), "{}", json!(line));
        }
        self.events.write(&line)
    }
}

/// What a table of several runs shows of each: names of a line.
fn compared(tasks: &[String]) -> Vec<String> {
    let ranking = tasks.iter().map(|task| format!("valid.{task}.ndcg@10"));
    ["loss".to_string(), "valid.general.kl".into()].into_iter().chain(ranking).collect()
}

impl Listener for Console<'_> {
    fn probed(&mut self, refresh: &RefreshReport) -> Result<()> {
        self.held = refresh_json(refresh, &self.tasks);
        Ok(())
    }
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        let mut line = record.to_json(&self.tasks);
        if record.report.refresh.is_some() {
            self.journal.keep(&format!(
                "renewed the bases after step {}: {}",
                record.step,
                training_message(&line)
            ));
        }
        self.progress.tick(record.step, || training_message(&line));
        line.extend(std::mem::take(&mut self.held));
        self.held = line;
        if record.validates { Ok(()) } else { self.write() }
    }
    fn validated(&mut self, step: u64, metrics: &BTreeMap<String, f64>, best: bool) -> Result<()> {
        // Before the first step there is no line to join.
        let first = (step == 0).then(|| std::mem::take(&mut self.held));
        if first.is_some() {
            self.held.insert("step".into(), json!(step));
        }
        self.held.insert("best".into(), json!(best));
        self.held.extend(metrics.iter().map(|(k, v)| (format!("valid.{k}"), json!(v))));
        let list: Vec<String> = metrics.iter().map(|(k, v)| format!("{k} {v:.4}")).collect();
        let best = if best { ", the best so far" } else { "" };
        self.journal.keep(&format!("validated after step {step}{best}: {}", list.join(", ")));
        self.write()?;
        self.held.extend(first.unwrap_or_default());
        // A page that cannot be written is no reason to stop.
        if let Err(error) = page::write(&self.run, self.log.overview(), None) {
            self.journal.keep(&format!("no report yet: {error}"));
        }
        Ok(())
    }
    fn saved(&mut self, step: u64) -> Result<()> {
        self.journal.keep(&format!("saved a checkpoint after step {step}"));
        Ok(())
    }
    fn flush(&mut self) -> Result<()> {
        self.log.sync()
    }
    fn note(&mut self, text: &str) {
        self.journal.keep(text);
        self.progress.note(text);
    }
}
