//! The examples of every step, as packed micro-batches.

use super::settings::TrainSettings;
use crate::data::{Encoder, Example, Pick, Sampler, Split, StepSize, micro_batches};
use crate::error::Result;
use crate::gems::Side;
use crate::model::Batch;

/// What the loss of a step is the mean of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Averaging {
    /// All labels of the step alike, however many passes they take.
    Labels,
    /// The passes, each of them the mean of its own labels (published).
    Passes,
}

impl From<Side> for Averaging {
    fn from(side: Side) -> Self {
        if side == Side::Published { Averaging::Passes } else { Averaging::Labels }
    }
}

impl StepSize {
    /// Examples of a step under section `[train]`.
    pub fn of(settings: &TrainSettings) -> Self {
        match settings.batch_per_task.is_empty() {
            true => StepSize::Whole(settings.batch),
            false => StepSize::PerTask(settings.batch_per_task.clone()),
        }
    }
}

/// One step's micro-batches.
pub struct StepData {
    /// The examples, in order; empty where they are nobody's records.
    pub picks: Vec<Pick>,
    /// A batch a pass.
    pub batches: Vec<Batch>,
    /// Examples of every task.
    pub counts: Vec<f64>,
    /// Rows of all packings.
    pub tokens: usize,
    /// Examples that were cut to fit the context.
    pub shortened: usize,
}

impl StepData {
    /// Packs examples of `tasks` tasks into passes of at most `max_rows` rows (0: one pass).
    ///
    /// # Errors
    /// An example that is longer than `max_rows` by itself.
    pub fn pack(examples: &[Example], tasks: usize, max_rows: usize) -> Result<Self> {
        let mut counts = vec![0.0; tasks];
        examples.iter().for_each(|e| counts[e.task as usize] += 1.0);
        let batches = micro_batches(examples, tasks, max_rows)?;
        let tokens = batches.iter().map(Batch::rows).sum();
        let shortened = examples.iter().filter(|e| e.dropped_items > 0 || e.cut_query).count();
        Ok(Self { picks: Vec::new(), batches, counts, tokens, shortened })
    }
}

/// The steps of a run: which examples each learns from, encoded and packed.
pub struct Batches<'a> {
    encoder: &'a Encoder<'a>,
    train: &'a Split,
    tasks: usize,
    max_rows: usize,
    averaging: Averaging,
    sampler: Sampler,
}

impl<'a> Batches<'a> {
    /// The steps over the records of `train`, whose tasks are numbered as in `tasks`, in the order of `seed`.
    ///
    /// # Errors
    /// A step without examples; see [`Sampler::new`].
    pub fn new(
        encoder: &'a Encoder<'a>,
        train: &'a Split,
        tasks: &[String],
        settings: &TrainSettings,
        averaging: Averaging,
        seed: u64,
    ) -> Result<Self> {
        let sampler = Sampler::new(&train.records, tasks, &StepSize::of(settings), seed)?;
        let max_rows = settings.micro_batch_tokens;
        Ok(Self { encoder, train, tasks: tasks.len(), max_rows, averaging, sampler })
    }

    /// What the loss of a step is the mean of.
    pub fn averaging(&self) -> Averaging {
        self.averaging
    }

    /// Step `step`, from 0.
    ///
    /// # Errors
    /// A record that cannot be encoded, or does not fit in a pass.
    pub fn at(&self, step: u64) -> Result<StepData> {
        self.prepare(self.sampler.batch_at(step))
    }

    /// The largest step there can be.
    ///
    /// # Errors
    /// A record that cannot be encoded, or does not fit in a pass.
    pub fn longest(&self) -> Result<StepData> {
        self.prepare(self.sampler.longest(|p| self.train.records[p.record as usize].bulk()))
    }

    fn prepare(&self, picks: Vec<Pick>) -> Result<StepData> {
        let encode = |p: &Pick| {
            let place = || format!("{} row {}", self.train.name, p.record + 1);
            let record = &self.train.records[p.record as usize];
            self.encoder.encode(record, p.target as usize).map_err(|e| e.at(place()))
        };
        let examples: Vec<Example> = picks.iter().map(encode).collect::<Result<_>>()?;
        let mut data = StepData::pack(&examples, self.tasks, self.max_rows)?;
        if self.averaging == Averaging::Passes {
            let passes = data.batches.len() as f32;
            for labels in data.batches.iter_mut().map(|b| &mut b.labels) {
                let weight = 1.0 / (labels.rows.len().max(1) as f32 * passes);
                labels.weights.iter_mut().for_each(|w| *w = weight);
            }
        }
        Ok(StepData { picks, ..data })
    }
}
