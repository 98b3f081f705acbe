//! Launches as graphs, as CUDA replays them: the same numbers, bit for bit, and few launches that change.

use crate::support::simt;
use gems_engine::backend::cuda::{Cuda, DeviceSpec};
use gems_engine::backend::{Backend, DType};
use gems_engine::gems::{MethodSettings, Optimizer, StepInput};
use gems_engine::model::{Architecture, Batch, Labels, LoadOptions, Model, Packed};
use gems_engine::train::{Averaging, gradients, probe};
use serde_json::json;
use std::sync::Arc;

fn architecture() -> Architecture {
    let json = json!({"model_type": "qwen2", "vocab_size": 72, "hidden_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 3});
    Architecture::from_json(json, "qwen2").unwrap()
}

/// One sequence of each of two tasks, the last tokens labelled.
fn batch(lengths: [usize; 2]) -> Batch {
    let tokens = |n: usize| (0..n as u32).map(|i| 3 + i * 7 % 60).collect::<Vec<u32>>();
    let decoder = Packed::new(&[vec![tokens(lengths[0])], vec![tokens(lengths[1])]]);
    let rows = vec![decoder.offsets[1] - 1, decoder.offsets[2] - 2, decoder.offsets[2] - 1];
    let labels =
        Labels { rows, targets: vec![5, 70, 66], weights: vec![1.0 / 3.0; 3], segments: vec![0..1, 1..3] };
    Batch { encoder: None, decoder, labels }
}

struct Run {
    model: Model,
    tuner: Optimizer,
}

impl Run {
    fn new(be: &Arc<dyn Backend>) -> Self {
        let options = LoadOptions { random: Some(1), vocabulary: 0, ..LoadOptions::default() };
        let mut model = Model::build(architecture(), None, Arc::clone(be), &options).unwrap();
        let mut settings = MethodSettings::plain();
        (settings.gems.rank, settings.gems.refresh_every, settings.optimizer.clip_norm) = (4, 3, 1.0);
        let mut tuner = Optimizer::for_model(settings, &mut model, Some(64), 2, None, 1).unwrap();
        let pass = |model: &Model, tuner: &mut Optimizer| {
            gradients(model, tuner, &[batch([9, 7])], Averaging::Labels, false).map(drop)
        };
        probe(&mut model, &mut tuner, pass).unwrap();
        Self { model, tuner }
    }

    /// One step; returns the tasks' losses.
    fn step(&mut self, batch: &Batch) -> Vec<f64> {
        self.tuner.begin_step().unwrap();
        let batches = std::slice::from_ref(batch);
        let labels = gradients(&self.model, &mut self.tuner, batches, Averaging::Labels, false).unwrap();
        let input =
            StepInput { labels, counts: vec![1.0; 2], lr: 0.01, lr_rows: 0.01, ..StepInput::default() };
        self.tuner.step(&mut self.model, &input).unwrap().losses
    }
}

/// Steps of several sizes, with a refresh among them, on the SIMT machine with and without graphs.
#[test]
fn graphs_compute_what_single_launches_do() {
    for dtype in [DType::F32, DType::BF16] {
        let train = |be: Arc<dyn Backend>| {
            let mut run = Run::new(&be);
            let sizes = [[9, 7], [5, 12], [9, 7], [9, 7], [1, 2], [5, 12]];
            let losses: Vec<Vec<f64>> = sizes.into_iter().map(|size| run.step(&batch(size))).collect();
            (losses, run.tuner.state(&mut run.model).unwrap())
        };
        let want = train(simt(dtype));
        let be = Cuda::open(DeviceSpec { graphs: true, ..DeviceSpec::simt(dtype) }).unwrap();
        let got = train(be.clone());
        assert!(got == want, "{dtype:?}: losses {:?} and {:?}", got.0, want.0);
        let counts = be.replays().unwrap();
        assert!(counts.started > counts.made && counts.changed > 0, "{counts:?}");
    }
}

/// The second of two equal steps differs from the first by Adam's constants alone: memory comes back at the same
/// addresses, and everything else that is passed by value is the same.
#[test]
fn a_step_like_the_last_one_changes_few_launches() {
    let spec = DeviceSpec { graphs: true, ..DeviceSpec::dry_run_of_h100(DType::BF16) };
    let cuda = Cuda::open(spec).unwrap();
    let be: Arc<dyn Backend> = cuda.clone();
    let mut run = Run::new(&be);
    let same = batch([9, 7]);
    run.step(&same);
    let before = cuda.replays().unwrap();
    run.step(&same);
    let after = cuda.replays().unwrap();
    assert_eq!(after.made, before.made, "a step of the same kernels makes no graph");
    let (launches, changed) = (after.launches - before.launches, after.changed - before.changed);
    // Three layers of seven adapted matrices, sixteen a launch; the item rows of table and head.
    assert!(launches > 100 && changed <= 4, "{changed} of {launches}: {before:?}, {after:?}");
    let other = batch([8, 8]);
    run.step(&other);
    assert!(cuda.replays().unwrap().started > after.started);
}
