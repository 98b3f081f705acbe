//! Decoders whose blocks are described otherwise than the supported families' are, against a plain decoder in f64.

use super::model::invariants::{tiny_batch, tiny_model};
use super::model::tiny_architecture;
use super::support::{assert_close, backend, numbers, on_every_device};
use gems_engine::model::{LoadOptions, Model, StoredType, Weights, write_safetensors};
use std::path::Path;

/// A model's tensors as they would be stored, and its constants.
struct Plain<'a>(&'a Model);

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Plain<'_> {
    fn tensor(&self, name: &str) -> Vec<f64> {
        self.0.tensor(name).unwrap().into_iter().map(f64::from).collect()
    }
    /// `W x`.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.tensor(&format!("{name}.weight")).chunks(x.len()).map(|row| dot(row, x)).collect()
    }
    /// The norm with the stored weight `name`; x itself if the model has none of that name.
    fn norm(&self, name: &str, x: Vec<f64>) -> Vec<f64> {
        let (a, name) = (&self.0.architecture, format!("{name}.weight"));
        if !self.0.layout.dense.iter().any(|d| d.name == name) {
            return x;
        }
        let w = self.tensor(&name);
        let heads = x.chunks(w.len()).flat_map(|x| {
            let inverse = (dot(x, x) / x.len() as f64 + a.eps as f64).sqrt().recip();
            x.iter().zip(&w).map(move |(x, w)| x * inverse * (w + a.norm_offset as f64)).collect::<Vec<_>>()
        });
        heads.collect()
    }
    fn rotate(&self, layer: usize, x: &mut [f64], position: usize) {
        let a = &self.0.architecture;
        let own = a.sliding.as_ref().filter(|s| s.layers[layer]).and_then(|s| s.rotary.as_ref());
        let frequencies = &own.or(a.rotary.as_ref()).unwrap().inv_freq;
        for head in x.chunks_mut(a.head_dim) {
            let (first, second) = head.split_at_mut(a.head_dim / 2);
            for ((x, y), f) in first.iter_mut().zip(second).zip(frequencies) {
                let (sin, cos) = (position as f64 * *f as f64).sin_cos();
                (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
            }
        }
    }
    /// The attention of all rows, given their inputs.
    fn attention(&self, layer: usize, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let a = &self.0.architecture;
        let module = format!("model.layers.{layer}.self_attn");
        let project = |name: &str| -> Vec<Vec<f64>> {
            inputs.iter().map(|x| self.linear(&format!("{module}.{name}_proj"), x)).collect()
        };
        let turned = |name: &str| {
            let normed = project(name).into_iter().map(|x| self.norm(&format!("{module}.{name}_norm"), x));
            let each = normed.enumerate().map(|(i, mut x)| {
                self.rotate(layer, &mut x, i);
                x
            });
            each.collect::<Vec<_>>()
        };
        let (q, k, v) = (turned("q"), turned("k"), project("v"));
        let window = a.sliding.as_ref().filter(|s| s.layers[layer]).map_or(usize::MAX, |s| s.window);
        let d = a.head_dim;
        let row = |i: usize| {
            let mut out = vec![0.0; a.heads * d];
            for head in 0..a.heads {
                let (own, kv) = (head * d..(head + 1) * d, head * a.kv_heads / a.heads * d);
                let seen: Vec<usize> = (0..=i).filter(|j| i - j < window).collect();
                let score = |j: &usize| {
                    let s = dot(&q[i][own.clone()], &k[*j][kv..kv + d]) / (d as f64).sqrt();
                    a.softcap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh()).exp()
                };
                let weights: Vec<f64> = seen.iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                for (j, w) in seen.iter().zip(&weights) {
                    out[own.clone()].iter_mut().zip(&v[*j][kv..kv + d]).for_each(|(o, v)| *o += w / sum * v);
                }
            }
            self.linear(&format!("{module}.o_proj"), &out)
        };
        (0..inputs.len()).map(row).collect()
    }
    fn feed_forward(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let part = |name: &str, x: &[f64]| self.linear(&format!("model.layers.{layer}.mlp.{name}_proj"), x);
        let gated = part("gate", x).into_iter().zip(part("up", x)).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
        part("down", &gated.collect::<Vec<_>>())
    }
    /// Hidden states after the final norm, of one sequence.
    fn hidden(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let (a, table) = (&self.0.architecture, self.tensor("model.embed_tokens.weight"));
        let after_attention = "post_attention_layernorm";
        // Names as in transformers: with one norm a block in front, the second block's bears the other name.
        let names =
            match self.0.layout.dense.iter().any(|d| d.name.ends_with("post_feedforward_layernorm.weight")) {
                true => [
                    "input_layernorm",
                    after_attention,
                    "pre_feedforward_layernorm",
                    "post_feedforward_layernorm",
                ],
                false => ["input_layernorm", "none", after_attention, "none"],
            };
        let embed = |t: &u32| table[*t as usize * a.hidden..][..a.hidden].iter();
        let scaled = |t| embed(t).map(|v| v * a.embedding_scale as f64).collect();
        let mut stream: Vec<Vec<f64>> = tokens.iter().map(scaled).collect();
        let add = |stream: &mut Vec<Vec<f64>>, rows: Vec<Vec<f64>>| {
            stream.iter_mut().zip(rows).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
        };
        for layer in 0..a.layers {
            let norm = |n: usize, x: Vec<f64>| self.norm(&format!("model.layers.{layer}.{}", names[n]), x);
            let inputs: Vec<_> = stream.iter().map(|x| norm(0, x.clone())).collect();
            add(&mut stream, self.attention(layer, &inputs).into_iter().map(|y| norm(1, y)).collect());
            let fed = |x: &Vec<f64>| norm(3, self.feed_forward(layer, &norm(2, x.clone())));
            let fed = stream.iter().map(fed).collect();
            add(&mut stream, fed);
        }
        stream.into_iter().map(|x| self.norm("model.norm", x)).collect()
    }
    fn nll(&self, tokens: &[u32], row: usize, target: u32) -> f64 {
        let (hidden, table) = (self.hidden(tokens), self.tensor("model.embed_tokens.weight"));
        let logits: Vec<f64> =
            table.chunks(self.0.architecture.hidden).map(|e| dot(e, &hidden[row])).collect();
        logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target as usize]
    }
}

/// A model whose norms' weights are not all alike.
fn model(family: &str) -> Model {
    let mut model = tiny_model(family);
    let be = backend();
    for index in 0..model.layout.dense.len() {
        if model.layout.dense[index].name.contains("norm") {
            let near: Vec<f32> =
                numbers(index as u64, model.layout.dense[index].cols).iter().map(|v| 1.0 + 0.2 * v).collect();
            be.upload(&near, model.parameter_mut(index)).unwrap();
        }
    }
    model
}

#[test]
fn every_description_of_a_block_against_a_plain_decoder() {
    on_every_device(|| {
        for family in ["llama", "qwen3", "norms after", "norms on both sides"] {
            let model = model(family);
            let batch = tiny_batch(&model.architecture);
            let got = model.forward(&batch, false, None).unwrap().nll(model.backend.as_ref()).unwrap();
            let offsets = &batch.decoder.offsets;
            let want = batch.labels.rows.iter().zip(&batch.labels.targets).map(|(row, target)| {
                let s = offsets.iter().rposition(|o| o <= row).unwrap();
                let tokens = &batch.decoder.tokens[offsets[s] as usize..offsets[s + 1] as usize];
                Plain(&model).nll(tokens, (row - offsets[s]) as usize, *target) as f32
            });
            assert_close(family, &got, &want.collect::<Vec<_>>(), 1e-4, 1e-5);
        }
    });
}

#[test]
fn a_norms_offset_is_added_on_loading_and_taken_off_on_saving() {
    let saved = model("norms on both sides");
    let dir = tempfile::tempdir().unwrap();
    let fetch = |name: &str| saved.tensor(name);
    write_safetensors(dir.path(), &saved.tensors(), StoredType::F32, usize::MAX, &fetch).unwrap();
    let load = |dir: &Path, offset: f32| {
        let mut architecture = tiny_architecture("norms on both sides");
        architecture.norm_offset = offset;
        Model::build(architecture, Some(Weights::open(dir).unwrap()), backend(), &LoadOptions::default())
            .unwrap()
    };
    let (same, other) = (load(dir.path(), 1.0), load(dir.path(), 0.0));
    let read = |model: &Model, index| backend().download(model.parameter(index)).unwrap();
    for (index, spec) in saved.layout.dense.iter().enumerate() {
        assert_close(&spec.name, &read(&same, index), &read(&saved, index), 1e-6, 1e-6);
        let apart = if spec.name.contains("norm") { 1.0 } else { 0.0 };
        let stored: Vec<f32> = read(&saved, index).iter().map(|v| v - apart).collect();
        assert_close(&spec.name, &read(&other, index), &stored, 1e-6, 1e-6);
    }
    assert_ne!(same.fingerprint, other.fingerprint);
}
