//! The loop: steps in order, validation, checkpoints, and every way a run can end.

use super::checkpoint::{self, NamedTensor};
use super::run::RunDirectory;
use super::settings::{CheckpointSettings, Schedule, TrainSettings};
use super::step::{labels_per_task, micro_step, scales};
use super::validation::chosen;
use crate::data::{Encoder, Example, Pick, Sampler, Split, StepSize, micro_batches};
use crate::error::{Error, Result};
use crate::gems::{RefreshReport, Shape, StepInput, StepReport, Tuner, factor};
use crate::model::{Batch, Model};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

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
        for (i, j, cosine) in &r.cosines {
            put(format!("cosine.{}.{}", tasks[*i], tasks[*j]), *cosine);
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
        let mut all = Map::from_iter([("step".to_string(), json!(self.step))]);
        if !r.finite {
            all.insert("skipped".into(), json!(self.skipped));
        }
        all.extend(line);
        all
    }
}

/// What a refresh found, as keys of a metrics line.
pub fn refresh_json(refresh: &RefreshReport, tasks: &[String]) -> Map<String, Value> {
    let mut line = Map::from_iter([("room".to_string(), number(refresh.room))]);
    for (s, energy) in refresh.energy.iter().enumerate() {
        let name = if s == 0 { "shared" } else { tasks.get(s - 1).map_or("?", String::as_str) };
        line.insert(format!("energy.{name}"), number(*energy));
    }
    line
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
    /// A checkpoint was written.
    fn saved(&mut self, step: u64) -> Result<()>;
    /// Something the user should know.
    fn note(&mut self, text: &str);
}

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
    pub tuner: &'a mut Tuner,
    /// Records to tokens.
    pub encoder: &'a Encoder<'a>,
    /// Task names.
    pub tasks: &'a [String],
    /// Records to learn from.
    pub train: &'a Split,
    /// Section `[train]`.
    pub settings: &'a TrainSettings,
    /// Section `[checkpoint]`.
    pub checkpoints: &'a CheckpointSettings,
    /// Where it writes.
    pub run: &'a RunDirectory,
    /// Seed of the data order.
    pub seed: u64,
    /// Learning rate of item rows at the top of the schedule.
    pub lr_rows: f64,
    /// Micro-batches are averaged each by itself (published) instead of all labels alike.
    pub published: bool,
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

/// One step's micro-batches.
struct StepData {
    picks: Vec<Pick>,
    batches: Vec<Batch>,
    counts: Vec<f64>,
    tokens: usize,
    shortened: usize,
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
        let sampler = self.sampler()?;
        if at.step == 0 && self.settings.steps > 0 {
            self.largest_first(&sampler)?;
            self.probe(&sampler, listener)?;
        }
        let ending = self.steps(&mut at, &sampler, listener, validate)?;
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

    fn sampler(&self) -> Result<Sampler> {
        sampler(self.train, self.tasks, self.settings, self.seed)
    }

    fn prepare(&self, picks: Vec<Pick>) -> Result<StepData> {
        prepare(self.encoder, self.train, self.tasks.len(), self.settings, self.published, picks)
    }

    /// The largest step there can be, forward and backward, so that what does not fit fails at once.
    fn largest_first(&mut self, sampler: &Sampler) -> Result<()> {
        let data =
            longest(self.encoder, self.train, self.tasks.len(), self.settings, self.published, sampler)?;
        self.model.backend.reset_peak_memory();
        self.tuner.begin_step()?;
        self.gradients(&data)?;
        Ok(())
    }

    fn probe(&mut self, sampler: &Sampler, listener: &mut dyn Listener) -> Result<()> {
        let rounds = self.tuner.probe_rounds();
        for round in 0..rounds {
            self.tuner.begin_probe(round)?;
            for batch in 0..self.settings.probe_batches.max(1) {
                let data = self.prepare(sampler.batch_at(batch))?;
                self.gradients(&data)?;
            }
        }
        if rounds > 0 {
            let found = self.tuner.finish_probe(self.model)?;
            listener.probed(&found)?;
        }
        Ok(())
    }

    /// Forward and backward passes of a step; returns the labels of every task.
    fn gradients(&mut self, data: &StepData) -> Result<Vec<usize>> {
        let labels = labels_per_task(&data.batches, self.tasks.len());
        let step_scales = scales(&labels);
        for batch in &data.batches {
            let own = self.published.then(|| scales(&labels_per_task([batch], labels.len())));
            let scales = own.as_ref().unwrap_or(&step_scales);
            let checkpointing = self.settings.activation_checkpointing;
            let nll = micro_step(self.model, self.tuner, batch, scales, checkpointing)?;
            self.tuner.observe_losses(nll.mat(), &batch.labels.segments)?;
        }
        Ok(labels)
    }

    fn steps(
        &mut self,
        at: &mut Progress,
        sampler: &Sampler,
        listener: &mut dyn Listener,
        validate: &mut Validate,
    ) -> Result<Ending> {
        let (encoder, train, tasks) = (self.encoder, self.train, self.tasks.len());
        let (settings, published) = (self.settings, self.published);
        let (first, last) = (at.step, settings.steps);
        std::thread::scope(|scope| {
            // The next steps' tokens are made while this one computes.
            let (sender, receiver) = sync_channel::<Result<StepData>>(2);
            scope.spawn(move || {
                for step in first..last {
                    let data = prepare(encoder, train, tasks, settings, published, sampler.batch_at(step));
                    if sender.send(data).is_err() {
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
        let shape = match t.schedule {
            Schedule::Cosine => Shape::Cosine,
            Schedule::Linear => Shape::Linear,
            Schedule::Constant => Shape::Constant,
        };
        // Warm-up starts above zero: the first step moves too.
        let shift = u64::from(t.warmup_steps > 0 && !self.published);
        let rate = factor(shape, at.step + shift, t.warmup_steps, t.steps + shift, t.final_lr_ratio);
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
        let report = self.tuner.finish_step(self.model, &input)?;
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
            memory: (memory.live, memory.peak),
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
        let (weights, optimizer): (Vec<NamedTensor>, Vec<NamedTensor>) = tensors
            .into_iter()
            .partition(|t| [".w", ".a", ".b", ".x"].iter().any(|end| t.name.ends_with(end)));
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
        let files = BTreeMap::from([("weights".to_string(), weights), ("optimizer".to_string(), optimizer)]);
        checkpoint::save(&root, at.step, &files, state)?;
        let best: Vec<u64> = at.best.iter().map(|b| b.0).collect();
        checkpoint::prune(&root, self.checkpoints.keep, &best)?;
        listener.saved(at.step)
    }

    fn restore_latest(&mut self, listener: &mut dyn Listener) -> Result<Progress> {
        let root = self.run.join("checkpoints");
        let found =
            checkpoint::load_latest(&root, |e| listener.note(&format!("checkpoint passed over: {e}")))?;
        restore(self.model, self.tuner, self.tasks, &found)?;
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

/// Puts a checkpoint's weights and optimizer state into a freshly loaded base model and its tuner.
pub fn restore(
    model: &mut Model,
    tuner: &mut Tuner,
    tasks: &[String],
    found: &checkpoint::Checkpoint,
) -> Result<()> {
    if found.state["fingerprint"] != json!(model.fingerprint) {
        return Err(Error::usage("this checkpoint belongs to another base model")
            .remedy("give the --model the run was started with"));
    }
    if found.state["tasks"] != json!(tasks) {
        return Err(Error::usage(format!("this checkpoint's tasks are {}", found.state["tasks"]))
            .remedy("resume with the data the run was started with"));
    }
    let tensors: Vec<NamedTensor> = found.tensors.values().flatten().cloned().collect();
    tuner.restore(model, &tensors, &found.state["tuner"])
}

fn sampler(train: &Split, tasks: &[String], settings: &TrainSettings, seed: u64) -> Result<Sampler> {
    let size = match settings.batch_per_task.is_empty() {
        true => StepSize::Whole(settings.batch),
        false => StepSize::PerTask(settings.batch_per_task.clone()),
    };
    Sampler::new(&train.records, tasks, &size, seed)
}

fn longest(
    encoder: &Encoder,
    train: &Split,
    tasks: usize,
    settings: &TrainSettings,
    published: bool,
    sampler: &Sampler,
) -> Result<StepData> {
    let picks = sampler.longest(|p| train.records[p.record as usize].bulk());
    prepare(encoder, train, tasks, settings, published, picks)
}

/// The micro-batches of the largest step there can be.
pub fn longest_step(
    encoder: &Encoder,
    train: &Split,
    tasks: &[String],
    settings: &TrainSettings,
) -> Result<Vec<Batch>> {
    let sampler = sampler(train, tasks, settings, 0)?;
    Ok(longest(encoder, train, tasks.len(), settings, false, &sampler)?.batches)
}

fn prepare(
    encoder: &Encoder,
    train: &Split,
    tasks: usize,
    settings: &TrainSettings,
    published: bool,
    picks: Vec<Pick>,
) -> Result<StepData> {
    let examples: Vec<Example> = picks
        .iter()
        .map(|p| {
            let place = || format!("{} row {}", train.name, p.record + 1);
            encoder.encode(&train.records[p.record as usize], p.target as usize).map_err(|e| e.at(place()))
        })
        .collect::<Result<_>>()?;
    let mut counts = vec![0.0; tasks];
    examples.iter().for_each(|e| counts[e.task as usize] += 1.0);
    let mut batches = micro_batches(&examples, tasks, settings.micro_batch_tokens)?;
    if published {
        let passes = batches.len() as f32;
        for labels in batches.iter_mut().map(|b| &mut b.labels) {
            let weight = 1.0 / (labels.rows.len().max(1) as f32 * passes);
            labels.weights.iter_mut().for_each(|w| *w = weight);
        }
    }
    let rows = |b: &Batch| b.decoder.rows() + b.encoder.as_ref().map_or(0, |e| e.rows());
    let tokens = batches.iter().map(rows).sum();
    let shortened = examples.iter().filter(|e| e.dropped_items > 0 || e.cut_query).count();
    Ok(StepData { picks, batches, counts, tokens, shortened })
}
