//! Metric, step factors, pull and rehearsal in one run, against a program in PyTorch (`tests/golden/make_knowledge.py`).

use super::floats;
use crate::support::{assert_close, on_every_device};
use gems_engine::gems::*;
use gems_engine::model::{Architecture, Batch, Labels, LoadOptions, Model, Packed};
use gems_engine::train::{Averaging, Rehearsal, gradients, probe, rehearse};
use serde_json::Value;

fn narrow(v: &Value) -> Vec<f32> {
    floats(v).into_iter().map(|x| x as f32).collect()
}

fn spectrum(v: &Value) -> Spectrum {
    Spectrum {
        name: "golden".into(),
        dim: v["dim"].as_u64().unwrap() as usize,
        directions: narrow(&v["directions"]),
        values: floats(&v["values"]),
        rest: v["rest"].as_f64().unwrap(),
        samples: 100,
    }
}

/// A model of the case, of the weights that the program starts from.
fn model(case: &Value) -> Model {
    let architecture = Architecture::from_json(case["config"].clone(), "golden").unwrap();
    let options = LoadOptions { random: Some(1), vocabulary: 0, ..LoadOptions::default() };
    let mut model = Model::build(architecture, None, crate::support::backend(), &options).unwrap();
    let be = std::sync::Arc::clone(&model.backend);
    let start = |name: String| narrow(&case["start"][name]);
    for (i, site) in model.layout.sites.clone().into_iter().enumerate() {
        be.upload(&start(format!("{}.weight", site.name)), model.linears[i].weight.mat_mut()).unwrap();
    }
    for (i, dense) in model.layout.dense.clone().into_iter().enumerate() {
        be.upload(&start(dense.name), model.parameter_mut(i)).unwrap();
    }
    model
}

fn settings(case: &Value) -> MethodSettings {
    let number = |name: &str| case[name].as_f64().unwrap();
    let every = case["every"].as_u64().unwrap();
    MethodSettings {
        gems: GemsSettings {
            rank: case["ranks"][0].as_u64().unwrap() as usize,
            task_rank: case["ranks"][1].as_u64().map(|r| r as usize),
            refresh_every: every,
            refresh_window: every,
            refresh: Refresh::Exact,
            gates: GateSettings { fixed: number("gate"), ..Default::default() },
            ..Default::default()
        },
        null_space: NullSpaceSettings {
            side: NullSide::Metric,
            damping: number("damping"),
            step_factors: true,
            pull: number("pull"),
            item_rows: 0.0,
            ..Default::default()
        },
        rehearsal: RehearsalSettings { every, texts: 9, weight: number("weight"), tokens: 99 },
        optimizer: OptimizerSettings {
            eps: number("eps"),
            embeddings: Embeddings::None,
            ..Default::default()
        },
    }
}

/// Every sequence but its last token, which the row before it is to predict.
fn batch(case: &Value) -> Batch {
    let tasks: Vec<Vec<Vec<u32>>> = serde_json::from_value(case["sequences"].clone()).unwrap();
    let cut = |sequences: &Vec<Vec<u32>>| -> Vec<Vec<u32>> {
        sequences.iter().map(|s| s[..s.len() - 1].to_vec()).collect()
    };
    let decoder = Packed::new(&tasks.iter().map(cut).collect::<Vec<_>>());
    let targets: Vec<u32> = tasks.iter().flatten().map(|s| *s.last().unwrap()).collect();
    let n = targets.len();
    let rows = decoder.offsets[1..].iter().map(|end| end - 1).collect();
    let segments = vec![0..tasks[0].len(), tasks[0].len()..n];
    Batch {
        encoder: None,
        decoder,
        labels: Labels { rows, targets, weights: vec![1.0 / n as f32; n], segments },
    }
}

#[test]
fn golden_steps_with_metric_pull_and_rehearsal() {
    let case: Value = serde_json::from_str(include_str!("../../golden/knowledge.json")).unwrap();
    on_every_device(|| {
        let (mut model, s) = (model(&case), settings(&case));
        let sites = model.layout.sites.clone();
        let knowledge = Knowledge {
            inputs: case["inputs"].as_array().unwrap().iter().map(spectrum).collect(),
            input_of_site: sites
                .iter()
                .map(|s| case["input_of"][&s.name].as_u64().map(|i| i as usize))
                .collect(),
            gradients: sites.iter().map(|s| Some(spectrum(&case["gradients"][&s.name]))).collect(),
            ..Default::default()
        };
        let texts: Vec<Vec<u32>> = serde_json::from_value(case["texts"].clone()).unwrap();
        let old = case["old"].as_u64().unwrap() as usize;
        let rehearsal = Rehearsal::new(&model, texts, old, &s, 1).unwrap();
        let mut tuner = Optimizer::for_model(s, &mut model, Some(old), 2, Some(&knowledge), 1).unwrap();
        let batches = [batch(&case)];
        let pass = |model: &Model, tuner: &mut Optimizer| {
            gradients(model, tuner, &batches, Averaging::Labels, false)
        };
        probe(&mut model, &mut tuner, |model, tuner| pass(model, tuner).map(drop)).unwrap();
        let steps = case["steps"].as_array().unwrap();
        for (i, want) in steps.iter().enumerate() {
            tuner.begin_step().unwrap();
            rehearse(rehearsal.as_ref(), &model, &mut tuner, i as u64, false).unwrap();
            let labels = pass(&model, &mut tuner).unwrap();
            let (lr, schedule) = (case["lr"].as_f64().unwrap(), case["schedule"].as_f64().unwrap());
            let input = StepInput {
                labels,
                counts: vec![1.0; 2],
                lr,
                schedule,
                last: i + 1 == steps.len(),
                ..Default::default()
            };
            let report = tuner.step(&mut model, &input).unwrap();
            let close = |what: &str, got: f64, want: f64| {
                assert_close(&format!("{what} of step {i}"), &[got as f32], &[want as f32], 1e-3, 1e-5);
            };
            close("update norm", report.update_norm, want["update_norm"].as_f64().unwrap());
            assert_eq!(report.rehearsed.is_some(), want["kl"].is_f64() || want["kl"].is_i64());
            if let Some((tokens, kl)) = report.rehearsed {
                assert_eq!(tokens, 15);
                close("divergence", kl, want["kl"].as_f64().unwrap());
            }
        }
        for (site, shape) in sites.iter().enumerate() {
            let layer = &model.linears[site];
            let mut w =
                model.backend.duplicate(layer.weight.mat(), gems_engine::backend::DType::F32).unwrap();
            let branch = layer.branch.as_ref().unwrap();
            model.backend.product(w.mat_mut(), 1.0, 1.0, branch.b.mat().n(), branch.a.mat().n()).unwrap();
            // The largest of all changes is 0.3: Adam magnifies the rounding of small gradients.
            let got = model.backend.download(w.mat()).unwrap();
            assert_close(&shape.name, &got, &narrow(&case["end"][&shape.name]), 1e-3, 1e-3);
        }
    });
}
