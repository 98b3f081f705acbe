//! What the benches and their peers measure on: models, batches, methods, one training step.
//!
//! The model shapes are Hugging Face configurations in `shapes/`, so that a peer builds the same model.
//! `GEMS_BENCH_DEVICE` (cpu, simt, cuda) chooses the device; cpu by default.
#![allow(dead_code, reason = "every bench uses a part of it")]

use gems_engine::backend::cuda::{Cuda, DeviceSpec};
use gems_engine::backend::{Backend, DType, cpu::Cpu};
use gems_engine::error::Result;
use gems_engine::gems::{Method, MethodSettings, Optimizer, StepInput};
use gems_engine::model::{Architecture, Batch, Labels, LoadOptions, Model, Packed};
use gems_engine::train::{Averaging, gradients, probe};
use std::sync::Arc;

/// A model shape by name: its configuration, and the batch it is measured on.
pub struct Shape {
    pub name: &'static str,
    config: &'static str,
    /// Sequences of each of two tasks, and tokens of each sequence.
    pub sequences: usize,
    pub length: usize,
}

/// About 1 M weights: what a test or the demo trains.
pub const TINY: Shape =
    Shape { name: "llama-tiny", config: include_str!("shapes/llama-tiny.json"), sequences: 8, length: 64 };
/// 60 M weights, decoder-only.
pub const SMALL: Shape =
    Shape { name: "llama-60m", config: include_str!("shapes/llama-60m.json"), sequences: 8, length: 64 };
/// T5-small's shape: 60 M weights, encoder-decoder.
pub const T5: Shape =
    Shape { name: "t5-small", config: include_str!("shapes/t5-small.json"), sequences: 8, length: 64 };

/// Labelled tokens at the end of every sequence: an item's tokens and the end of sequence.
const LABELS: usize = 3;

/// The device asked for.
pub fn device() -> Arc<dyn Backend> {
    let kernels = |spec: DeviceSpec| -> Result<Arc<dyn Backend>> { Ok(Cuda::open(spec.with_switches()?)?) };
    let opened = match std::env::var("GEMS_BENCH_DEVICE").as_deref() {
        Ok("simt") => kernels(DeviceSpec::simt(DType::F32)),
        Ok("cuda") => kernels(DeviceSpec::gpu(0)),
        _ => Cpu::open(None),
    };
    opened.unwrap_or_else(|error| panic!("{error}"))
}

impl Shape {
    pub fn architecture(&self) -> Architecture {
        let json = serde_json::from_str(self.config).expect("a configuration in benches/shapes");
        Architecture::from_json(json, self.name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The model with random weights.
    pub fn model(&self, backend: &Arc<dyn Backend>) -> Model {
        let options = LoadOptions { random: Some(1), vocabulary: 0, ..LoadOptions::default() };
        Model::build(self.architecture(), None, Arc::clone(backend), &options)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// A batch of two tasks with as many sequences of the same length each.
    pub fn batch(&self) -> Batch {
        let a = self.architecture();
        let token = |i: usize| (2 + (i * 7919) % (a.vocabulary - 2)) as u32;
        let text = |s: usize, n: usize| (0..n).map(|i| token(s * 977 + i)).collect::<Vec<u32>>();
        let tasks = |from: usize, n: usize| -> Vec<Vec<u32>> {
            (from * self.sequences..(from + 1) * self.sequences).map(|s| text(s, n)).collect()
        };
        match a.decoder_start {
            Some(start) => {
                let targets = |t: usize| tasks(t, LABELS + 1);
                let decoded = |t: usize| {
                    targets(t).iter().map(|s| [&[start], &s[1..LABELS]].concat()).collect::<Vec<_>>()
                };
                let encoder = Packed::new(&[tasks(0, self.length), tasks(1, self.length)]);
                let decoder = Packed::new(&[decoded(0), decoded(1)]);
                let full: Vec<Vec<u32>> =
                    (0..2).flat_map(targets).map(|s| [&[start], &s[1..]].concat()).collect();
                labelled(Some(encoder), decoder, &full)
            }
            None => {
                let whole: Vec<Vec<u32>> = (0..2).flat_map(|t| tasks(t, self.length + 1)).collect();
                let inputs =
                    |t: usize| tasks(t, self.length + 1).into_iter().map(|s| s[..self.length].to_vec());
                let decoder = Packed::new(&[inputs(0).collect::<Vec<_>>(), inputs(1).collect()]);
                labelled(None, decoder, &whole)
            }
        }
    }
}

/// Labels the last tokens of every sequence; `whole` holds the sequences with their last token.
pub fn labelled(encoder: Option<Packed>, decoder: Packed, whole: &[Vec<u32>]) -> Batch {
    let mut labels = Labels::default();
    for (sequence, start) in whole.iter().zip(&decoder.offsets) {
        let from = sequence.len() - LABELS.min(sequence.len() - 1);
        labels.rows.extend((from..sequence.len()).map(|at| start + at as u32 - 1));
        labels.targets.extend_from_slice(&sequence[from..]);
    }
    let at = |row: usize| labels.rows.partition_point(|r| (*r as usize) < row);
    labels.segments = decoder.segments.iter().map(|s| at(s.start)..at(s.end)).collect();
    labels.weights = vec![1.0 / labels.rows.len() as f32; labels.rows.len()];
    Batch { encoder, decoder, labels }
}

/// A method at rank `rank`, without a null space, on every linear layer.
pub fn method(method: Method, rank: usize) -> MethodSettings {
    let mut settings = MethodSettings::plain();
    settings.gems.method = method;
    settings.gems.rank = rank;
    settings
}

/// A model being tuned on one batch.
pub struct Training {
    pub model: Model,
    pub tuner: Optimizer,
    batch: Batch,
}

impl Training {
    /// Everything up to the first step, with the first bases found in the batch itself.
    pub fn start(mut model: Model, batch: Batch, settings: MethodSettings) -> Result<Self> {
        let tasks = batch.labels.segments.len();
        let tuner = Optimizer::for_model(settings, &mut model, None, tasks, None, 1)?;
        let mut this = Self { model, tuner, batch };
        let Self { model, tuner, batch } = &mut this;
        probe(model, tuner, |model, tuner| pass(model, tuner, batch).map(drop))?;
        Ok(this)
    }

    /// One whole step; returns the loss before it.
    pub fn step(&mut self) -> Result<f64> {
        self.tuner.begin_step()?;
        let labels = pass(&self.model, &mut self.tuner, &self.batch)?;
        let input = StepInput {
            schedule: 1.0,
            counts: vec![1.0; labels.len()],
            labels: labels.clone(),
            lr: 1e-4,
            lr_rows: 1e-4,
            target_norm: None,
            last: false,
        };
        let report = self.tuner.step(&mut self.model, &input)?;
        self.model.backend.synchronize()?;
        Ok(report.losses.iter().sum::<f64>() / labels.iter().sum::<usize>().max(1) as f64)
    }
}

fn pass(model: &Model, tuner: &mut Optimizer, batch: &Batch) -> Result<Vec<usize>> {
    gradients(model, tuner, std::slice::from_ref(batch), Averaging::Labels, false)
}
