//! Logits, losses and gradients against transformers' and PEFT's.

use super::{Collect, Rows, gradients, load};
use crate::support::{Golden, Reference, assert_close, on_every_device};
use gems_engine::backend::{Branch, DType};
use gems_engine::model::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn check_gradients(
    model: &Model,
    tap: &Collect,
    task: Option<usize>,
    scale: f32,
    want: &BTreeMap<String, Reference>,
    tolerance: (f64, f64),
    what: &str,
) {
    let mut seen = 0;
    for (index, spec) in model.layout.dense.iter().enumerate() {
        let Some(reference) = want.get(&spec.name) else { panic!("{what}: no reference for {}", spec.name) };
        let block = spec.rows * spec.cols;
        let all = &tap.dense[&index];
        let got: Vec<f32> = match task {
            Some(t) => all[t * block..(t + 1) * block].iter().map(|v| v * scale).collect(),
            None => all.iter().map(|v| v * scale).collect(),
        };
        assert_close(&format!("{what} {}", spec.name), &got, &reference.values, tolerance.0, tolerance.1);
        seen += 1;
    }
    for (index, site) in model.layout.sites.iter().enumerate() {
        let name = format!("{}.weight", site.name);
        let Some(reference) = want.get(&name) else { panic!("{what}: no reference for {name}") };
        let mut got = vec![0f32; site.outputs * site.inputs];
        for (t, full) in tap.linears[&index].iter().enumerate() {
            if task.is_none_or(|task| task == t) {
                let values = model.backend.download(full.mat()).unwrap();
                got.iter_mut().zip(values).for_each(|(g, v)| *g += v * scale);
            }
        }
        assert_close(&format!("{what} {name}"), &got, &reference.values, tolerance.0, tolerance.1);
        seen += 1;
    }
    assert_eq!(seen, want.len(), "{what}: stored tensors without a gradient of ours");
}

#[test]
fn golden_models_logits_losses_and_all_gradients() {
    on_every_device(|| {
        let golden = Golden::open();
        for name in golden.folders("model_cases") {
            for config in ["config.json", "config.v5.json"] {
                if !golden.has(&format!("models/{name}/{config}")) {
                    continue;
                }
                let model = load(&golden, &name, config);
                check_case(&golden, &name, &model);
            }
        }
    });
}

fn check_case(golden: &Golden, name: &str, model: &Model) {
    let path = |file: &str| format!("model_cases/{name}/{file}");
    let rows = Rows::read(&golden.tensors(&path("batch.safetensors")), "");
    let outputs = golden.tensors(&path("outputs.safetensors"));
    let case = golden.json(&path("case.json"));
    let (batch, places) = rows.batch(&model.architecture, |_| true, true);

    // Losses, and every label's.
    let (nll, tap) = gradients(model, &batch, true, false);
    let reference = &outputs["nll"];
    let tolerance = |file: &str, key: &str, default: f64| golden.tolerance(&path(file), key, default);
    let atol = tolerance("outputs.safetensors", "atol", 2e-4);
    let rtol = tolerance("outputs.safetensors", "rtol", 1e-4);
    let want: Vec<f32> = places.iter().map(|(i, j)| reference.values[i * reference.cols() + j]).collect();
    assert_close(&format!("{name} nll"), &nll, &want, rtol, atol);
    let mean = |range: &[f32]| range.iter().map(|v| *v as f64).sum::<f64>() / range.len() as f64;
    assert!((mean(&nll) - case["loss_whole"].as_f64().unwrap()).abs() < 1e-4, "{name} loss");

    // Every stored logit of rows that are not padding.
    check_logits(model, &rows, &outputs["logits"], &format!("{name} logits"), rtol, atol);

    // Gradients: whole, and each task's own mean loss.
    for (file, task) in [("whole", None), ("rec", Some(0)), ("src", Some(1))] {
        let file = path(&format!("grads_{file}.safetensors"));
        let n = batch.labels.rows.len() as f32;
        let scale = task.map_or(1.0, |t| n / batch.labels.segments[t].len() as f32);
        let tolerance = (golden.tolerance(&file, "rtol", 1e-4), golden.tolerance(&file, "atol", 2e-5));
        let want = golden.tensors(&file);
        if task.is_none() {
            let (_, whole) = gradients(model, &batch, false, false);
            check_gradients(model, &whole, None, 1.0, &want, tolerance, &format!("{name} whole"));
        } else {
            check_gradients(model, &tap, task, scale, &want, tolerance, &format!("{name} {file}"));
        }
    }
}

/// Logits of all real positions through the inference pass.
pub fn check_logits(model: &Model, rows: &Rows, want: &Reference, what: &str, rtol: f64, atol: f64) {
    let a = &model.architecture;
    let (batch, _) = rows.batch(a, |_| true, true);
    let width = want.shape[1];
    let vocabulary = *want.shape.last().unwrap();
    let all: Vec<u32> = (0..batch.decoder.rows() as u32).collect();
    let request =
        Inference { encoder: batch.encoder, decoder: batch.decoder.clone(), visible: None, rows: all };
    let hidden = model.hidden(&request).unwrap();
    let logits = model.backend.download(model.logits(&hidden).unwrap().mat()).unwrap();
    let tasks = 1 + rows.rows.iter().map(|r| r.2).max().unwrap();
    let order: Vec<usize> = (0..tasks)
        .flat_map(|t| rows.rows.iter().enumerate().filter(move |(_, r)| r.2 == t).map(|(i, _)| i))
        .collect();
    for (sequence, original) in order.into_iter().enumerate() {
        let offsets = &batch.decoder.offsets;
        let (start, end) = (offsets[sequence] as usize, offsets[sequence + 1] as usize);
        let got = &logits[start * vocabulary..end * vocabulary];
        let from = original * width * vocabulary;
        let reference = &want.values[from..from + got.len()];
        assert_close(&format!("{what} row {original}"), got, reference, rtol, atol);
    }
}

#[test]
fn golden_lora_branches_logits_and_gradients() {
    on_every_device(|| {
        let golden = Golden::open();
        for case in golden.folders("lora") {
            let path = |file: &str| format!("lora/{case}/{file}");
            let info = golden.json(&path("case.json"));
            let mut model = load(&golden, info["model"].as_str().unwrap(), "config.json");
            let scaling = info["scaling"].as_f64().unwrap() as f32;
            let adapter = golden.tensors(&path("adapter/adapter_model.safetensors"));
            attach(&mut model, &adapter, scaling);
            let outputs = golden.tensors(&path("outputs.safetensors"));
            let rows = Rows::read(&outputs, "batch.");
            let tolerance =
                |key: &str, default: f64| golden.tolerance(&path("outputs.safetensors"), key, default);
            if let Some(want) = outputs.get("logits") {
                let (rtol, atol) = (tolerance("logits.rtol", 1e-4), tolerance("logits.atol", 3e-4));
                check_logits(&model, &rows, want, &format!("{case} logits"), rtol, atol);
            }
            let (batch, _) = rows.batch(&model.architecture, |_| true, true);
            let (nll, _) = gradients(&model, &batch, false, false);
            let loss = nll.iter().map(|v| *v as f64).sum::<f64>() / nll.len() as f64;
            assert!((loss - info["loss_whole"].as_f64().unwrap()).abs() < 2e-4, "{case}: loss {loss}");
            let (rtol, atol) = (tolerance("grads.rtol", 1e-3), tolerance("grads.atol", 3e-4));
            for (prefix, task) in [("grad_whole.", None), ("grad_rec.", Some(0usize)), ("grad_src.", Some(1))]
            {
                if !outputs.keys().any(|k| k.starts_with(prefix)) {
                    continue;
                }
                let keep = |i: usize| task.is_none_or(|t| rows.rows[i].2 == t);
                let (batch, _) = rows.batch(&model.architecture, keep, true);
                let (_, tap) = gradients(&model, &batch, false, false);
                for (site, spec) in model.layout.sites.iter().enumerate() {
                    let Some((da, db)) = tap.branches.get(&site) else { continue };
                    let stem = format!("{prefix}base_model.model.{}", spec.name);
                    let a = &outputs[&format!("{stem}.lora_A.weight")];
                    let b = &outputs[&format!("{stem}.lora_B.weight")];
                    let db: Vec<f32> = db.iter().map(|v| v * scaling).collect();
                    assert_close(&format!("{case} {stem} dA"), da, &a.values, rtol, atol);
                    assert_close(&format!("{case} {stem} dB"), &db, &b.values, rtol, atol);
                }
            }
        }
    });
}

/// Puts PEFT's factors into the branches (B times the scaling).
fn attach(model: &mut Model, adapter: &BTreeMap<String, Reference>, scaling: f32) {
    let be = Arc::clone(&model.backend);
    let mut used = 0;
    for (site, spec) in model.layout.sites.iter().enumerate() {
        let name = format!("base_model.model.{}", spec.name);
        let (Some(a), Some(b)) =
            (adapter.get(&format!("{name}.lora_A.weight")), adapter.get(&format!("{name}.lora_B.weight")))
        else {
            continue;
        };
        let scaled: Vec<f32> = b.values.iter().map(|v| v * scaling).collect();
        model.linears[site].branch = Some(Branch {
            a: be.tensor(&a.values, a.rows(), a.cols(), DType::F32).unwrap(),
            b: be.tensor(&scaled, b.rows(), b.cols(), DType::F32).unwrap(),
        });
        used += 2;
    }
    assert_eq!(used, adapter.len(), "adapter tensors without a site");
}
