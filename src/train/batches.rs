//! The examples of every step, as packed micro-batches.

use super::settings::TrainSettings;
use crate::data::{
    Encoder, Example, Pick, Sampler, Split, StepSize, balance, micro_batches, micro_batches_of,
};
use crate::error::{Error, Result};
use crate::gems::Side;
use crate::model::Batch;
use std::ops::Range;

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

/// One step's micro-batches, or a rank's share of them.
#[derive(Default)]
pub struct StepData {
    /// The examples, in order; empty where they are nobody's records.
    pub picks: Vec<Pick>,
    /// A batch a pass.
    pub batches: Vec<Batch>,
    /// Where the batches of every leaf of the share end; of a step that is not cut into leaves, nothing.
    pub leaves: Vec<usize>,
    /// Labels of every task, of the whole step.
    pub labels: Vec<usize>,
    /// Examples of every task, of the whole step.
    pub counts: Vec<f64>,
    /// Rows of all packings here.
    pub tokens: usize,
    /// Examples here that were cut to fit the context.
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
        let mut labels = vec![0; tasks];
        examples.iter().for_each(|e| labels[e.task as usize] += e.labels());
        let mut data = Self { labels, counts, ..Self::default() };
        data.add(micro_batches(examples, tasks, max_rows)?, examples);
        Ok(data)
    }

    fn add(&mut self, batches: Vec<Batch>, examples: &[Example]) {
        self.tokens += batches.iter().map(Batch::rows).sum::<usize>();
        self.shortened += examples.iter().filter(|e| e.dropped_items > 0 || e.cut_query).count();
        self.batches.extend(batches);
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
    /// How many leaves a step is cut into, and those that are prepared here.
    shards: usize,
    own: Range<usize>,
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
        let (shards, own) = (1, 0..1);
        Ok(Self { encoder, train, tasks: tasks.len(), max_rows, averaging, sampler, shards, own })
    }

    /// Cuts every step into `shards` leaves of about equal length, of which the numbers `own` are prepared.
    pub fn in_leaves(self, shards: usize, own: Range<usize>) -> Self {
        Self { shards, own, ..self }
    }

    /// How many leaves a step is cut into, and those that are prepared here.
    pub fn leaves(&self) -> (usize, Range<usize>) {
        (self.shards, self.own.clone())
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

    fn encode(&self, p: &Pick) -> Result<Example> {
        let record = &self.train.records[p.record as usize];
        self.encoder.encode(record, p.target as usize).map_err(|e| e.at(self.place(p)))
    }

    fn place(&self, p: &Pick) -> String {
        format!("{} row {}", self.train.name, p.record + 1)
    }

    fn prepare(&self, picks: Vec<Pick>) -> Result<StepData> {
        if self.shards > 1 {
            return self.prepare_leaves(&picks);
        }
        let examples: Vec<Example> = picks.iter().map(|p| self.encode(p)).collect::<Result<_>>()?;
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

    /// Weights are 1 / labels of the whole step, whichever part of it is prepared.
    fn prepare_leaves(&self, picks: &[Pick]) -> Result<StepData> {
        let mut data =
            StepData { labels: vec![0; self.tasks], counts: vec![0.0; self.tasks], ..StepData::default() };
        let mut rows = Vec::with_capacity(picks.len());
        for p in picks {
            let record = &self.train.records[p.record as usize];
            let labels = self.encoder.labels(record, p.target as usize).map_err(|e| e.at(self.place(p)))?;
            data.labels[record.task as usize] += labels;
            data.counts[record.task as usize] += 1.0;
            rows.push(self.encoder.rows_about(record, p.target as usize));
        }
        let all: usize = data.labels.iter().sum();
        let leaves = balance(&rows, self.shards);
        for leaf in &leaves[self.own.clone()] {
            let own: Vec<Pick> = leaf.iter().map(|i| picks[*i]).collect();
            let examples: Vec<Example> = own.iter().map(|p| self.encode(p)).collect::<Result<_>>()?;
            let mut batches = micro_batches_of(&examples, self.tasks, self.max_rows, all)?;
            if self.averaging == Averaging::Passes {
                weigh_passes(&mut batches, self.shards.min(picks.len()))?;
            }
            data.add(batches, &examples);
            data.leaves.push(data.batches.len());
            data.picks.extend(own);
        }
        Ok(data)
    }
}

/// The published loss: the mean over `passes` passes, of which a leaf has one.
fn weigh_passes(batches: &mut [Batch], passes: usize) -> Result<()> {
    if batches.len() > 1 {
        return Err(Error::usage(
            "the published loss is a mean over passes, and with several leaves each must be one",
        )
        .at("train.micro_batch_tokens")
        .remedy("raise it, or set it to 0"));
    }
    for labels in batches.iter_mut().map(|b| &mut b.labels) {
        let weight = 1.0 / (labels.rows.len().max(1) * passes) as f32;
        labels.weights.iter_mut().for_each(|w| *w = weight);
    }
    Ok(())
}
