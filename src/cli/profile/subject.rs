//! What is profiled: a training step, on a run's own data or on made-up tokens and random weights.

use crate::backend::cuda::{Cuda, DeviceSpec};
use crate::backend::{Backend, trace};
use crate::cli::products::{LayerProducts, PassRows, PlannedProducts};
use crate::cli::session::Session;
use crate::config::Config;
use crate::data::Example;
use crate::error::{Error, Result};
use crate::gems::{Optimizer, StepInput, StepReport};
use crate::model::{Architecture, Model, shapes};
use crate::train::{
    Averaging, Batches, MemoryPlan, PlannedRun, Rehearsal, StepData, gradients, largest_knowledge, probe,
    rehearse,
};
use std::sync::Arc;

/// Labelled tokens of a made-up sequence: an item's tokens and the end.
const LABELS: usize = 3;
/// Rows of new item tokens in a made-up vocabulary.
const ITEMS: usize = 1024;

/// A model, a method and the batch they are measured on.
pub struct Subject {
    pub model: Model,
    tuner: Optimizer,
    rehearsal: Option<Rehearsal>,
    data: StepData,
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
        let data = StepData::pack(&examples, 2, config.train.micro_batch_tokens)?;
        let model = Model::synthetic(architecture, backend, config.seed)?;
        Self::start(model, new_rows, data, config)
    }

    /// A run's own model and the records of its first step.
    pub fn of_session(session: Session) -> Result<Self> {
        let (config, data, encoder) = (&session.config, &session.data, session.encoder());
        let labels = Averaging::Labels;
        let batches = Batches::new(&encoder, &data.train, &data.tasks, &config.train, labels, config.seed)?;
        let first = batches.at(0)?;
        let (model, new_rows, config) = (session.model, session.new_rows, session.config);
        Self::start(model, new_rows, first, config)
    }

    fn start(mut model: Model, new_rows: Option<usize>, data: StepData, config: Config) -> Result<Self> {
        let tasks = data.counts.len();
        let settings = config.tuner();
        let texts = vec![vec![0; config.data.general_length]; settings.rehearsal.texts];
        let old = new_rows.unwrap_or(model.architecture.vocabulary);
        let rehearsal = Rehearsal::new(&model, texts, old, &settings, config.seed)?;
        // Made up like everything else: of the size that one of the model would have at most.
        let weighs = settings.null_space.weighs_costs();
        let knowledge = weighs.then(|| largest_knowledge(&model, &settings.null_space));
        let (seed, known) = (config.seed, knowledge.as_ref());
        let tuner = Optimizer::for_model(settings, &mut model, new_rows, tasks, known, seed)?;
        let mut this = Self { model, tuner, rehearsal, data, new_rows, config };
        this.probe()?;
        Ok(this)
    }

    /// Finds the first bases. A device that computes nothing gives none, which is as good for counting.
    fn probe(&mut self) -> Result<()> {
        let _span = trace::span("first bases");
        let Self { model, tuner, data, config, .. } = self;
        let checkpointing = config.train.activation_checkpointing;
        let pass = |model: &Model, tuner: &mut Optimizer| {
            gradients(model, tuner, &data.batches, Averaging::Labels, checkpointing).map(drop)
        };
        probe(model, tuner, pass).map(drop)
    }

    /// One optimizer step, waited for.
    pub fn step(&mut self) -> Result<StepReport> {
        let _span = trace::span("step");
        self.tuner.begin_step()?;
        let Self { model, tuner, rehearsal, data, config, .. } = self;
        let checkpointing = config.train.activation_checkpointing;
        let step = tuner.steps();
        rehearse(rehearsal.as_ref(), model, tuner, step, checkpointing)?;
        let labels = gradients(model, tuner, &data.batches, Averaging::Labels, checkpointing)?;
        let lr = config.train.lr;
        let lr_rows = config.optimizer.lr_rows.unwrap_or(lr);
        let counts = data.counts.clone();
        let input = StepInput { labels, counts, lr, lr_rows, schedule: 1.0, target_norm: None, last: false };
        let report = tuner.step(model, &input)?;
        model.backend.synchronize()?;
        Ok(report)
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.data.tokens
    }

    /// Which kernels the products of the first pass take; nothing where there are no kernels.
    pub fn products(&self) -> Result<Vec<LayerProducts>> {
        let backend = &self.model.backend;
        let Some(batch) = self.data.batches.first().filter(|_| backend.info().launches_kernels()) else {
            return Ok(Vec::new());
        };
        let planned = PlannedProducts {
            architecture: &self.model.architecture,
            settings: &self.config.tuner(),
            tasks: self.data.counts.len(),
            new_rows: self.new_rows,
            rows: PassRows::of(batch),
            dtype: backend.compute_dtype(),
        };
        LayerProducts::of(&planned, backend.info())
    }

    /// Bytes that are predicted for a run of such steps, with the renewal of the bases.
    pub fn plan(&self) -> Result<MemoryPlan> {
        let run = PlannedRun {
            architecture: &self.model.architecture,
            settings: &self.config.tuner(),
            new_rows: self.new_rows,
            knowledge: None,
            batches: &self.data.batches,
            text_length: self.config.data.general_length,
            checkpointing: self.config.train.activation_checkpointing,
            leaves: 0,
            overlaps: false,
        };
        let counting: Arc<dyn Backend> = Cuda::open(DeviceSpec::counting(self.model.backend.info()))?;
        MemoryPlan::of(&run, &counting)
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
