//! What is profiled: a training step, on a run's own data or on made-up tokens and random weights.

use crate::backend::cuda::Cuda;
use crate::backend::{Backend, trace};
use crate::cli::products::{LayerProducts, PassRows, PlannedProducts};
use crate::cli::session::Session;
use crate::config::Config;
use crate::data::{Example, Sampler, StepSize, micro_batches};
use crate::error::{Error, Result};
use crate::gems::{StepInput, StepReport, Tuner};
use crate::model::{Architecture, Batch, Model, shapes};
use crate::train::{MemoryPlan, PlannedRun, dense_roles, labels_per_task, micro_step, scales, site_shapes};
use std::sync::Arc;

/// Labelled tokens of a made-up sequence: an item's tokens and the end.
const LABELS: usize = 3;
/// Rows of new item tokens in a made-up vocabulary.
const ITEMS: usize = 1024;

/// A model, a method and the batch they are measured on.
pub struct Subject {
    pub model: Model,
    tuner: Tuner,
    batches: Vec<Batch>,
    counts: Vec<f64>,
    new_rows: Option<usize>,
    config: Config,
}

impl Subject {
    /// A known shape with random weights; two tasks share `tokens` tokens in sequences of `length`.
    pub fn of_shape(
        name: &str,
        (tokens, length): (usize, usize),
        config: Config,
        backend: Arc<dyn Backend>,
    ) -> Result<Self> {
        let architecture = shapes::architecture(name)?;
        if length <= LABELS || tokens < 2 * length {
            return Err(Error::usage(format!("{tokens} tokens in sequences of {length}"))
                .at("--tokens, --length")
                .remedy(format!("sequences longer than {LABELS} tokens, and at least two of them")));
        }
        let examples = made_up(&architecture, tokens / length, length);
        let new_rows = Some(architecture.vocabulary.saturating_sub(ITEMS));
        let model = Model::synthetic(architecture, backend, config.seed)?;
        Self::start(model, new_rows, examples, 2, config)
    }

    /// A run's own model and the records of its first step.
    pub fn of_session(session: Session) -> Result<Self> {
        let t = &session.config.train;
        let size = match t.batch_per_task.is_empty() {
            true => StepSize::Whole(t.batch),
            false => StepSize::PerTask(t.batch_per_task.clone()),
        };
        let records = &session.data.train.records;
        let tasks = session.data.tasks.len();
        let sampler = Sampler::new(records, &session.data.tasks, &size, session.config.seed)?;
        let encoder = session.encoder();
        let encode = |p: &crate::data::Pick| encoder.encode(&records[p.record as usize], p.target as usize);
        let examples: Vec<Example> = sampler.batch_at(0).iter().map(encode).collect::<Result<_>>()?;
        let (model, new_rows, config) = (session.model, session.new_rows, session.config);
        Self::start(model, new_rows, examples, tasks, config)
    }

    fn start(
        mut model: Model,
        new_rows: Option<usize>,
        examples: Vec<Example>,
        tasks: usize,
        config: Config,
    ) -> Result<Self> {
        let settings = config.tuner();
        let roles = dense_roles(&model, &settings.optimizer, new_rows);
        let (sites, backend) = (site_shapes(&model), Arc::clone(&model.backend));
        let tuner = Tuner::new(settings, &sites, &roles, tasks, None, &mut model, &backend, config.seed)?;
        let batches = micro_batches(&examples, tasks, config.train.micro_batch_tokens)?;
        let mut counts = vec![0.0; tasks];
        examples.iter().for_each(|e| counts[e.task as usize] += 1.0);
        let mut this = Self { model, tuner, batches, counts, new_rows, config };
        this.probe()?;
        Ok(this)
    }

    /// Finds the first bases. A device that computes nothing gives none, which is as good for counting.
    fn probe(&mut self) -> Result<()> {
        let _span = trace::span("first bases");
        let rounds = self.tuner.probe_rounds();
        for round in 0..rounds {
            self.tuner.begin_probe(round)?;
            self.passes()?;
        }
        if rounds > 0 {
            self.tuner.finish_probe(&mut self.model)?;
        }
        Ok(())
    }

    /// Forward and backward passes of the whole batch; returns the labels of every task.
    fn passes(&mut self) -> Result<Vec<usize>> {
        let labels = labels_per_task(&self.batches, self.counts.len());
        let scales = scales(&labels);
        for batch in &self.batches {
            let checkpointing = self.config.train.activation_checkpointing;
            let nll = micro_step(&self.model, &mut self.tuner, batch, &scales, checkpointing)?;
            self.tuner.observe_losses(nll.mat(), &batch.labels.segments)?;
        }
        Ok(labels)
    }

    /// One optimizer step, waited for.
    pub fn step(&mut self) -> Result<StepReport> {
        let _span = trace::span("step");
        self.tuner.begin_step()?;
        let labels = self.passes()?;
        let lr = self.config.train.lr;
        let lr_rows = self.config.optimizer.lr_rows.unwrap_or(lr);
        let counts = self.counts.clone();
        let input = StepInput { labels, counts, lr, lr_rows, target_norm: None, last: false };
        let report = self.tuner.finish_step(&mut self.model, &input)?;
        self.model.backend.synchronize()?;
        Ok(report)
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        let rows = |b: &Batch| b.decoder.rows() + b.encoder.as_ref().map_or(0, |e| e.rows());
        self.batches.iter().map(rows).sum()
    }

    /// Which kernels the products of the first pass take; nothing where there are no kernels.
    pub fn products(&self) -> Result<Vec<LayerProducts>> {
        let backend = &self.model.backend;
        let (Some(kind), Some(batch)) = (backend.kind(), self.batches.first()) else { return Ok(Vec::new()) };
        let planned = PlannedProducts {
            architecture: &self.model.architecture,
            settings: &self.config.tuner(),
            tasks: self.counts.len(),
            new_rows: self.new_rows,
            rows: PassRows::of(batch),
            dtype: backend.compute_dtype(),
        };
        LayerProducts::of(&planned, &kind)
    }

    /// Bytes that are predicted for a run of such steps, with the renewal of the bases.
    pub fn plan(&self) -> Result<MemoryPlan> {
        let run = PlannedRun {
            architecture: &self.model.architecture,
            settings: &self.config.tuner(),
            new_rows: self.new_rows,
            knowledge: None,
            batches: &self.batches,
            checkpointing: self.config.train.activation_checkpointing,
        };
        MemoryPlan::of(&run, &Cuda::open_null(self.model.backend.compute_dtype()))
    }
}

/// Sequences of made-up tokens, half of each task.
fn made_up(a: &Architecture, sequences: usize, length: usize) -> Vec<Example> {
    let token = |i: usize| (2 + (i * 7919) % (a.vocabulary - 2)) as u32;
    let text = |s: usize, n: usize| (0..n).map(|i| token(s * 977 + i)).collect::<Vec<u32>>();
    let example = |s: usize| {
        let task = u32::from(s >= sequences / 2);
        match a.decoder_start {
            Some(start) => {
                let tokens = [vec![start], text(s, LABELS)].concat();
                Example {
                    task,
                    tokens,
                    encoder: Some(text(s + 1, length)),
                    labels_from: 1,
                    ..Example::default()
                }
            }
            None => {
                let (tokens, labels_from) = (text(s, length + 1), length + 1 - LABELS);
                Example { task, tokens, labels_from, ..Example::default() }
            }
        }
    };
    (0..sequences).map(example).collect()
}
