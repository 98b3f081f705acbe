//! Weights in codes: the values, and the logits with them, that the libraries have; and what is refused, by name.

use super::Rows;
use super::golden::check_logits;
use crate::support::{Golden, backend, kernel_devices, on_every_device};
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::*;
use gems_engine::model::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

fn load(golden: &Golden, name: &str, be: Arc<dyn Backend>) -> Model {
    Model::load(&golden.dir.join("models").join(name), be, &LoadOptions::default()).unwrap()
}

/// Bit for bit what the library makes of every weight; in bf16 that, rounded once.
#[test]
fn golden_values_of_weights_in_codes() {
    let golden = Golden::open();
    for name in golden.folders("quantised") {
        let case = golden.tensors(&format!("quantised/{name}/case.safetensors"));
        let devices = [DType::F32, DType::BF16].into_iter().flat_map(kernel_devices);
        for be in devices.chain([Cpu::open(None).unwrap() as Arc<dyn Backend>]) {
            let model = load(&golden, &name, Arc::clone(&be));
            for (layer, site) in model.linears.iter().zip(&model.layout.sites) {
                let from =
                    layer.weight.quantised().unwrap_or_else(|| panic!("{name}: {} is whole", site.name));
                let mut w = be.alloc(site.outputs, site.inputs, be.compute_dtype()).unwrap();
                be.run(Dequantize { from, first_row: 0, to: w.mat_mut() }).unwrap();
                let got = be.download(w.mat()).unwrap();
                let want = &case[&format!("weight.{}", site.name)].values;
                for (e, (got, want)) in got.iter().zip(want).enumerate() {
                    let want =
                        if w.dtype() == DType::BF16 { half::bf16::from_f32(*want).to_f32() } else { *want };
                    // Of 8-bit rows the library multiplies the three factors in another order.
                    let near = name.ends_with("int8")
                        && (got - want).abs()
                            <= want.abs() * if w.dtype() == DType::BF16 { 4e-3 } else { 2e-7 };
                    assert!(*got == want || near, "{name} {} {e}: {got}, not {want}", site.name);
                }
            }
        }
    }
}

#[test]
fn golden_logits_with_weights_in_codes() {
    on_every_device(|| {
        let golden = Golden::open();
        for name in golden.folders("quantised") {
            let case = golden.tensors(&format!("quantised/{name}/case.safetensors"));
            let rows = Rows::read(&case, "batch.");
            check_logits(&load(&golden, &name, backend()), &rows, &case["logits"], &name, 1e-4, 2e-4);
        }
    });
}

type Change = Box<dyn Fn(&mut Tensors)>;
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// What is said of a copy of a model, changed.
fn refused(name: &str, config: &dyn Fn(&mut Value), weights: &dyn Fn(&mut Tensors)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let source = Golden::open().dir.join("models").join(name);
    let text = std::fs::read(source.join("config.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&text).unwrap();
    config(&mut json);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, t): (String, TensorView)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
    let mut tensors: Tensors = parsed.tensors().into_iter().map(own).collect();
    weights(&mut tensors);
    let views: Vec<(&String, TensorView)> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    said(dir.path())
}

fn said(dir: &Path) -> String {
    let read = Checked::open(dir).and_then(|checked| checked.read_all());
    read.and_then(|_| Model::load(dir, backend(), &LoadOptions::default()))
        .err()
        .map_or(String::new(), |e| e.to_string())
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn settings_of_codes_that_are_not_served_are_named() {
    for (name, field, value, parts) in [
        ("quantised_nf4", "bnb_4bit_quant_type", json!("int4"), ["bnb_4bit_quant_type", "nf4, fp4"]),
        ("quantised_nf4", "load_in_4bit", json!(false), ["load_in_4bit", "load_in_8bit"]),
        ("quantised_nf4", "quant_method", json!("fp8"), ["fp8", "GPTQ (4 and 8 bits)"]),
        ("quantised_gptq", "bits", json!(3), ["`bits` is 3", "4, 8"]),
        ("quantised_gptq", "group_size", json!(0), ["`group_size` is 0", "whole number"]),
        (
            "quantised_gptq",
            "group_size",
            json!(16),
            ["qzeros is [2, 2] instead of [1, 2]", "scales is [2, 16]"],
        ),
        ("quantised_gptq", "checkpoint_format", json!("marlin"), ["checkpoint_format", "gptq_v2"]),
        ("quantised_gptq", "is_marlin_format", json!(true), ["is_marlin_format", "gptq_v2"]),
        ("quantised_gptq", "pack_dtype", json!("int64"), ["pack_dtype", "int32"]),
        ("quantised_gptq", "dynamic", json!({"a": {"bits": 8}}), ["dynamic", "one number of bits"]),
        ("quantised_awq", "bits", json!(8), ["`bits` is 8", "supported: 4"]),
        ("quantised_awq", "version", json!("gemv"), ["version", "gemm"]),
        ("quantised_awq", "zero_point", json!(false), ["zero_point", "true"]),
    ] {
        let text = refused(name, &|c| c["quantization_config"][field] = value.clone(), &|_| {});
        parts.iter().for_each(|part| assert!(text.contains(part), "{name} {field}: {text}"));
    }
}

#[test]
fn tensors_of_codes_that_do_not_fit_are_named() {
    let resize = |t: &mut Tensors, name: &str, shape: Vec<usize>, bytes: usize| {
        let found = t.get_mut(&format!("{Q}.{name}")).unwrap();
        found.1 = shape;
        found.2.resize(bytes, 0);
    };
    let state = |field: &'static str, value: Value| {
        move |t: &mut Tensors| {
            let found = t.get_mut(&format!("{Q}.weight.quant_state.bitsandbytes__nf4")).unwrap();
            let mut json: Value = serde_json::from_slice(&found.2).unwrap();
            json[field] = value.clone();
            found.2 = json.to_string().into_bytes();
            found.1 = vec![found.2.len()];
        }
    };
    let poke = |t: &mut Tensors, name: &str, bytes: &[u8]| {
        t.get_mut(&format!("{Q}.{name}")).unwrap().2[..bytes.len()].copy_from_slice(bytes);
    };
    let lose = |t: &mut Tensors, name: &str| drop(t.remove(&format!("{Q}.{name}")).unwrap());
    let nan = f32::NAN.to_le_bytes();
    let cases: Vec<(&str, Change, &str)> = vec![
        (
            "quantised_nf4",
            Box::new(move |t| resize(t, "weight", vec![127, 1], 127)),
            "q_proj.weight has 127 bytes instead of 128",
        ),
        (
            "quantised_nf4",
            Box::new(move |t| resize(t, "weight.absmax", vec![3], 3)),
            "absmax has 3 bytes instead of 4",
        ),
        (
            "quantised_nf4",
            Box::new(move |t| resize(t, "weight.quant_map", vec![15], 60)),
            "quant_map is [15] instead of [16]",
        ),
        ("quantised_nf4", Box::new(move |t| lose(t, "weight.quant_map")), "quant_map is missing"),
        (
            "quantised_nf4",
            Box::new(move |t| lose(t, "weight.quant_state.bitsandbytes__nf4")),
            "bitsandbytes__nf4 is missing",
        ),
        (
            "quantised_nf4",
            Box::new(move |t| lose(t, "weight.nested_quant_map")),
            "nested_quant_map is missing",
        ),
        (
            "quantised_nf4",
            Box::new(move |t| poke(t, "weight.nested_absmax", &nan)),
            "nested_absmax holds NaN",
        ),
        ("quantised_nf4", Box::new(state("blocksize", json!(48))), "says `blocksize` 48"),
        ("quantised_nf4", Box::new(state("shape", json!([16, 8]))), "says `shape` [16,8]"),
        ("quantised_nf4", Box::new(state("dtype", json!("int8"))), "says `dtype` \"int8\""),
        ("quantised_nf4", Box::new(state("quant_type", json!("fp4"))), "says `quant_type` \"fp4\""),
        ("quantised_nf4", Box::new(state("nested_offset", Value::Null)), "says `nested_offset` null"),
        ("quantised_nf4", Box::new(state("nested_blocksize", json!(0))), "says `nested_blocksize` 0"),
        ("quantised_int8", Box::new(move |t| poke(t, "weight_format", &[1])), "weight_format is [1]"),
        ("quantised_int8", Box::new(move |t| resize(t, "SCB", vec![15], 60)), "SCB is [15] instead of [16]"),
        (
            "quantised_gptq",
            Box::new(move |t| resize(t, "qweight", vec![1, 16], 64)),
            "qweight is [1, 16] instead of [2, 16]",
        ),
        ("quantised_gptq", Box::new(move |t| lose(t, "scales")), "scales is missing"),
        ("quantised_gptq", Box::new(move |t| poke(t, "scales", &[0, 0x7e])), "scales holds NaN"),
        ("quantised_gptq", Box::new(move |t| poke(t, "scales", &[0xff, 0x7b])), "give values up to"),
        (
            "quantised_gptq_act",
            Box::new(move |t| poke(t, "g_idx", &[9, 0, 0, 0])),
            "g_idx puts input 0 into group 9 of 2",
        ),
        ("quantised_gptq_act", Box::new(move |t| poke(t, "g_idx", &[255; 4])), "into group -1"),
        (
            "quantised_awq",
            Box::new(move |t| resize(t, "qzeros", vec![1, 2], 8)),
            "qzeros is [1, 2] instead of [2, 2]",
        ),
        (
            "quantised_awq",
            Box::new(|t| drop(t.insert("lm_head.qweight".into(), (Dtype::I32, vec![1], vec![0; 4])))),
            "lm_head.qweight is unknown",
        ),
    ];
    for (name, change, part) in cases {
        let text = refused(name, &|_| {}, &*change);
        assert!(text.contains(part), "{name}: {part}: {text}");
    }
}

/// A layer that a library leaves out of codes is whole, whatever the settings say.
#[test]
fn layers_that_are_stored_whole_stay_so() {
    let golden = Golden::open();
    let values =
        golden.tensors("quantised/quantised_nf4/case.safetensors")[&format!("weight.{Q}")].values.clone();
    let text = refused("quantised_nf4", &|_| {}, &|t| {
        t.retain(|name, _| !name.starts_with(&format!("{Q}.")));
        t.insert(
            format!("{Q}.weight"),
            (Dtype::F32, vec![16, 16], values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        );
    });
    assert_eq!(text, "");
}
