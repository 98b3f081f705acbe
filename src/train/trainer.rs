//! The loop: steps in order, validation, checkpoints, and every way a run can end.

use super::batches::{Batches, StepData};
use super::checkpoint::{self, Checkpoint};
use super::record::{Listener, StepRecord};
use super::rehearsal::Rehearsal;
use super::settings::{CheckpointSettings, TrainSettings};
use super::step::{Leaves, gradients, gradients_in_leaves, probe, rehearse};
use super::validation::chosen;
use crate::distributed::World;
use crate::error::{Error, Result};
use crate::gems::{Optimizer, StepInput};
use crate::model::Model;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

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
    /// Where this process' time went besides steps and validation.
    pub spent: Spent,
}

/// Time of a run besides its steps and validations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Trying the largest step.
    pub largest: Duration,
    /// Finding the first bases.
    pub bases: Duration,
    /// Writing checkpoints.
    pub saving: Duration,
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
    /// The run's directory, which the first rank writes.
    pub run: &'a Path,
    /// The ranks that do the run.
    pub world: &'a World,
    /// Learning rate of item rows at the top of the schedule.
    pub lr_rows: f64,
    /// The warm-up begins at zero (published) instead of one step above.
    pub warmup_from_zero: bool,
    /// Steps between two checks that all ranks hold the same numbers (0: never).
    pub check_every: u64,
    /// Update norms of a reference run to match, by step; a step without one is not matched.
    pub norms: Option<&'a [Option<f64>]>,
    /// Set when the user asks to stop.
    pub interrupted: &'a AtomicBool,
    /// Set when the user asks for a checkpoint now.
    pub save_asked: &'a AtomicBool,
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
    spent: Spent,
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
            spent: Spent::default(),
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
        if at.saved.is_some() {
            // What the checkpoint that is gone on from had no time for.
            self.world.by_first(|| self.prune(&at))?;
        }
        if at.step == 0 && self.settings.steps > 0 {
            let start = Instant::now();
            self.largest_first()?;
            at.spent.largest = start.elapsed();
            self.probe(listener)?;
            at.spent.bases = start.elapsed() - at.spent.largest;
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
        Ok(Outcome { ending, step: at.step, best: at.best, spent: at.spent })
    }

    /// The largest step there can be, forward and backward, so that what does not fit fails at once.
    fn largest_first(&mut self) -> Result<()> {
        let mut data = self.batches.longest()?;
        self.model.backend.reset_peak_memory();
        self.tuner.begin_step()?;
        self.rehearse(0)?;
        self.gradients(&mut data).map(drop)
    }

    fn rehearse(&mut self, step: u64) -> Result<()> {
        rehearse(self.rehearsal, self.model, self.tuner, step, self.settings.activation_checkpointing)
    }

    /// Finds the first bases in the first steps' examples.
    fn probe(&mut self, listener: &mut dyn Listener) -> Result<()> {
        let (batches, settings, world) = (self.batches, self.settings, self.world);
        let found = probe(self.model, self.tuner, |model, tuner| {
            for step in 0..settings.probe_batches.max(1) {
                let mut data = batches.at(step)?;
                step_gradients(model, tuner, &mut data, batches, settings, world)?;
            }
            Ok(())
        })?;
        found.map_or(Ok(()), |found| listener.probed(&found))
    }

    /// Forward and backward passes of a step, on all ranks.
    fn gradients(&mut self, data: &mut StepData) -> Result<Leaves> {
        step_gradients(self.model, self.tuner, data, self.batches, self.settings, self.world)
    }

    /// A signal, or a file `stop` in the run's directory.
    fn wants_to_stop(&self) -> bool {
        let asked = || self.world.is_first() && self.run.join("stop").exists();
        self.interrupted.load(Ordering::SeqCst) || asked()
    }

    /// Whether somebody asks for a checkpoint now: by a signal, or by a file `save` in the run's directory.
    fn wants_to_save(&self) -> bool {
        let file = self.run.join("save");
        let asked = || self.world.is_first() && file.exists() && std::fs::remove_file(&file).is_ok();
        self.save_asked.swap(false, Ordering::SeqCst) || asked()
    }

    /// Every so many steps, that all ranks hold the same numbers.
    fn check_ranks(&mut self, step: u64) -> Result<()> {
        if self.world.is_alone() || self.check_every == 0 || !step.is_multiple_of(self.check_every) {
            return Ok(());
        }
        let (tensors, _) = self.tuner.state(self.model)?;
        self.world.same_numbers(&checkpoint::hashes(&tensors))
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
                self.world.at_step(at.step + 1);
                self.one_step(at, data?, validates, listener)?;
                self.check_ranks(at.step)?;
                // One question to all ranks where nobody asks anything.
                let wants_to_save = self.wants_to_save();
                let asks = self.world.any(wants_to_save || self.wants_to_stop())?;
                let stops = asks && self.world.any(self.wants_to_stop())?;
                if validates && !self.validate(at, listener, validate)? {
                    self.save(at, listener)?;
                    return Ok(Ending::Early);
                }
                let due = self.checkpoints.every > 0 && at.step.is_multiple_of(self.checkpoints.every);
                if stops || self.world.is_alone() && self.wants_to_stop() {
                    self.save(at, listener)?;
                    if self.world.is_first() {
                        let _ = std::fs::remove_file(self.run.join("stop"));
                    }
                    return Ok(Ending::Interrupted);
                }
                if (due || asks) && at.saved != Some(at.step) {
                    self.save(at, listener)?;
                }
            }
            Ok(Ending::Finished)
        })
    }

    fn one_step(
        &mut self,
        at: &mut Standing,
        mut data: StepData,
        validates: bool,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let start = Instant::now();
        // What was before the step is not of it.
        self.world.costs();
        let t = self.settings;
        let rate = t.rate(at.step, self.warmup_from_zero);
        let target_norm = self.target_norm(at.step, listener);
        self.tuner.begin_step()?;
        self.rehearse(at.step)?;
        let Leaves { labels, finite } = self.gradients(&mut data)?;
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
        let examples = data.counts.iter().sum::<f64>() as usize;
        at.seen = (at.seen.0 + examples, at.seen.1 + data.shortened);
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
            ranks: self.world.costs().map(|costs| (self.world.size(), costs)),
        };
        listener.step(&record)?;
        if !record.report.finite {
            listener.note(&format!("step {}: loss or gradient is not finite; step skipped", at.step));
        }
        if t.max_bad_steps > 0 && at.bad_in_a_row >= t.max_bad_steps {
            return Err(self.dump(at, &data, finite));
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

    /// Writes the offending batch and says where; of several ranks, those whose share was not `finite` write theirs.
    fn dump(&self, at: &Standing, data: &StepData, finite: bool) -> Error {
        let name = match self.world.is_alone() {
            true => format!("bad-batch-step-{}.json", at.step),
            false => format!("bad-batch-step-{}-rank-{}.json", at.step, self.world.rank()),
        };
        let path = self.run.join(name);
        let picks: Vec<Value> =
            data.picks.iter().map(|p| json!({"row": p.record + 1, "target": p.target})).collect();
        let batches: Vec<Value> = data
            .batches
            .iter()
            .map(|b| json!({"tokens": b.decoder.tokens, "offsets": b.decoder.offsets, "targets": b.labels.targets}))
            .collect();
        let text = json!({"step": at.step, "records": picks, "batches": batches}).to_string();
        let innocent = finite && !self.world.is_alone();
        let written = if innocent { Ok(()) } else { crate::files::write_atomically(&path, text.as_bytes()) };
        let error = Error::numeric(format!(
            "loss or gradient was not finite {} steps in a row, the last at step {}",
            at.bad_in_a_row, at.step
        ))
        .remedy("lower train.lr or optimizer.lr_rows, or set optimizer.clip_norm = 1; earlier checkpoints are good");
        match written {
            Ok(()) if !innocent => error.at(path.display()),
            _ => error,
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
        if !self.world.is_first() {
            return Ok(());
        }
        let link = self.run.join("best");
        let target = checkpoint::directory(Path::new("checkpoints"), step);
        #[cfg(unix)]
        return crate::files::link_atomically(&link, &target);
        #[cfg(not(unix))]
        crate::files::write_atomically(&link, target.display().to_string().as_bytes())
    }

    // ---- checkpoints ------------------------------------------------------------------------

    /// The first rank writes what all of them hold.
    fn save(&mut self, at: &mut Standing, listener: &mut dyn Listener) -> Result<()> {
        let start = Instant::now();
        self.world.by_first(|| self.write(at, listener))?;
        at.spent.saving += start.elapsed();
        at.saved = Some(at.step);
        Ok(())
    }

    fn write(&mut self, at: &Standing, listener: &mut dyn Listener) -> Result<()> {
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
        self.prune(at)?;
        listener.saved(at.step)
    }

    /// Deletes old checkpoints. The newest one is safe by now.
    fn prune(&self, at: &Standing) -> Result<()> {
        let best: Vec<u64> = at.best.iter().map(|b| b.0).collect();
        checkpoint::prune(&self.run.join("checkpoints"), self.checkpoints.keep, &best)
    }
}

/// Forward and backward passes of a step, on all ranks where it is cut into leaves.
fn step_gradients(
    model: &Model,
    tuner: &mut Optimizer,
    data: &mut StepData,
    batches: &Batches,
    settings: &TrainSettings,
    world: &World,
) -> Result<Leaves> {
    let how = (batches.averaging(), settings.activation_checkpointing);
    match batches.leaves().0 {
        1 => {
            let labels = gradients(model, tuner, &data.batches, how.0, how.1)?;
            Ok(Leaves { labels, finite: true })
        }
        shards => gradients_in_leaves(model, tuner, data, how, (world, shards)),
    }
}
