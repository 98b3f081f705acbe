//! The order of training examples: a pure function of (seed, position).

use super::encode::Encoder;
use super::record::Record;
use crate::error::{Error, Result};
use crate::random::{Purpose, permutation};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Examples of one optimizer step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepSize {
    /// So many of each task, by name; a task that is not named is not trained.
    PerTask(BTreeMap<String, usize>),
    /// So many in all; tasks come in proportion to their examples.
    Whole(usize),
}

impl StepSize {
    /// Examples of all tasks.
    pub fn examples(&self) -> usize {
        match self {
            StepSize::PerTask(counts) => counts.values().sum(),
            StepSize::Whole(n) => *n,
        }
    }
}

/// One training example: a record and which of its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// Position among the records.
    pub record: u32,
    /// Position among the record's targets.
    pub target: u32,
}

/// Decides which examples each step learns from. Every epoch of a stream is a fresh permutation of
/// all its examples, so each is seen exactly once an epoch; nothing carries state from step to step.
pub struct Sampler {
    seed: u64,
    streams: Vec<Stream>,
}

/// Examples that are drawn from together: those of one task, or all.
struct Stream {
    picks: Vec<Pick>,
    per_step: usize,
    /// The permutation used last, and its epoch.
    order: Mutex<Option<(u64, Vec<u32>)>>,
}

impl Sampler {
    /// A sampler over `records`, whose tasks are numbered as in `tasks`.
    ///
    /// # Errors
    /// No records, an unknown task, a task that is to be trained but has no records, a step without
    /// examples.
    pub fn new(records: &[Record], tasks: &[String], size: &StepSize, seed: u64) -> Result<Self> {
        let picks = |wanted: Option<u32>| -> Vec<Pick> {
            let chosen = records.iter().enumerate().filter(|(_, r)| wanted.is_none_or(|t| t == r.task));
            chosen
                .flat_map(|(i, r)| {
                    (0..Encoder::examples(r)).map(move |t| Pick { record: i as u32, target: t as u32 })
                })
                .collect()
        };
        let stream = |picks, per_step| Stream { picks, per_step, order: Mutex::new(None) };
        let mut streams = Vec::new();
        match size {
            StepSize::Whole(n) if records.is_empty() || *n == 0 => {
                return Err(Error::usage(format!("{n} examples a step of {} records", records.len()))
                    .at("train.batch")
                    .remedy("train.jsonl must have rows, and a step at least one example"));
            }
            StepSize::Whole(n) => streams.push(stream(picks(None), *n)),
            StepSize::PerTask(counts) => {
                if let Some(name) = counts.keys().find(|name| !tasks.contains(name)) {
                    return Err(Error::usage(format!("unknown task `{name}`; known: {}", tasks.join(", ")))
                        .at("train.batch_per_task"));
                }
                for (number, name) in tasks.iter().enumerate() {
                    let per_step = counts.get(name).copied().unwrap_or(0);
                    let picks = if per_step == 0 { Vec::new() } else { picks(Some(number as u32)) };
                    if per_step > 0 && picks.is_empty() {
                        return Err(Error::usage(format!("task `{name}` has no training records"))
                            .at("train.batch_per_task")
                            .remedy(format!("add rows of task `{name}` to train, or set it to 0")));
                    }
                    streams.push(stream(picks, per_step));
                }
            }
        }
        if streams.iter().all(|s| s.per_step == 0) {
            return Err(Error::usage("a step without examples").at("train.batch_per_task"));
        }
        Ok(Self { seed, streams })
    }

    /// Examples a step.
    pub fn step_size(&self) -> usize {
        self.streams.iter().map(|s| s.per_step).sum()
    }
    /// Steps until the stream that takes longest has shown all its examples once.
    pub fn steps_per_epoch(&self) -> u64 {
        let used = self.streams.iter().filter(|s| s.per_step > 0);
        used.map(|s| s.picks.len().div_ceil(s.per_step) as u64).max().unwrap_or(0)
    }
    /// The examples of step `step` (from 0), task by task where the size is given by task.
    pub fn batch_at(&self, step: u64) -> Vec<Pick> {
        let mut batch = Vec::with_capacity(self.step_size());
        for (number, stream) in self.streams.iter().enumerate() {
            let first = step * stream.per_step as u64;
            batch.extend((first..first + stream.per_step as u64).map(|p| self.pick(number, stream, p)));
        }
        batch
    }

    fn pick(&self, number: usize, stream: &Stream, position: u64) -> Pick {
        let n = stream.picks.len();
        let (epoch, index) = (position / n as u64, (position % n as u64) as usize);
        let mut order = stream.order.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            *order = Some((epoch, permutation(self.seed, Purpose::DataOrder, number as u64, epoch, n)));
        }
        let at = order.as_ref().map_or(index, |(_, o)| o[index] as usize);
        stream.picks[at]
    }

    /// The examples that make the largest step: of every stream those for which `length` is largest.
    /// Run first, so that what does not fit in memory fails at once.
    pub fn longest(&self, length: impl Fn(&Pick) -> usize) -> Vec<Pick> {
        let mut batch = Vec::with_capacity(self.step_size());
        for stream in self.streams.iter().filter(|s| s.per_step > 0) {
            let mut lengths: Vec<(usize, Pick)> = stream.picks.iter().map(|p| (length(p), *p)).collect();
            lengths.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            // A stream shorter than a step comes round again within the step.
            batch.extend(lengths.iter().cycle().take(stream.per_step).map(|(_, p)| *p));
        }
        batch
    }
}

impl Record {
    /// A measure that grows with the number of tokens, without tokenizing: for finding long records.
    pub fn bulk(&self) -> usize {
        let bytes = |text: &Option<Box<str>>| text.as_ref().map_or(0, |t| t.len());
        8 * self.history.len() + bytes(&self.query) + bytes(&self.text)
    }
}
