//! Rehearsal: its gradient, what is held of it, and who refuses it.

use super::small;
use crate::support::{assert_close, numbers, on_every_device};
use gems_engine::backend::{Backend, DType};
use gems_engine::gems::*;
use gems_engine::model::{Architecture, Layout, LoadOptions, Model, general_pass};
use gems_engine::train::Rehearsal;
use serde_json::json;
use std::sync::Arc;

/// Vocabulary rows of the base model; those after them are new.
const OLD: usize = 41;

fn model(family: &str, backend: &Arc<dyn Backend>) -> Model {
    let json = match family {
        "t5" => json!({"model_type": "t5", "vocab_size": 47, "d_model": 12, "d_kv": 4, "num_heads": 3,
            "d_ff": 20, "num_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
            "decoder_start_token_id": 0}),
        family => json!({"model_type": family, "vocab_size": 47, "hidden_size": 12, "num_attention_heads": 3,
            "num_key_value_heads": 1, "intermediate_size": 20, "num_hidden_layers": 2}),
    };
    let architecture = Architecture::from_json(json, family).unwrap();
    let mut model = Model::build(
        architecture,
        None,
        Arc::clone(backend),
        &LoadOptions { random: Some(3), vocabulary: 0, ..LoadOptions::default() },
    )
    .unwrap();
    // Predictions that are not nearly uniform.
    for index in [Layout::EMBEDDING, model.head()] {
        backend.scale(model.parameter_mut(index), 8.0).unwrap();
    }
    (0..model.linears.len()).for_each(|site| shift(&mut model, site, &numbers(site as u64, 4096), 0.3));
    model
}

/// Adds `scale` times some numbers to a layer's weight.
fn shift(model: &mut Model, site: usize, by: &[f32], scale: f32) {
    let be = Arc::clone(&model.backend);
    let weight = &mut model.linears[site].weight;
    let (rows, cols) = weight.shape();
    let by = be.tensor(&by[..rows * cols], rows, cols, DType::F32).unwrap();
    be.axpy(scale, by.mat(), weight.mat_mut()).unwrap();
}

fn texts() -> Vec<Vec<u32>> {
    [5, 2, 9, 7]
        .iter()
        .enumerate()
        .map(|(i, n)| (0..*n).map(|j| (i * 17 + j * 5) as u32 % 41).collect())
        .collect()
}

fn settings(method: Method) -> MethodSettings {
    let mut s = small(method);
    s.rehearsal = RehearsalSettings { every: 3, texts: 4, weight: 0.5, tokens: 64 };
    s
}

/// Log-probabilities over the old vocabulary of every token of all texts, in f64.
fn predictions(model: &Model) -> Vec<Vec<f64>> {
    let hidden = model.hidden(&general_pass(model, &texts())).unwrap();
    let logits = model.backend.download(model.logits(&hidden).unwrap().mat()).unwrap();
    let of_row = |row: &[f32]| {
        let old: Vec<f64> = row[..OLD].iter().map(|v| f64::from(*v)).collect();
        let sum = old.iter().map(|z| z.exp()).sum::<f64>().ln();
        old.iter().map(|z| z - sum).collect()
    };
    logits.chunks(model.architecture.vocabulary).map(of_row).collect()
}

/// Mean KL(before || now) a token.
fn divergence(before: &[Vec<f64>], now: &[Vec<f64>]) -> f64 {
    let of_row =
        |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    before.iter().zip(now).map(of_row).sum::<f64>() / before.len() as f64
}

/// What a tuner holds of a layer.
fn held(tuner: &mut Optimizer, model: &mut Model, site: usize) -> Vec<f32> {
    let (tensors, _) = tuner.state(model).unwrap();
    tensors.into_iter().find(|t| t.name == format!("site.{site}.held")).unwrap().values
}

#[test]
fn the_gradient_is_that_of_the_divergence() {
    on_every_device(|| {
        for family in ["llama", "t5"] {
            let be = crate::support::backend();
            let mut model = model(family, &be);
            let s = settings(Method::Full);
            let rehearsal = Rehearsal::new(&model, texts(), OLD, &s, 1).unwrap().unwrap();
            let before = predictions(&model);
            for site in 0..model.linears.len() {
                shift(&mut model, site, &numbers(100 + site as u64, 4096), 0.15);
            }
            let mut tuner = Optimizer::for_model(s, &mut model, Some(OLD), 1, None, 1).unwrap();
            tuner.begin_step().unwrap();
            rehearsal.run(&model, &mut tuner, 0, false).unwrap();
            let now = divergence(&before, &predictions(&model));
            assert!(now > 0.01, "{now}");
            for site in 0..model.linears.len() {
                let gradient = held(&mut tuner, &mut model, site);
                let along = numbers(200 + site as u64, gradient.len());
                // Differences at two distances, so that what is left is of fourth order.
                let h = 2e-3f32;
                let mut at = 0.0;
                let mut moved_to = |to: f32| {
                    shift(&mut model, site, &along, to - at);
                    at = to;
                    divergence(&before, &predictions(&model))
                };
                let [near, far] = [h, 2.0 * h].map(|h| moved_to(h) - moved_to(-h));
                moved_to(0.0);
                let slope = (8.0 * near - far) / (12.0 * f64::from(h));
                let found: f64 = gradient.iter().zip(&along).map(|(g, u)| f64::from(g * u)).sum();
                let what = format!("{family}, {}", model.layout.sites[site].name);
                assert_close(&what, &[found as f32], &[slope as f32], 0.02, 1e-3);
            }
        }
    });
}

#[test]
fn the_divergence_is_told_and_nothing_moves_at_first() {
    on_every_device(|| {
        let be = crate::support::backend();
        let mut model = model("llama", &be);
        let s = settings(Method::Full);
        let rehearsal = Rehearsal::new(&model, texts(), OLD, &s, 1).unwrap().unwrap();
        let mut tuner = Optimizer::for_model(s, &mut model, Some(OLD), 1, None, 1).unwrap();
        tuner.begin_step().unwrap();
        rehearsal.run(&model, &mut tuner, 0, true).unwrap();
        for site in 0..model.linears.len() {
            let largest = held(&mut tuner, &mut model, site).iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest < 1e-6, "{largest}");
        }
        let input = StepInput { labels: vec![1], counts: vec![1.0], lr: 0.0, ..StepInput::default() };
        let (tokens, kl) = tuner.step(&mut model, &input).unwrap().rehearsed.unwrap();
        assert!(tokens == 23 && kl.abs() < 1e-6, "{tokens} {kl}");
        // Not every step, and not silently in the next.
        assert!(!tuner.rehearsal_is_due());
        tuner.begin_step().unwrap();
        assert_eq!(tuner.step(&mut model, &input).unwrap().rehearsed, None);
    });
}

#[test]
fn rehearsal_that_cannot_be_meant_is_refused() {
    let bad = |change: &dyn Fn(&mut MethodSettings), says: &str| {
        let mut s = settings(Method::Gems);
        change(&mut s);
        let error = s.validate().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    bad(&|s| s.rehearsal.texts = 0, "rehearsal reads 0 texts");
    bad(&|s| s.rehearsal.tokens = 1, "drawn from 1 tokens");
    bad(&|s| s.rehearsal.weight = 0.0, "rehearsal.weight is 0");
    bad(&|s| s.rehearsal.weight = f64::NAN, "rehearsal.weight is NaN");
    bad(&|s| s.gems.side = Side::Published, "published optimizer");
    bad(&|s| s.gems.method = Method::Rows, "tunes no layer");
    let be = crate::support::backend();
    let model = model("llama", &be);
    let none = Rehearsal::new(&model, vec![vec![OLD as u32]], OLD, &settings(Method::Gems), 1);
    assert!(none.err().unwrap().to_string().contains("no general text to rehearse"));
}
