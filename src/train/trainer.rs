//! The loop: steps in order, validation, checkpoints, and every way a run can end.

use super::batches::{Batches, StepData};
use super::checkpoint::{self, Checkpoint};
use super::record::{Listener, StepRecord};
use super::rehearsal::Rehearsal;
use super::settings::{CheckpointSettings, TrainSettings};
use super::step::{gradients, probe, rehearse};
use super::validation::chosen;
use crate::error::{Error, Result};
use crate::gems::{Optimizer, StepInput};
use crate::model::Model;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// General text that is read again, if any.
    pub rehearsal: Option<&'a Rehearsal>,
    /// Task names.
    pub tasks: &'a [String],
    /// Section `[train]`.
    pub settings: &'a TrainSettings,
    /// Section `[checkpoint]`.
    pub checkpoints: &'a CheckpointSettings,
    /// The run's directory.
    pub run: &'a Path,
    /// Learning rate of item rows at the top of the schedule.
    pub lr_rows: f64,
    /// The warm-up begins at zero (published) instead of one step above.
    pub warmup_from_zero: bool,
    /// Update norms of a reference run to match, by step; a step without one is not matched.
    pub norms: Option<&'a [Option<f64>]>,
    /// Set when the user asks to stop.
    pub interrupted: &'a AtomicBool,
}

/// Where a run stands besides model and method.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Steps done.
    pub step: u64,
    /// The best validation: step and value.
    pub best: Option<(u64, f64)>,
    waiting: u64,
    skipped: u64,
    bad_in_a_row: u64,
    /// The step of the newest checkpoint.
    saved: Option<u64>,
    /// Examples seen by this process, and those of them that were cut to fit the context.
    seen: (usize, usize),
}

impl Standing {
    /// That of a checkpoint.
    pub fn of(found: &Checkpoint) -> Self {
        let s = &found.state;
        let best = match (s["best"]["step"].as_u64(), s["best"]["value"].as_u64()) {
            (Some(step), Some(bits)) => Some((step, f64::from_bits(bits))),
            _ => None,
        };
        let count = |key: &str| s[key].as_u64().unwrap_or(0);
        Self {
            step: found.step,
            best,
            waiting: count("waiting"),
            skipped: count("skipped"),
            bad_in_a_row: count("bad_in_a_row"),
            saved: Some(found.step),
            seen: (0, 0),
        }
    }

    /// Whether nothing is left to do under these settings.
    pub fn is_over(&self, settings: &TrainSettings) -> bool {
        self.step >= settings.steps || !self.is_patient(settings)
    }

    fn is_patient(&self, settings: &TrainSettings) -> bool {
        settings.patience == 0 || self.waiting < settings.patience
    }
}

/// Computes validation metrics.
pub type Validate<'a> = dyn FnMut(&Model) -> Result<BTreeMap<String, f64>> + 'a;

impl Trainer<'_> {
    /// Runs to the end, from where model and method stand.
    ///
    /// # Errors
    /// Whatever fails; what was saved before stays good.
    pub fn run(
        &mut self,
        mut at: Standing,
        listener: &mut dyn Listener,
        validate: &mut Validate,
    ) -> Result<Outcome> {
        if let Some((step, _)) = at.best {
            self.mark_best(step)?;
        }
        if at.step == 0 && self.settings.steps > 0 {
            self.largest_first()?;
            self.probe(listener)?;
        }
        let ending = match at.is_patient(self.settings) {
            true => self.steps(&mut at, listener, validate)?,
            false => Ending::Early,
        };
        if let (seen, cut @ 1..) = at.seen {
            listener.note(&format!(
                "{cut} of {seen} examples had their oldest items left out, to fit data.history_limit and data.max_length"
            ));
        }
        if at.saved != Some(at.step) {
            self.save(&mut at, listener)?;
        }
        Ok(Outcome { ending, step: at.step, best: at.best })
    }

    /// The largest step there can be, forward and backward, so that what does not fit fails at once.
    fn largest_first(&mut self) -> Result<()> {
        let data = self.batches.longest()?;
        self.model.backend.reset_peak_memory();
        self.tuner.begin_step()?;
        self.rehearse(0)?;
        self.gradients(&data).map(drop)
    }

    fn rehearse(&mut self, step: u64) -> Result<()> {
        rehearse(self.rehearsal, self.model, self.tuner, step, self.settings.activation_checkpointing)
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
        at: &mut Standing,
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
        at: &mut Standing,
        data: StepData,
        validates: bool,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let start = Instant::now();
        let t = self.settings;
        let rate = t.rate(at.step, self.warmup_from_zero);
        let target_norm = self.target_norm(at.step, listener);
        self.tuner.begin_step()?;
        self.rehearse(at.step)?;
        let labels = self.gradients(&data)?;
        let input = StepInput {
            labels,
            counts: data.counts.clone(),
            lr: t.lr * rate,
            lr_rows: self.lr_rows * rate,
            schedule: rate,
            target_norm,
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

    /// The norm that step `index` (from 0) is scaled to. Says so where there is none any more.
    fn target_norm(&self, index: u64, listener: &mut dyn Listener) -> Option<f64> {
        let norms = self.norms?;
        match norms.get(index as usize) {
            Some(None) => listener.note(&format!("step {}: the run to match has no norm here", index + 1)),
            None if index as usize == norms.len() => listener.note(&format!(
                "step {}: the run to match ended before; from here on steps are as long as they come",
                index + 1
            )),
            _ => {}
        }
        norms.get(index as usize).copied().flatten()
    }

    /// Writes the offending batch and says where.
    fn dump(&self, at: &Standing, data: &StepData) -> Error {
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
        at: &mut Standing,
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
        Ok(at.is_patient(self.settings))
    }

    fn mark_best(&self, step: u64) -> Result<()> {
        let link = self.run.join("best");
        let target = checkpoint::directory(Path::new("checkpoints"), step);
        #[cfg(unix)]
        return crate::files::link_atomically(&link, &target);
        #[cfg(not(unix))]
        crate::files::write_atomically(&link, target.display().to_string().as_bytes())
    }

    // ---- checkpoints ------------------------------------------------------------------------

    fn save(&mut self, at: &mut Standing, listener: &mut dyn Listener) -> Result<()> {
        // What a checkpoint follows on must not be lost when the checkpoint is not.
        listener.flush()?;
        let (tensors, tuner) = self.tuner.state(self.model)?;
        let state = json!({
            "fingerprint": self.model.fingerprint,
            "rehearsal": self.rehearsal.map(Rehearsal::fingerprint),
            "tasks": self.tasks,
            "tuner": tuner,
            "best": at.best.map(|(step, value)| json!({"step": step, "value": value.to_bits()})),
            "waiting": at.waiting,
            "skipped": at.skipped,
            "bad_in_a_row": at.bad_in_a_row,
        });
        let root = self.run.join("checkpoints");
        checkpoint::save(&root, at.step, &tensors, state)?;
        checkpoint::forget_after(&root, at.step)?;
        at.saved = Some(at.step);
        let best: Vec<u64> = at.best.iter().map(|b| b.0).collect();
        checkpoint::prune(&root, self.checkpoints.keep, &best)?;
        listener.saved(at.step)
    }
}
