//! A model whose weights the CPU keeps as bf16 computes what one with the same values in f32 computes.

use super::{Collect, Rows};
use crate::support::{Golden, assert_close};
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::*;
use gems_engine::model::*;
use std::sync::Arc;

const NARROW: Narrow = Narrow { layers: true, tables: true };

/// A golden model with bf16 weights, and one with the same values in f32.
fn pair(golden: &Golden, name: &str) -> [Model; 2] {
    let dir = golden.dir.join("models").join(name);
    let be: Arc<dyn Backend> = Cpu::open(None).unwrap();
    let load = |narrow| {
        let options = LoadOptions { vocabulary: 0, random: None, narrow };
        Model::load(&dir, Arc::clone(&be), &options).unwrap()
    };
    let (half, mut whole) = (load(NARROW), load(Narrow::default()));
    for (index, layer) in whole.linears.iter_mut().enumerate() {
        be.upload(&half.merged(index).unwrap(), layer.weight.mat_mut()).unwrap();
        let bytes = (layer.weight.bytes(), half.linears[index].weight.bytes());
        assert_eq!(bytes.0, 2 * bytes.1, "{name}: half the memory");
    }
    for index in 0..whole.layout.dense.len() {
        let values = be.download(half.parameter(index)).unwrap();
        be.upload(&values, whole.parameter_mut(index)).unwrap();
    }
    [half, whole]
}

#[test]
fn weights_kept_as_bf16_compute_as_f32_weights_of_the_same_values() {
    let golden = Golden::open();
    for name in ["llama_tied", "qwen2_bias", "qwen3_qknorm", "t5_v10", "t5_v11"] {
        let [half, whole] = pair(&golden, name);
        let path = format!("model_cases/{name}/batch.safetensors");
        let rows = Rows::read(&golden.tensors(&path), "");
        let (batch, _) = rows.batch(&half.architecture, |_| true, true);
        let tasks = batch.labels.segments.len();
        let run = |model: &Model| {
            let mut tap = Collect::new(&model.backend, tasks);
            let forward = model.forward(&batch, false, Some(&tap)).unwrap();
            let nll = forward.nll(&*model.backend).unwrap();
            model.backward(forward, &mut tap).unwrap();
            (nll, tap)
        };
        let ((nll, got), (of_whole, want)) = (run(&half), run(&whole));
        assert!(nll == of_whole, "{name}: every sum of a forward pass is the same");
        let download = |t: &Tensor| half.backend.download(t.mat()).unwrap();
        for (site, tasks) in &want.linears {
            for (got, want) in got.linears[site].iter().zip(tasks) {
                assert_close(&format!("{name} site {site}"), &download(got), &download(want), 1e-5, 1e-6);
            }
        }
        for (index, want) in &want.dense {
            assert_close(&format!("{name} parameter {index}"), &got.dense[index], want, 1e-5, 1e-6);
        }
        for (tensor, _) in half.tensors() {
            assert_eq!(half.tensor(&tensor).unwrap(), whole.tensor(&tensor).unwrap(), "{name}: {tensor}");
        }
    }
}
