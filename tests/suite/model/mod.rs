//! The model against transformers' numbers, finite differences, and itself under other arrangements.

mod golden;
pub mod invariants;
mod kinds;
mod loading;
mod narrow;
mod quantised;

use crate::support::{Golden, Reference, backend};
use gems_engine::backend::*;
use gems_engine::error::Result;
use gems_engine::layers::*;
use gems_engine::model::*;
use std::collections::BTreeMap;
use std::ops::Range;
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
        let product = |dy: Mat, x: Mat, rows: Range<usize>| -> Result<Tensor> {
            let (blocks, mut full) =
                ([GradBlock::whole(rows, x.cols)], be.alloc(dy.cols, x.cols, DType::F32)?);
            let (out, write, gram) = (full.mat_mut(), Write::Replace, None);
            be.run(WeightGrad { dy, x, blocks: &blocks, out, write, gram })?;
            Ok(full)
        };
        let tasks = g.segments.iter().map(|rows| product(g.dy, g.x, rows.clone()));
        let tasks = tasks.collect::<Result<Vec<Tensor>>>()?;
        self.linears.insert(site, tasks);
        if let (Some(h), Some(z)) = (g.h, g.z) {
            let (db, da) = (product(g.dy, h, 0..h.rows)?, product(z, g.x, 0..z.rows)?);
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
    Model::build(architecture, Some(weights), backend(), &LoadOptions::default()).unwrap()
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

fn tiny(family: &str) -> serde_json::Value {
    match family {
        "t5" => {
            serde_json::json!({"model_type": "t5", "vocab_size": 19, "d_model": 12, "d_kv": 3, "num_heads": 2,
            "d_ff": 7, "num_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
            "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9})
        }
        "granite" => {
            let mut json = tiny("llama");
            let multipliers = [("embedding", 3.0), ("attention", 0.4), ("residual", 0.6)];
            multipliers.iter().for_each(|(of, by)| json[format!("{of}_multiplier")] = (*by).into());
            (json["model_type"], json["logits_scaling"]) = ("granite".into(), 0.5.into());
            json
        }
        "gemma2" => {
            let mut json = tiny("llama");
            json["model_type"] = "gemma2".into();
            for (key, value) in [
                ("attn_logit_softcapping", 0.8),
                ("final_logit_softcapping", 1.5),
                ("query_pre_attn_scalar", 5.0),
            ] {
                json[key] = value.into();
            }
            json["sliding_window"] = 3.into();
            json
        }
        family => {
            serde_json::json!({"model_type": family, "vocab_size": 19, "hidden_size": 12, "head_dim": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 7, "num_hidden_layers": 2,
            "tie_word_embeddings": true})
        }
    }
}

/// A family, or one of two that are made of what further families have: norms behind (OLMo 2) or on both sides with an
/// offset and capped scores (Gemma 2); windows in every other layer, with a rotation of their own; scaled embeddings.
pub fn tiny_architecture(family: &str) -> Architecture {
    let (base, norms) = match family {
        "norms after" => ("qwen3", Norms::After),
        "norms on both sides" => ("llama", Norms::Both),
        family => (family, Norms::Before),
    };
    let mut architecture = Architecture::from_json(tiny(base), "tiny").unwrap();
    architecture.initializer_range = 0.3; // flat models have nothing to differentiate
    if norms != Norms::Before {
        let inv_freq = vec![1.0, 0.4, 0.15];
        let (layers, rotary) =
            (vec![true, false, true], Some(Rotary { inv_freq, factor: 1.0, longer: Longer::Same }));
        architecture.sliding = Some(Sliding { window: 3, layers, rotary });
        (architecture.layers, architecture.norms, architecture.embedding_scale) = (3, norms, 12f32.sqrt());
    }
    if norms == Norms::Both {
        (architecture.norm_offset, architecture.softcap) = (1.0, Some(0.8));
    }
    architecture
}
