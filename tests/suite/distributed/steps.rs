//! Steps in leaves: the same numbers on any number of ranks, and those of one batch to rounding.

use super::{on_ranks, over};
use crate::support::{assert_close, simt};
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::{Backend, DType};
use gems_engine::data::Example;
use gems_engine::distributed::{DistributedSettings, Threads, World};
use gems_engine::gems::*;
use gems_engine::model::{Architecture, LoadOptions, Model};
use gems_engine::train::{Averaging, StepData, gradients, gradients_in_leaves, probe};
use serde_json::{Value, json};
use std::sync::Arc;

/// Opens a device: every rank has its own.
type Open = fn() -> Arc<dyn Backend>;

fn cpu() -> Arc<dyn Backend> {
    Cpu::open(None).unwrap()
}

fn model(open: Open) -> Model {
    let json = json!({"model_type": "qwen2", "vocab_size": 72, "hidden_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2});
    let architecture = Architecture::from_json(json, "qwen2").unwrap();
    let options = LoadOptions { random: Some(1), vocabulary: 0, ..LoadOptions::default() };
    Model::build(architecture, None, open(), &options).unwrap()
}

/// An example of `task` with `labels` labels.
fn example(seed: u32, task: u32, length: u32, labels: usize) -> Example {
    let tokens: Vec<u32> = (0..length).map(|i| 3 + (seed * 31 + i * 7) % 66).collect();
    Example { task, labels_from: tokens.len() - labels, tokens, ..Example::default() }
}

/// Steps of uneven lengths: a task that is absent, fewer examples than leaves, one label here and many there.
fn steps() -> Vec<Vec<Example>> {
    vec![
        (0..7).map(|k| example(k, k % 2, 6 + k, 1 + k as usize % 3)).collect(),
        vec![example(1, 0, 9, 2), example(2, 0, 5, 1), example(3, 0, 30, 24)],
        vec![example(4, 1, 8, 1)],
        (0..9).map(|k| example(50 + k, u32::from(k > 7), 5 + k % 4, 2)).collect(),
        (0..5).map(|k| example(90 + k, k % 2, 12, 3)).collect(),
    ]
}

/// The share of a step that `world` has of `shards` leaves: by turns, so that leaves are of uneven length.
fn share(examples: &[Example], world: &World, shards: usize, rows: usize) -> StepData {
    let whole = StepData::pack(examples, 2, 0).unwrap();
    let mut data =
        StepData { labels: whole.labels.clone(), counts: whole.counts.clone(), ..StepData::default() };
    for leaf in world.leaves(shards) {
        let own: Vec<Example> = examples.iter().skip(leaf).step_by(shards).cloned().collect();
        let all = whole.labels.iter().sum();
        data.batches.extend(gems_engine::data::micro_batches_of(&own, 2, rows, all).unwrap());
        data.leaves.push(data.batches.len());
    }
    data
}

fn settings(method: Method) -> MethodSettings {
    let mut s = MethodSettings::plain();
    (s.gems.method, s.gems.rank, s.gems.refresh_every, s.gems.refresh_window) = (method, 4, 2, 2);
    s
}

/// Everything that a checkpoint keeps, and what every step reported, of a run in `shards` leaves on this rank.
fn trained(
    open: Open,
    world: &World,
    s: &MethodSettings,
    shards: usize,
) -> gems_engine::error::Result<(Vec<StateTensor>, Value)> {
    let mut model = model(open);
    let mut tuner = Optimizer::for_model(s.clone(), &mut model, Some(64), 2, None, 1)?;
    let pass = |model: &Model, tuner: &mut Optimizer, examples: &[Example]| {
        let mut data = share(examples, world, shards, 40);
        gradients_in_leaves(model, tuner, &mut data, (Averaging::Labels, false), (world, shards))
            .map(|_| data)
    };
    let first = &steps()[0];
    probe(&mut model, &mut tuner, |model, tuner| pass(model, tuner, first).map(drop))?;
    let mut reports = Vec::new();
    // Two refreshes, and a window that stays open.
    for (number, examples) in steps().iter().enumerate() {
        world.at_step(number as u64);
        tuner.begin_step()?;
        let data = pass(&model, &mut tuner, examples)?;
        let input = StepInput {
            labels: data.labels,
            counts: data.counts,
            lr: 0.01,
            lr_rows: 0.01,
            ..StepInput::default()
        };
        let report = tuner.step(&mut model, &input)?;
        reports.push(json!([report.losses, report.gradient_norm, report.update_norm]));
        let (tensors, _) = tuner.state(&mut model)?;
        world.same_numbers(&gems_engine::train::checkpoint::hashes(&tensors))?;
    }
    let (tensors, numbers) = tuner.state(&mut model)?;
    Ok((tensors, json!([numbers, reports])))
}

/// All methods, with what of each sums something.
fn methods() -> Vec<MethodSettings> {
    let mut exact = settings(Method::Gems);
    exact.gems.refresh = Refresh::Exact;
    let mut all = settings(Method::Gems);
    (all.gems.refresh, all.gems.gates.kind) = (Refresh::Sketch, GateKind::Learned);
    (all.gems.surgery, all.optimizer.clip_norm) = (Surgery::Pcgrad, 0.05);
    (all.optimizer.weight_decay, all.optimizer.norms) = (0.1, true);
    let others = [Method::Galore, Method::Lora, Method::Full, Method::Rows].map(settings);
    [exact, all].into_iter().chain(others).collect()
}

fn same_bits(open: Open, s: &MethodSettings, ranks: usize) {
    let (method, one) = (s.gems.method, trained(open, &World::alone(), s, 4).unwrap());
    for (rank, found) in on_ranks(ranks, |world| trained(open, world, s, 4)).into_iter().enumerate() {
        let found = found.unwrap();
        assert_eq!(found.1, one.1, "{method:?}, rank {rank} of {ranks}");
        assert!(found.0 == one.0, "{method:?}, rank {rank} of {ranks}: tensors differ");
    }
}

#[test]
fn a_run_has_the_same_bits_on_any_number_of_ranks() {
    for s in methods() {
        [2, 3, 4].into_iter().for_each(|ranks| same_bits(cpu, &s, ranks));
    }
}

/// The kernels, on the SIMT machine: sums through the host, and sums that stay on the devices of two machines of two.
#[test]
fn nor_do_the_kernels_bits_depend_on_it() {
    let (open, s): (Open, _) = (|| simt(DType::F32), &methods()[1]);
    let one = trained(open, &World::alone(), s, 4).unwrap();
    let on_devices = Threads::new(4).into_iter().zip(["a", "a", "b", "b"]);
    let on_devices = on_devices.map(|(rank, machine)| rank.on(machine).reaching_devices()).collect();
    for ranks in [Threads::new(3), on_devices] {
        let size = ranks.len();
        for found in over(ranks, |world| trained(open, world, s, 4)) {
            let found = found.unwrap();
            assert!(found.1 == one.1 && found.0 == one.0, "a rank of {size}");
        }
    }
}

/// Gradients that leave while the last pass goes backward: the same bits, on the CPU and on the kernels' devices.
#[test]
fn nor_does_it_matter_when_gradients_leave() {
    let overlapping = |open: Open, world: &World, s: &MethodSettings| {
        world.follow(&DistributedSettings { overlap: Some(true), ..DistributedSettings::default() });
        assert!(world.overlaps(&*open()).unwrap());
        trained(open, world, s, 4)
    };
    let simt: Open = || simt(DType::F32);
    let of_some = methods().into_iter().map(|s| (cpu as Open, s, [2, 3, 4].as_slice()));
    for (open, s, sizes) in of_some.chain([(simt, methods().remove(1), &[3][..])]) {
        let one = trained(open, &World::alone(), &s, 4).unwrap();
        for size in sizes {
            let ranks = Threads::new(*size).into_iter().map(Threads::reaching_devices).collect();
            for found in over(ranks, |world| overlapping(open, world, &s)) {
                let found = found.unwrap();
                assert!(found.1 == one.1 && found.0 == one.0, "{:?}: a rank of {size}", s.gems.method);
            }
        }
    }
}

/// Weights and scales are of the whole step: 1 label in one leaf and 24 in another weigh as in one batch.
#[test]
fn gradients_in_leaves_are_those_of_one_batch() {
    for examples in steps() {
        let losses_and_gradients = |shards: usize| {
            let mut model = model(cpu);
            let mut tuner =
                Optimizer::for_model(settings(Method::Full), &mut model, Some(64), 2, None, 1).unwrap();
            tuner.begin_step().unwrap();
            let world = World::alone();
            if shards == 1 {
                let data = StepData::pack(&examples, 2, 0).unwrap();
                gradients(&model, &mut tuner, &data.batches, Averaging::Labels, false).unwrap();
            } else {
                let mut data = share(&examples, &world, shards, 0);
                let how = (Averaging::Labels, false);
                gradients_in_leaves(&model, &mut tuner, &mut data, how, (&world, shards)).unwrap();
            }
            let leaf = tuner.take_leaf(&[]).unwrap();
            model.backend.download(leaf.mat()).unwrap()
        };
        let whole = losses_and_gradients(1);
        let most = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
        for shards in [2, 5] {
            let name = format!("{} examples in {shards} leaves", examples.len());
            assert_close(&name, &losses_and_gradients(shards), &whole, 1e-5, 1e-6 * f64::from(most));
        }
    }
}

/// A NaN on one rank reaches all: they skip the step, and nothing of it stays.
#[test]
fn a_nan_on_one_rank_skips_the_step_on_all() {
    let reports = on_ranks(3, |world| {
        let mut model = model(cpu);
        let mut tuner = Optimizer::for_model(settings(Method::Lora), &mut model, Some(64), 2, None, 1)?;
        let (before, _) = tuner.state(&mut model)?;
        tuner.begin_step()?;
        let mut data = share(&steps()[0], world, 3, 0);
        if world.rank() == 1 {
            data.batches[0].labels.weights.iter_mut().for_each(|w| *w = f32::NAN);
        }
        let leaves =
            gradients_in_leaves(&model, &mut tuner, &mut data, (Averaging::Labels, false), (world, 3))?;
        let input = StepInput { labels: data.labels, counts: data.counts, lr: 0.01, ..StepInput::default() };
        let report = tuner.step(&mut model, &input)?;
        let (after, _) = tuner.state(&mut model)?;
        Ok((leaves.finite, report.finite, before == after))
    });
    let reports: Vec<_> = reports.into_iter().map(Result::unwrap).collect();
    assert_eq!(reports, [(true, false, true), (false, false, true), (true, false, true)]);
}

/// Ranks of other shapes are told apart before anything is moved.
#[test]
fn ranks_with_other_leaves_do_not_hang() {
    assert_eq!(Threads::new(3).len(), 3);
    let all = on_ranks(2, |world| trained(cpu, world, &settings(Method::Lora), 2 + 2 * world.rank()));
    assert!(all.iter().all(Result::is_err));
}
