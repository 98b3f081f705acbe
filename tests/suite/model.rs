//! The model against transformers' numbers, finite differences, and itself under other arrangements.

use crate::support::{Golden, Reference, assert_close, backend, numbers, on_every_device};
use gems_engine::backend::{Backend, Branch, DType, Mat, OuterPart, Tensor};
use gems_engine::error::Result;
use gems_engine::model::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Collects full gradients of everything, per task.
struct Collect {
    backend: Arc<dyn Backend>,
    tasks: usize,
    /// site -> task -> `[M x N]`
    linears: BTreeMap<usize, Vec<Tensor>>,
    /// site -> (dA, dB) of the branch, whole batch
    branches: BTreeMap<usize, (Vec<f32>, Vec<f32>)>,
    /// parameter -> `[S * rows x cols]`
    dense: BTreeMap<usize, Vec<f32>>,
}

impl Collect {
    fn new(backend: &Arc<dyn Backend>, tasks: usize) -> Self {
        let (linears, branches, dense) = Default::default();
        Self { backend: Arc::clone(backend), tasks, linears, branches, dense }
    }
}

impl Tap for Collect {
    fn linear(&mut self, site: usize, g: &LinearGradient) -> Result<()> {
        let be = &self.backend;
        assert!(!self.linears.contains_key(&site), "site {site} tapped twice");
        let mut tasks = Vec::new();
        for rows in g.segments {
            let mut full = be.zeros(g.dy.cols, g.x.cols, DType::F32)?;
            let part = OuterPart { rows: rows.clone(), columns: 0..g.x.cols, to: 0, scale: 1.0 };
            be.outer(g.dy, g.x, &[part], full.mat_mut())?;
            tasks.push(full);
        }
        self.linears.insert(site, tasks);
        if let (Some(h), Some(z)) = (g.h, g.z) {
            let mut db = be.zeros(g.dy.cols, h.cols, DType::F32)?;
            be.outer(g.dy, h, &[OuterPart::whole(h.rows, h.cols)], db.mat_mut())?;
            let mut da = be.zeros(z.cols, g.x.cols, DType::F32)?;
            be.outer(z, g.x, &[OuterPart::whole(z.rows, g.x.cols)], da.mat_mut())?;
            self.branches.insert(site, (be.download(da.mat())?, be.download(db.mat())?));
        }
        Ok(())
    }
    fn wants(&self, _: usize) -> Want {
        Want::Rows { first_row: 0, per_task: self.tasks > 1 }
    }
    fn dense(&mut self, index: usize, blocks: Mat) -> Result<()> {
        let old = self.dense.insert(index, self.backend.download(blocks)?);
        assert!(old.is_none(), "parameter {index} tapped twice");
        Ok(())
    }
}

/// A golden batch: per row, its input ids (encoder's for T5), labels with -100, and its task.
pub struct Rows {
    pub rows: Vec<(Vec<u32>, Vec<i64>, usize)>,
}

impl Rows {
    pub fn read(t: &BTreeMap<String, Reference>, prefix: &str) -> Self {
        let get = |name: &str| &t[&format!("{prefix}{name}")];
        let (ids, mask, labels, tasks) =
            (get("input_ids"), get("attention_mask"), get("labels"), get("task_ids"));
        let (n, width, label_width) = (ids.rows(), ids.cols(), labels.cols());
        let rows = (0..n)
            .map(|i| {
                let keep = |j: &usize| mask.values[i * width + j] != 0.0;
                let tokens = (0..width).filter(keep).map(|j| ids.values[i * width + j] as u32).collect();
                let row =
                    labels.values[i * label_width..(i + 1) * label_width].iter().map(|v| *v as i64).collect();
                (tokens, row, tasks.values[i] as usize)
            })
            .collect();
        Self { rows }
    }

    /// The packed batch of the rows in `order`, whose labels weigh 1 / `count`; and where each label is in
    /// the padded original (row, column).
    fn batch(
        &self,
        a: &Architecture,
        keep: impl Fn(usize) -> bool,
        mean: bool,
    ) -> (Batch, Vec<(usize, usize)>) {
        self.batch_of(a, 1 + self.rows.iter().map(|r| r.2).max().unwrap(), keep, mean)
    }

    /// The same for a given number of tasks.
    pub fn batch_of(
        &self,
        a: &Architecture,
        tasks: usize,
        keep: impl Fn(usize) -> bool,
        mean: bool,
    ) -> (Batch, Vec<(usize, usize)>) {
        let (mut encoder, mut decoder) = (vec![Vec::new(); tasks], vec![Vec::new(); tasks]);
        let (mut labels, mut places, mut at) = (Labels::default(), Vec::new(), 0u32);
        for task in 0..tasks {
            let start = labels.rows.len();
            for (i, (tokens, row, _)) in self.rows.iter().enumerate().filter(|(i, r)| r.2 == task && keep(*i))
            {
                let used = row.iter().rposition(|v| *v >= 0).map_or(0, |p| p + 1);
                let input: Vec<u32> = if a.is_encoder_decoder() {
                    encoder[task].push(tokens.clone());
                    let pad = a.pad.unwrap_or(0);
                    std::iter::once(a.decoder_start.unwrap())
                        .chain(row[..used].iter().map(|v| if *v < 0 { pad } else { *v as u32 }))
                        .take(used.max(1))
                        .collect()
                } else {
                    tokens.clone()
                };
                let shift = usize::from(!a.is_encoder_decoder());
                for (j, label) in row.iter().enumerate().filter(|(j, v)| **v >= 0 && *j >= shift) {
                    labels.rows.push(at + (j - shift) as u32);
                    labels.targets.push(*label as u32);
                    places.push((i, j));
                }
                at += input.len() as u32;
                decoder[task].push(input);
            }
            labels.segments.push(start..labels.rows.len());
        }
        let weight = if mean { 1.0 / labels.rows.len() as f32 } else { 1.0 };
        labels.weights = vec![weight; labels.rows.len()];
        let encoder = a.is_encoder_decoder().then(|| Packed::new(&encoder));
        (Batch { encoder, decoder: Packed::new(&decoder), labels }, places)
    }
}

fn architecture(golden: &Golden, model: &str, config: &str) -> Architecture {
    Architecture::from_json(golden.json(&format!("models/{model}/{config}")), config).unwrap()
}

pub fn load(golden: &Golden, model: &str, config: &str) -> Model {
    let weights = Weights::open(&golden.dir.join("models").join(model)).unwrap();
    let architecture = architecture(golden, model, config);
    Model::build(architecture, Some(&weights), backend(), &LoadOptions::default()).unwrap()
}

/// Runs forward and backward; returns the label losses and the gradients by stored name, per task or whole.
fn gradients(model: &Model, batch: &Batch, per_task: bool, checkpointing: bool) -> (Vec<f32>, Collect) {
    let tasks = if per_task { batch.labels.segments.len() } else { 1 };
    let mut tap = Collect::new(&model.backend, tasks);
    let forward = model.forward(batch, checkpointing, Some(&tap)).unwrap();
    let nll = forward.nll(model.backend.as_ref()).unwrap();
    model.backward(forward, &mut tap).unwrap();
    (nll, tap)
}

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
fn check_logits(model: &Model, rows: &Rows, want: &Reference, what: &str, rtol: f64, atol: f64) {
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
            let (rtol, atol) = (
                golden.tolerance(&path("outputs.safetensors"), "rtol", 1e-4),
                golden.tolerance(&path("outputs.safetensors"), "atol", 5e-4),
            );
            if let Some(want) = outputs.get("logits") {
                check_logits(&model, &rows, want, &format!("{case} logits"), rtol, atol);
            }
            let (batch, _) = rows.batch(&model.architecture, |_| true, true);
            let (nll, _) = gradients(&model, &batch, false, false);
            let loss = nll.iter().map(|v| *v as f64).sum::<f64>() / nll.len() as f64;
            assert!((loss - info["loss_whole"].as_f64().unwrap()).abs() < 2e-4, "{case}: loss {loss}");
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

fn tiny(family: &str) -> serde_json::Value {
    match family {
        "t5" => {
            serde_json::json!({"model_type": "t5", "vocab_size": 19, "d_model": 12, "d_kv": 3, "num_heads": 2,
            "d_ff": 7, "num_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
            "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9})
        }
        family => {
            serde_json::json!({"model_type": family, "vocab_size": 19, "hidden_size": 12, "head_dim": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 7, "num_hidden_layers": 2,
            "tie_word_embeddings": true})
        }
    }
}

/// A tiny random model with random branches of rank 3 everywhere.
fn tiny_model(family: &str) -> Model {
    let mut architecture = Architecture::from_json(tiny(family), "tiny").unwrap();
    architecture.initializer_range = 0.3; // flat models have nothing to differentiate
    let options = LoadOptions { random: Some(5), vocabulary: 0 };
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

fn tiny_batch(a: &Architecture) -> Batch {
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
    on_every_device(|| {
        for family in ["llama", "qwen2", "qwen3", "t5"] {
            let mut model = tiny_model(family);
            let batch = tiny_batch(&model.architecture);
            let (_, tap) = gradients(&model, &batch, false, false);
            let be = Arc::clone(&model.backend);
            let step = 2e-2f32;
            let mut check = |what: &str,
                             values: Vec<f32>,
                             gradient: &[f32],
                             write: &mut dyn FnMut(&mut Model, &[f32])| {
                // Directional derivative along a random direction: one number tests the whole matrix.
                let direction = numbers(7, values.len());
                let length = direction.iter().map(|v| v * v).sum::<f32>().sqrt();
                let mut at = |t: f32| {
                    let moved: Vec<f32> =
                        values.iter().zip(&direction).map(|(v, d)| v + t * d / length).collect();
                    write(&mut model, &moved);
                    loss(&model, &batch)
                };
                let numeric = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step)))
                    / (12.0 * step as f64);
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
    });
}

#[test]
fn checkpointing_changes_no_bit() {
    on_every_device(|| {
        for family in ["llama", "qwen3", "t5"] {
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
        for family in ["qwen3", "t5"] {
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
            let decoder =
                Packed { tokens: tokens.clone(), positions, offsets: vec![0, 7], segments: vec![0..7] };
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

#[test]
fn unsupported_configurations_name_field_value_and_remedy() {
    let broken = |key: &str, value: serde_json::Value, base: &str| {
        let mut json = tiny(base);
        json[key] = value;
        Architecture::from_json(json, "config.json").err().map(|e| e.to_string()).unwrap_or_default()
    };
    for (key, value, base, expect) in [
        ("model_type", "gpt2".into(), "llama", "llama, qwen2, qwen3, t5"),
        ("hidden_act", "gelu".into(), "llama", "silu"),
        ("hidden_size", (-3).into(), "llama", "hidden_size"),
        ("num_hidden_layers", 1e12.into(), "llama", "num_hidden_layers"),
        ("num_key_value_heads", 3.into(), "llama", "divisor"),
        ("use_sliding_window", true.into(), "qwen2", "full_attention"),
        ("rope_scaling", serde_json::json!({"rope_type": "yarn", "factor": 2.0}), "llama", "llama3"),
        ("feed_forward_proj", "gated-tanh".into(), "t5", "gated-gelu"),
        ("rms_norm_eps", "x".into(), "llama", "positive number"),
    ] {
        let text = broken(key, value, base);
        assert!(text.contains(expect) && text.contains("config.json"), "{key}: {text}");
    }
}

#[test]
fn damaged_weights_are_named() {
    let golden = Golden::open();
    let name = golden.folders("models").into_iter().next().unwrap();
    let source = golden.dir.join("models").join(name);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(source.join("config.json"), dir.path().join("config.json")).unwrap();
    let attempt = |bytes: Option<&[u8]>| {
        let path = dir.path().join("model.safetensors");
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => drop(std::fs::remove_file(&path)),
        }
        match Model::load(dir.path(), backend(), &LoadOptions::default()) {
            Ok(_) => String::new(),
            Err(e) => e.to_string(),
        }
    };
    let whole = std::fs::read(source.join("model.safetensors")).unwrap();
    assert_eq!(attempt(Some(&whole)), "");
    assert!(attempt(None).contains("no weights"));
    assert!(attempt(Some(&whole[..whole.len() - 7])).contains("not a whole safetensors file"));
    assert!(attempt(Some(&whole[..5])).contains("not a whole safetensors file"));
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(attempt(Some(&lying)).contains("not a whole safetensors file"));
    let mut renamed = whole.clone();
    let at = renamed.windows(6).position(|w| w == b"layers" || w == b".block").unwrap_or(0);
    renamed[at] = b'X';
    let text = attempt(Some(&renamed));
    assert!(text.contains("is missing") && text.contains("is unknown"), "{text}");
}

#[test]
fn appended_rows_start_as_means_and_stored_ones_stay() {
    let golden = Golden::open();
    let name = golden.folders("models").into_iter().next().unwrap();
    let dir = golden.dir.join("models").join(name);
    let plain = Model::load(Path::new(&dir), backend(), &LoadOptions::default()).unwrap();
    let old = plain.architecture.vocabulary;
    let options = LoadOptions { random: None, vocabulary: old + 3 };
    let mut grown = Model::load(Path::new(&dir), backend(), &options).unwrap();
    assert_eq!(plain.fingerprint, grown.fingerprint);
    grown.initialise_rows(&[(old as u32, vec![4, 9]), (old as u32 + 2, vec![])], old).unwrap();
    let d = grown.architecture.hidden;
    let (before, after) = (
        plain.backend.download(plain.parameter(0)).unwrap(),
        grown.backend.download(grown.parameter(0)).unwrap(),
    );
    assert_eq!(before, after[..old * d]);
    for j in 0..d {
        let mean = (before[4 * d + j] + before[9 * d + j]) / 2.0;
        assert!((after[old * d + j] - mean).abs() < 1e-6);
        let all = (0..old).map(|i| before[i * d + j] as f64).sum::<f64>() / old as f64;
        assert!((after[(old + 1) * d + j] as f64 - all).abs() < 1e-5);
    }
}
