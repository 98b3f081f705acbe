//! Finite differences, and the same under other arrangements: checkpointing, packing, tries.

use super::{gradients, tiny_architecture};
use crate::support::{assert_close, backend, numbers, on_every_device};
use gems_engine::backend::{Branch, DType};
use gems_engine::model::*;
use std::sync::Arc;

/// A tiny random model with random branches of rank 3 everywhere.
pub fn tiny_model(family: &str) -> Model {
    let architecture = tiny_architecture(family);
    let options = LoadOptions { random: Some(5), vocabulary: 0, ..LoadOptions::default() };
    let mut model = Model::build(architecture, None, backend(), &options).unwrap();
    let be = Arc::clone(&model.backend);
    for (i, layer) in model.linears.iter_mut().enumerate() {
        let (m, n) = layer.weight.shape();
        let small = |seed: u64, n: usize| numbers(seed, n).iter().map(|v| v * 0.2).collect::<Vec<_>>();
        layer.branch = Some(Branch {
            a: be.tensor(&small(100 + i as u64, 3 * n), 3, n, DType::F32).unwrap(),
            b: be.tensor(&small(200 + i as u64, m * 3), m, 3, DType::F32).unwrap(),
        });
    }
    model
}

pub fn tiny_batch(a: &Architecture) -> Batch {
    let sequences = vec![vec![vec![3u32, 5, 7, 1], vec![2]], vec![], vec![vec![4u32, 4, 9, 11, 18, 6, 2]]];
    let (labels_rows, targets) = (vec![3u32, 3, 4, 6, 11], vec![1u32, 8, 2, 3, 17]);
    let labels = Labels {
        rows: labels_rows,
        targets,
        weights: vec![0.2, 0.3, 0.1, 0.25, 0.15],
        segments: vec![0..3, 3..3, 3..5],
    };
    let encoder = a.is_encoder_decoder().then(|| {
        Packed::new(&[
            vec![vec![1u32, 2, 3, 4, 5], vec![6, 7]],
            vec![],
            vec![vec![8u32, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]],
        ])
    });
    Batch { encoder, decoder: Packed::new(&sequences), labels }
}

fn loss(model: &Model, batch: &Batch) -> f64 {
    let nll = model.forward(batch, false, None).unwrap().nll(model.backend.as_ref()).unwrap();
    nll.iter().zip(&batch.labels.weights).map(|(n, w)| *n as f64 * *w as f64).sum()
}

#[test]
fn finite_differences_of_every_parameter_and_branch() {
    for family in FAMILIES {
        finite_differences(family);
    }
}

#[test]
#[ignore = "slow: two minutes; `just test-all`"]
fn finite_differences_of_every_parameter_and_branch_by_the_kernels() {
    on_every_device(|| FAMILIES.into_iter().for_each(finite_differences));
}

const FAMILIES: [&str; 9] =
    ["llama", "qwen2", "qwen3", "t5", "phi3", "granite", "gemma2", "norms after", "norms on both sides"];

fn finite_differences(family: &str) {
    let mut model = tiny_model(family);
    let batch = tiny_batch(&model.architecture);
    let (_, tap) = gradients(&model, &batch, false, false);
    let be = Arc::clone(&model.backend);
    let step = 2e-2f32;
    let mut check =
        |what: &str, values: Vec<f32>, gradient: &[f32], write: &mut dyn FnMut(&mut Model, &[f32])| {
            // Directional derivative along a random direction: one number tests the whole matrix.
            let direction = numbers(7, values.len());
            let length = direction.iter().map(|v| v * v).sum::<f32>().sqrt();
            let mut at = |t: f32| {
                let moved: Vec<f32> =
                    values.iter().zip(&direction).map(|(v, d)| v + t * d / length).collect();
                write(&mut model, &moved);
                loss(&model, &batch)
            };
            let numeric =
                (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step as f64);
            at(0.0);
            let analytic: f64 =
                gradient.iter().zip(&direction).map(|(g, d)| *g as f64 * (d / length) as f64).sum();
            assert!(
                (numeric - analytic).abs() < 5e-4 + 5e-3 * analytic.abs(),
                "{family} {what}: {numeric} {analytic}"
            );
        };
    let model_view = tiny_model(family);
    for (index, spec) in model_view.layout.dense.iter().enumerate() {
        let values = be.download(model_view.parameter(index)).unwrap();
        let be = Arc::clone(&be);
        check(&spec.name, values, &tap.dense[&index], &mut |m, v| {
            be.upload(v, m.parameter_mut(index)).unwrap()
        });
    }
    for (site, spec) in model_view.layout.sites.iter().enumerate() {
        let (da, db) = &tap.branches[&site];
        let branch = model_view.linears[site].branch.as_ref().unwrap();
        let (a, b) = (be.download(branch.a.mat()).unwrap(), be.download(branch.b.mat()).unwrap());
        let upload = |m: &mut Model, v: &[f32], first: bool| {
            let branch = m.linears[site].branch.as_mut().unwrap();
            let to = if first { branch.a.mat_mut() } else { branch.b.mat_mut() };
            backend().upload(v, to).unwrap();
        };
        check(&format!("{} A", spec.name), a, da, &mut |m, v| upload(m, v, true));
        check(&format!("{} B", spec.name), b, db, &mut |m, v| upload(m, v, false));
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    on_every_device(|| {
        for family in
            ["llama", "qwen3", "t5", "phi3", "granite", "gemma2", "norms after", "norms on both sides"]
        {
            let model = tiny_model(family);
            let batch = tiny_batch(&model.architecture);
            let (nll, whole) = gradients(&model, &batch, true, false);
            let (nll_again, again) = gradients(&model, &batch, true, true);
            assert_eq!(nll, nll_again);
            assert_eq!(whole.dense, again.dense);
            assert_eq!(whole.branches, again.branches);
        }
    });
}

#[test]
fn a_packed_batch_equals_its_sequences_one_by_one() {
    on_every_device(|| {
        for family in ["llama", "qwen2", "t5"] {
            let model = tiny_model(family);
            let batch = tiny_batch(&model.architecture);
            let together = model.forward(&batch, false, None).unwrap().nll(model.backend.as_ref()).unwrap();
            let mut alone = Vec::new();
            for s in 0..batch.decoder.sequences() {
                let cut = |p: &Packed| {
                    let rows = p.offsets[s] as usize..p.offsets[s + 1] as usize;
                    Packed::new(&[vec![p.tokens[rows].to_vec()]])
                };
                let (start, end) = (batch.decoder.offsets[s], batch.decoder.offsets[s + 1]);
                let inside: Vec<usize> = (0..batch.labels.rows.len())
                    .filter(|i| (start..end).contains(&batch.labels.rows[*i]))
                    .collect();
                let labels = Labels {
                    rows: inside.iter().map(|i| batch.labels.rows[*i] - start).collect(),
                    targets: inside.iter().map(|i| batch.labels.targets[*i]).collect(),
                    weights: vec![1.0; inside.len()],
                    segments: vec![0..inside.len()],
                };
                let one =
                    Batch { encoder: batch.encoder.as_ref().map(cut), decoder: cut(&batch.decoder), labels };
                alone.extend(model.forward(&one, false, None).unwrap().nll(model.backend.as_ref()).unwrap());
            }
            assert_close(family, &together, &alone, 1e-5, 1e-5);
        }
    });
}

#[test]
fn a_trie_gives_every_path_what_it_gets_alone() {
    on_every_device(|| {
        for family in ["qwen3", "t5", "phi3", "gemma2", "norms after"] {
            let model = tiny_model(family);
            let t5 = model.architecture.is_encoder_decoder();
            // Prompt 3 5, then the trie {7 -> {1, 2}, 9 -> {1}}.
            let (tokens, parents) =
                (vec![3u32, 5, 7, 9, 1, 2, 1], [None, Some(0), Some(1), Some(1), Some(2), Some(2), Some(3)]);
            let path = |mut row: usize| {
                let mut rows = vec![row];
                while let Some(parent) = parents[row] {
                    rows.push(parent);
                    row = parent;
                }
                rows.reverse();
                rows
            };
            let encoder = t5.then(|| Packed::new(&[vec![vec![8u32, 9, 10]]]));
            let (mut offsets, mut keys, mut positions) = (vec![0u32], Vec::new(), Vec::new());
            for row in 0..tokens.len() {
                keys.extend(path(row).iter().map(|r| *r as u32));
                offsets.push(keys.len() as u32);
                positions.push(path(row).len() as u32 - 1);
            }
            let decoder = Packed {
                tokens: tokens.clone(),
                positions,
                offsets: vec![0, 7],
                ..Packed::new(&[vec![vec![0; 7]]])
            };
            let rows: Vec<u32> = (0..7).collect();
            let request = Inference {
                encoder: encoder.clone(),
                decoder,
                visible: Some(Visible { offsets, keys }),
                rows,
            };
            let together = model.backend.download(model.hidden(&request).unwrap().mat()).unwrap();
            let d = model.architecture.hidden;
            for row in 0..7 {
                let alone: Vec<u32> = path(row).iter().map(|r| tokens[*r]).collect();
                let last = vec![alone.len() as u32 - 1];
                let decoder = Packed::new(&[vec![alone]]);
                let request = Inference { encoder: encoder.clone(), decoder, visible: None, rows: last };
                let want = model.backend.download(model.hidden(&request).unwrap().mat()).unwrap();
                assert_close(
                    &format!("{family} node {row}"),
                    &together[row * d..(row + 1) * d],
                    &want,
                    1e-5,
                    1e-5,
                );
            }
        }
    });
}
