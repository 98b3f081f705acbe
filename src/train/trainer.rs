//! The loop: steps in order, validation, checkpoints, and every way a run can end.

use super::batches::{Batches, StepData};
use super::checkpoint;
use super::record::{Listener, StepRecord};
use super::run::RunDirectory;
use super::settings::{CheckpointSettings, TrainSettings};
use super::step::{gradients, probe};
use super::validation::chosen;
use crate::error::{Error, Result};
use crate::gems::{Optimizer, StepInput};
use crate::model::Model;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ending {
    /// All steps were done.
    Finished,
    /// Validation did not improve for `patience` validations.
    Early,
    /// The user asked to stop; a checkpoint was written.
    Interrupted,
}

/// Where a run ended, and where it was best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Steps done.
    pub step: u64,
    /// The best validation: step and value.
    pub best: Option<(u64, f64)>,
}

/// Everything a run is made of.
pub struct Trainer<'a> {
    /// The model.
    pub model: &'a mut Model,
    /// The method.
    pub tuner: &'a mut Optimizer,
    /// What every step learns from.
    pub batches: &'a Batches<'a>,
    /// Task names.
    pub tasks: &'a [String],
    /// Section `[train]`.
    pub settings: &'a TrainSettings,
    /// Section `[checkpoint]`.
    pub checkpoints: &'a CheckpointSettings,
    /// Where it writes.
    pub run: &'a RunDirectory,
    /// Learning rate of item rows at the top of the schedule.
    pub lr_rows: f64,
    /// The warm-up begins at zero (published) instead of one step above.
    pub warmup_from_zero: bool,
    /// Update norms of a reference run to match, step by step.
    pub norms: Option<Vec<f64>>,
    /// Set when the user asks to stop.
    pub interrupted: &'a AtomicBool,
}

/// Where a run stands besides model and method.
#[derive(Debug, Clone, Default, PartialEq)]
struct Progress {
    step: u64,
    best: Option<(u64, f64)>,
    waiting: u64,
    skipped: u64,
    bad_in_a_row: u64,
    /// Examples seen by this process, and those of them that were cut to fit the context.
    seen: (usize, usize),
}

/// Computes validation metrics.
pub type Validate<'a> = dyn FnMut(&Model) -> Result<BTreeMap<String, f64>> + 'a;

impl Trainer<'_> {
    /// Runs to the end, from the latest checkpoint if `resume`.
    ///
    /// # Errors
    /// Whatever fails; what was saved before stays good.
    pub fn run(
        &mut self,
        resume: bool,
        listener: &mut dyn Listener,
        validate: &mut Validate,
    ) -> Result<Outcome> {
        let mut at = Progress::default();
        if resume {
            at = self.restore_latest(listener)?;
        }
        if at.step == 0 && self.settings.steps > 0 {
            self.largest_first()?;
            self.probe(listener)?;
        }
        let ending = self.steps(&mut at, listener, validate)?;
        if let (seen, cut @ 1..) = at.seen {
            listener.note(&format!(
                "{cut} of {seen} examples had their oldest items left out, to fit data.history_limit and data.max_length"
            ));
        }
        if checkpoint::list(&self.run.join("checkpoints"))?.last().is_none_or(|(step, _)| *step != at.step) {
            self.save(&at, listener)?;
        }
        Ok(Outcome { ending, step: at.step, best: at.best })
    }

    /// The largest step there can be, forward and backward, so that what does not fit fails at once.
    fn largest_first(&mut self) -> Result<()> {
        let data = self.batches.longest()?;
        self.model.backend.reset_peak_memory();
        self.tuner.begin_step()?;
        self.gradients(&data).map(drop)
    }

    /// Finds the first bases in the first steps' examples.
    fn probe(&mut self, listener: &mut dyn Listener) -> Result<()> {
        let (batches, settings) = (self.batches, self.settings);
        let found = probe(self.model, self.tuner, |model, tuner| {
            for step in 0..settings.probe_batches.max(1) {
                let (data, checkpointing) = (batches.at(step)?, settings.activation_checkpointing);
                gradients(model, tuner, &data.batches, batches.averaging(), checkpointing)?;
            }
            Ok(())
        })?;
        found.map_or(Ok(()), |found| listener.probed(&found))
    }

    /// Forward and backward passes of a step; returns the labels of every task.
    fn gradients(&mut self, data: &StepData) -> Result<Vec<usize>> {
        let (averaging, checkpointing) = (self.batches.averaging(), self.settings.activation_checkpointing);
        gradients(self.model, self.tuner, &data.batches, averaging, checkpointing)
    }

    fn steps(
        &mut self,
        at: &mut Progress,
        listener: &mut dyn Listener,
        validate: &mut Validate,
    ) -> Result<Ending> {
        let (batches, first, last) = (self.batches, at.step, self.settings.steps);
        std::thread::scope(|scope| {
            // The next steps' tokens are made while this one computes.
            let (sender, receiver) = sync_channel::<Result<StepData>>(2);
            scope.spawn(move || {
                for step in first..last {
                    if sender.send(batches.at(step)).is_err() {
                        break;
                    }
                }
            });
            while at.step < last {
                let Ok(data) = receiver.recv() else { break };
                let every = self.settings.validate_every;
                let validates = every > 0 && (at.step + 1).is_multiple_of(every);
                self.one_step(at, data?, validates, listener)?;
                if validates && !self.validate(at, listener, validate)? {
                    self.save(at, listener)?;
                    return Ok(Ending::Early);
                }
                let saves = self.checkpoints.every > 0 && at.step.is_multiple_of(self.checkpoints.every);
                if self.interrupted.load(Ordering::SeqCst) {
                    self.save(at, listener)?;
                    return Ok(Ending::Interrupted);
                }
                if saves {
                    self.save(at, listener)?;
                }
            }
            Ok(Ending::Finished)
        })
    }

    fn one_step(
        &mut self,
        at: &mut Progress,
        data: StepData,
        validates: bool,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let start = Instant::now();
        let t = self.settings;
        // Warm-up starts above zero: the first step moves too.
        let shift = u64::from(t.warmup_steps > 0 && !self.warmup_from_zero);
        let rate = t.schedule.factor(at.step + shift, t.warmup_steps, t.steps + shift, t.final_lr_ratio);
        self.tuner.begin_step()?;
        let labels = self.gradients(&data)?;
        let input = StepInput {
            labels,
            counts: data.counts.clone(),
            lr: t.lr * rate,
            lr_rows: self.lr_rows * rate,
            target_norm: self.norms.as_ref().and_then(|n| n.get(at.step as usize).copied()),
            last: at.step + 1 == t.steps,
        };
        let report = self.tuner.step(self.model, &input)?;
        at.step += 1;
        at.seen = (at.seen.0 + data.picks.len(), at.seen.1 + data.shortened);
        at.bad_in_a_row = if report.finite { 0 } else { at.bad_in_a_row + 1 };
        at.skipped += u64::from(!report.finite);
        let memory = self.model.backend.memory();
        let (sums, labels) = (&report.losses, &input.labels);
        let record = StepRecord {
            step: at.step,
            loss: sums.iter().sum::<f64>() / labels.iter().sum::<usize>().max(1) as f64,
            losses: sums.iter().zip(labels).map(|(sum, n)| sum / *n as f64).collect(),
            lr: input.lr,
            tokens: data.tokens,
            shortened: data.shortened,
            seconds: start.elapsed().as_secs_f64(),
            memory: (memory.live, memory.taken),
            report,
            skipped: at.skipped,
            validates,
        };
        listener.step(&record)?;
        if !record.report.finite {
            listener.note(&format!("step {}: loss or gradient is not finite; step skipped", at.step));
        }
        if t.max_bad_steps > 0 && at.bad_in_a_row >= t.max_bad_steps {
            return Err(self.dump(at, &data));
        }
        Ok(())
    }

    /// Writes the offending batch and says where.
    fn dump(&self, at: &Progress, data: &StepData) -> Error {
        let path = self.run.join(format!("bad-batch-step-{}.json", at.step));
        let picks: Vec<Value> =
            data.picks.iter().map(|p| json!({"row": p.record + 1, "target": p.target})).collect();
        let batches: Vec<Value> = data
            .batches
            .iter()
            .map(|b| json!({"tokens": b.decoder.tokens, "offsets": b.decoder.offsets, "targets": b.labels.targets}))
            .collect();
        let text = json!({"step": at.step, "records": picks, "batches": batches}).to_string();
        let written = crate::files::write_atomically(&path, text.as_bytes());
        let error = Error::numeric(format!(
            "loss or gradient was not finite {} steps in a row, the last at step {}",
            at.bad_in_a_row, at.step
        ))
        .remedy("lower train.lr or optimizer.lr_rows, or set optimizer.clip_norm = 1; earlier checkpoints are good");
        match written {
            Ok(()) => error.at(path.display()),
            Err(_) => error,
        }
    }

    /// Validates; false when it is time to stop.
    fn validate(
        &mut self,
        at: &mut Progress,
        listener: &mut dyn Listener,
        validate: &mut Validate,
    ) -> Result<bool> {
        let metrics = validate(self.model)?;
        let value = chosen(&metrics, &self.settings.best_metric)?;
        let lower = self.settings.best_metric.ends_with("loss");
        let better = at.best.is_none_or(|(_, best)| if lower { value < best } else { value > best });
        // Told first: what a checkpoint follows on must be in the log when it counts.
        listener.validated(at.step, &metrics, better)?;
        if better {
            at.best = Some((at.step, value));
            at.waiting = 0;
            self.save(at, listener)?;
            self.mark_best(at.step)?;
        } else {
            at.waiting += 1;
        }
        Ok(self.settings.patience == 0 || at.waiting < self.settings.patience)
    }

    fn mark_best(&self, step: u64) -> Result<()> {
        let link = self.run.join("best");
        let target = checkpoint::directory(std::path::Path::new("checkpoints"), step);
        let _ = std::fs::remove_file(&link);
        #[cfg(unix)]
        std::os::unix::fs::symlink(&target, &link)
            .map_err(|e| Error::io("mark the best checkpoint", &link, e))?;
        #[cfg(not(unix))]
        crate::files::write_atomically(&link, target.display().to_string().as_bytes())?;
        Ok(())
    }

    // ---- checkpoints ------------------------------------------------------------------------

    fn save(&mut self, at: &Progress, listener: &mut dyn Listener) -> Result<()> {
        let (tensors, tuner) = self.tuner.state(self.model)?;
        let state = json!({
            "fingerprint": self.model.fingerprint,
            "tasks": self.tasks,
            "tuner": tuner,
            "best": at.best.map(|(step, value)| json!({"step": step, "value": value.to_bits()})),
            "waiting": at.waiting,
            "skipped": at.skipped,
            "bad_in_a_row": at.bad_in_a_row,
        });
        let root = self.run.join("checkpoints");
        checkpoint::save(&root, at.step, &tensors, state)?;
        let best: Vec<u64> = at.best.iter().map(|b| b.0).collect();
        checkpoint::prune(&root, self.checkpoints.keep, &best)?;
        listener.saved(at.step)
    }

    fn restore_latest(&mut self, listener: &mut dyn Listener) -> Result<Progress> {
        let root = self.run.join("checkpoints");
        let found =
            checkpoint::load_latest(&root, |e| listener.note(&format!("checkpoint passed over: {e}")))?;
        found.restore(self.model, self.tuner, self.tasks)?;
        let s = &found.state;
        let best = match (s["best"]["step"].as_u64(), s["best"]["value"].as_u64()) {
            (Some(step), Some(bits)) => Some((step, f64::from_bits(bits))),
            _ => None,
        };
        let count = |key: &str| s[key].as_u64().unwrap_or(0);
        Ok(Progress {
            step: found.step,
            best,
            waiting: count("waiting"),
            skipped: count("skipped"),
            bad_in_a_row: count("bad_in_a_row"),
            seen: (0, 0),
        })
    }
}
