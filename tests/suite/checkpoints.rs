//! Checkpoints that are not as they would be written here: what loads all the same, and what is named for what it is.

use crate::bad_input::{Stored, change_json, change_weights, copied};
use crate::cli::{engine, golden_model, world};
use crate::support::backend;
use gems_engine::model::{Architecture, Checked, LoadOptions, Model, Weights};
use predicates::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Every weight of a model, by its own names.
fn values(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let model = Model::load(dir, backend(), &LoadOptions::default()).unwrap();
    model.tensors().into_iter().map(|(name, _)| (name.clone(), model.tensor(&name).unwrap())).collect()
}

fn renamed(weights: &mut Stored, rename: impl Fn(&str) -> String) {
    *weights = std::mem::take(weights).into_iter().map(|(name, value)| (rename(&name), value)).collect();
}

#[test]
fn what_transformers_maps_or_ignores_by_name_loads() {
    type Change = fn(&mut Stored);
    let changes: [(&str, &str, Change); 11] = [
        ("llama_tied", "no prefix", |w| renamed(w, |n| n.trim_start_matches("model.").into())),
        ("qwen2_bias", "no prefix", |w| renamed(w, |n| n.trim_start_matches("model.").into())),
        // As an embedding model with a head of its own would be stored.
        ("qwen3_qknorm", "no prefix but the head", |w| renamed(w, |n| n.trim_start_matches("model.").into())),
        ("llama_untied_rope3", "one prefix more", |w| renamed(w, |n| format!("model.{n}"))),
        ("t5_v10", "a prefix", |w| renamed(w, |n| format!("transformer.{n}"))),
        ("t5_v10", "a bias of old", |w| {
            let leftover = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
            w.insert(leftover.into(), (vec![32, 4], vec![0.5; 128]));
        }),
        ("llama_tied", "buffers", |w| {
            for layer in 0..2 {
                w.insert(
                    format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq"),
                    (vec![8], vec![0.5; 8]),
                );
            }
            w.insert("model.embeddings.position_ids".into(), (vec![1, 4], vec![0.0; 4]));
        }),
        ("llama_tied", "the head too", |w| {
            let table = w["model.embed_tokens.weight"].clone();
            w.insert("lm_head.weight".into(), table);
        }),
        ("llama_tied", "the head alone", |w| {
            let table = w.remove("model.embed_tokens.weight").unwrap();
            w.insert("lm_head.weight".into(), table);
        }),
        ("t5_v10", "copies of the table", |w| {
            let table = w["shared.weight"].clone();
            for name in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"] {
                w.insert(name.into(), table.clone());
            }
        }),
        ("t5_v11", "a copy alone", |w| {
            let table = w.remove("shared.weight").unwrap();
            w.insert("decoder.embed_tokens.weight".into(), table);
        }),
    ];
    for (model, what, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let changed = copied(model, dir.path());
        change_weights(&changed, change);
        assert_eq!(values(&changed), values(&golden_model(model)), "{model}: {what}");
    }
}

#[test]
fn stored_heads_and_flags_that_disagree() {
    let dir = tempfile::tempdir().unwrap();
    let other = |w: &mut Stored| {
        let (table, head) = (["shared.weight", "model.embed_tokens.weight"], "lm_head.weight");
        let (shape, mut values) = w[*table.iter().find(|n| w.contains_key(**n)).unwrap()].clone();
        values[7] += 1.0;
        w.insert(head.into(), (shape, values));
    };
    // transformers 4 drops such a head, transformers 5 uses it.
    for model in ["llama_tied", "t5_v10"] {
        let changed = copied(model, dir.path());
        change_weights(&changed, other);
        let error = Checked::open(&changed).err().unwrap().to_string();
        assert!(
            error.contains("lm_head.weight differs from") && error.contains("tie_word_embeddings"),
            "{error}"
        );
    }
    // transformers 5 writes that flag for every T5, and beside it that outputs are not scaled.
    let v11 = copied("t5_v11", dir.path());
    change_json(&v11.join("config.json"), |c| {
        (c["tie_word_embeddings"], c["scale_decoder_outputs"]) = (json!(true), json!(false));
    });
    assert!(!Checked::open(&v11).unwrap().architecture.tied);
    assert_eq!(values(&v11), values(&golden_model("t5_v11")));
    // Tables of the stacks' own.
    let stacks = copied("t5_v10", &dir.path().join("stacks"));
    change_weights(&stacks, |w| {
        let (shape, values) = w["shared.weight"].clone();
        w.insert("encoder.embed_tokens.weight".into(), (shape, values.iter().map(|v| v + 1.0).collect()));
    });
    let error = Checked::open(&stacks).err().unwrap().to_string();
    assert!(error.contains("encoder.embed_tokens.weight differs from shared.weight"), "{error}");
}

/// Stores all weights as bytes of another type.
fn store_as(model: &Path, dtype: Dtype, convert: impl Fn(f32) -> Vec<u8>) {
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let all: BTreeMap<String, (Vec<usize>, Vec<u8>)> = all
        .tensors()
        .into_iter()
        .map(|(name, v)| {
            let floats = v.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (name, (v.shape().to_vec(), floats.flat_map(&convert).collect()))
        })
        .collect();
    let views = all.iter().map(|(n, (shape, b))| (n, TensorView::new(dtype, shape.clone(), b).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn doubles_load_and_other_types_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = copied("qwen2_bias", dir.path());
    store_as(&model, Dtype::F64, |v| f64::from(v).to_le_bytes().to_vec());
    assert_eq!(values(&model), values(&golden_model("qwen2_bias")));
    for (dtype, size) in
        [(Dtype::U8, 1), (Dtype::I8, 1), (Dtype::F8_E4M3, 1), (Dtype::I32, 4), (Dtype::BOOL, 1)]
    {
        let model = copied("qwen2_bias", dir.path());
        store_as(&model, dtype, |_| vec![0; size]);
        let error = Checked::open(&model).err().unwrap().to_string();
        assert!(error.contains(&format!("quantised (stored as {dtype:?})")), "{error}");
    }
}

#[test]
fn shards_are_found_or_missed_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = copied("llama_tied", dir.path());
    let whole = values(&model);
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = all.tensors();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = serde_json::Map::new();
    for (i, part) in [first, second].into_iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        part.iter().for_each(|(name, _)| drop(map.insert(name.clone(), json!(file))));
        let views = part.iter().map(|(n, v)| (n.as_str(), v));
        fs::write(model.join(&file), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let refused = |said: &[&str]| {
        let error = Checked::open(&model).err().unwrap().to_string();
        said.iter().for_each(|part| assert!(error.contains(part), "{part:?} in {error}"));
    };
    refused(&["2 shards of weights, and no model.safetensors.index.json", "download the index"]);
    let index = model.join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": {}}).to_string()).unwrap();
    refused(&["index.json", "lists no tensor"]);
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    assert_eq!(values(&model), whole);
    fs::remove_file(model.join("model-00002-of-00002.safetensors")).unwrap();
    refused(&[
        "1 of the 2 files it lists are not here, such as model-00002-of-00002.safetensors",
        "hf download",
    ]);
    fs::write(&index, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(&["Git LFS pointer"]);
}

/// Changes a model's directory.
type Damage<'a> = &'a dyn Fn(&Path);

/// What cannot be used: how it comes about, and what must be said.
fn unusable() -> Vec<(&'static str, &'static str, Damage<'static>, &'static [&'static str])> {
    fn config(model: &Path, key: &str, value: Value) {
        change_json(&model.join("config.json"), |c| c[key] = value);
    }
    fn add(model: &Path, name: &str) {
        change_weights(model, |w| drop(w.insert(name.into(), (vec![2], vec![0.0; 2]))));
    }
    fn no_weights(model: &Path, file: &str) {
        fs::rename(model.join("model.safetensors"), model.join(file)).unwrap();
    }
    vec![
        (
            "llama_tied",
            "4 bits",
            &|m| config(m, "quantization_config", json!({"load_in_4bit": true})),
            &["quantization_config says bitsandbytes, 4 bits, and no layer is stored so"],
        ),
        (
            "llama_tied",
            "hqq",
            &|m| config(m, "quantization_config", json!({"quant_method": "hqq", "bits": 8})),
            &["quantised (hqq, 8 bits)", "quantization_config", "AWQ", "dequantize"],
        ),
        (
            "llama_tied",
            "mlx",
            &|m| config(m, "quantization", json!({"group_size": 64, "bits": 4})),
            &["quantised (mlx, 4 bits)"],
        ),
        (
            "llama_tied",
            "old gptq",
            &|m| fs::write(m.join("quantize_config.json"), "{\"bits\": 4}").unwrap(),
            &["quantization_config says GPTQ, 4 bits, and no layer is stored so"],
        ),
        (
            "llama_tied",
            "qweight",
            &|m| change_weights(m, |w| renamed(w, |n| n.replace("q_proj.weight", "q_proj.qweight"))),
            &["quantised (GPTQ or AWQ)", "q_proj.weight is missing"],
        ),
        (
            "llama_tied",
            "fp8 scales",
            &|m| add(m, "model.layers.0.mlp.up_proj.weight_scale_inv"),
            &["quantised (FP8)"],
        ),
        (
            "llama_tied",
            "classifier",
            &|m| add(m, "score.weight"),
            &["a head for classes", "score.weight is unknown", "language model that it was trained from"],
        ),
        (
            "t5_v10",
            "encoder",
            &|m| change_weights(m, |w| w.retain(|n, _| !n.starts_with("decoder."))),
            &["an encoder alone"],
        ),
        (
            "llama_tied",
            "compiled",
            &|m| change_weights(m, |w| renamed(w, |n| format!("_orig_mod.{n}"))),
            &["torch.compile", "strip `_orig_mod.`"],
        ),
        (
            "llama_tied",
            "wrapped",
            &|m| change_weights(m, |w| renamed(w, |n| format!("module.{n}"))),
            &["DistributedDataParallel", "strip `module.`"],
        ),
        (
            "llama_tied",
            "adapter tensors",
            &|m| add(m, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
            &["an adapter's tensors", "merge_and_unload"],
        ),
        (
            "llama_tied",
            "adapter",
            &|m| {
                fs::remove_file(m.join("config.json")).unwrap();
                fs::write(
                    m.join("adapter_config.json"),
                    json!({"peft_type": "LORA", "base_model_name_or_path": "org/base"}).to_string(),
                )
                .unwrap();
            },
            &["a LORA adapter for org/base", "merge_and_unload"],
        ),
        (
            "llama_tied",
            "adapter beside config",
            &|m| {
                no_weights(m, "adapter_model.safetensors");
                fs::write(m.join("adapter_config.json"), "{}").unwrap();
            },
            &["no weights of a whole model", "a PEFT adapter"],
        ),
        (
            "llama_tied",
            "pickle",
            &|m| no_weights(m, "pytorch_model.bin"),
            &["no safetensors: the weights are PyTorch pickles", "save_pretrained"],
        ),
        (
            "llama_tied",
            "sharded pickle",
            &|m| no_weights(m, "pytorch_model-00001-of-00002.bin"),
            &["PyTorch pickles"],
        ),
        ("llama_tied", "gguf", &|m| no_weights(m, "model-q4_k_m.gguf"), &["GGUF"]),
        (
            "llama_tied",
            "gguf alone",
            &|m| {
                no_weights(m, "model-q4_k_m.gguf");
                fs::remove_file(m.join("config.json")).unwrap();
            },
            &["not a Hugging Face checkpoint", "GGUF"],
        ),
        (
            "llama_tied",
            "original",
            &|m| {
                no_weights(m, "consolidated.00.pth");
                fs::remove_file(m.join("config.json")).unwrap();
            },
            &["original weights of Meta"],
        ),
        ("llama_tied", "tensorflow", &|m| no_weights(m, "tf_model.h5"), &["TensorFlow"]),
        (
            "llama_tied",
            "another name",
            &|m| no_weights(m, "weights.safetensors"),
            &["only weights.safetensors", "name it model.safetensors"],
        ),
        (
            "llama_tied",
            "pointer",
            &|m| {
                fs::write(
                    m.join("model.safetensors"),
                    "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                )
                .unwrap()
            },
            &["model.safetensors", "Git LFS pointer", "git lfs pull"],
        ),
        (
            "llama_tied",
            "pointer config",
            &|m| fs::write(m.join("config.json"), "version https://git-lfs.github.com/spec/v1\n").unwrap(),
            &["config.json", "Git LFS pointer"],
        ),
        (
            "llama_tied",
            "headless",
            &|m| config(m, "tie_word_embeddings", json!(false)),
            &["lm_head.weight is missing", "set tie_word_embeddings to true"],
        ),
        (
            "llama_tied",
            "mixtral",
            &|m| config(m, "model_type", json!("mixtral")),
            &["mixtral", "a mixture of experts", "the nearest is mistral"],
        ),
        (
            "t5_v11",
            "tied mt5",
            &|m| {
                config(m, "model_type", json!("mt5"));
                config(m, "tie_word_embeddings", json!(true));
            },
            &["tie_word_embeddings", "transformers 4 and 5 read a tied mt5 differently"],
        ),
        (
            "llama_tied",
            "infinite",
            &|m| change_weights(m, |w| w.get_mut("model.norm.weight").unwrap().1[3] = f32::INFINITY),
            &["model.norm.weight", "inf at element 3"],
        ),
        (
            "llama_tied",
            "twice",
            &|m| {
                change_weights(m, |w| {
                    let norm = w["model.norm.weight"].clone();
                    w.insert("norm.weight".into(), norm);
                })
            },
            &["model.norm.weight is stored twice", "norm.weight"],
        ),
        (
            "llama_tied",
            "few rows",
            &|m| {
                config(m, "vocab_size", json!(400));
                change_weights(m, |w| {
                    let (shape, values) = w.get_mut("model.embed_tokens.weight").unwrap();
                    values.truncate(400 * shape[1]);
                    shape[0] = 400;
                });
            },
            &["token ids up to", "only 400 embedding rows"],
        ),
    ]
}

#[test]
fn what_cannot_be_used_is_named_by_train_and_doctor_alike() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    for (base, name, damage, said) in unusable() {
        let model = copied(base, &dir.path().join(name));
        damage(&model);
        let mut train = engine();
        train.args(["train", "--json", "--steps", "1", "--data"]).arg(&data).arg("--model").arg(&model);
        let mut refused = train.arg("--out").arg(dir.path().join("run")).assert().code(1);
        let doctor = engine().args(["doctor", "--model"]).arg(&model).arg("--out").arg(dir.path()).assert();
        let mut doctor = doctor.code(1).stdout(predicate::str::contains("FAIL  model"));
        for part in said {
            refused = refused.stderr(predicate::str::contains(part.to_string()));
            doctor = doctor.stdout(predicate::str::contains(part.to_string()));
        }
    }
    for model in ["qwen3_qknorm", "t5_v11"] {
        let doctor = engine().args(["doctor", "--model"]).arg(golden_model(model)).assert();
        doctor.stdout(
            predicate::str::contains("PASS  model").and(predicate::str::contains("FAIL  model").not()),
        );
    }
}

#[test]
fn fields_that_are_left_out_have_the_familys_defaults() {
    // Defaults of Qwen3Config, Qwen2Config and LlamaConfig in transformers 4.57 and 5.24.
    let read = |family: &str| {
        let json = json!({"model_type": family, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 64,
            "num_attention_heads": 32, "num_hidden_layers": 1});
        let a = Architecture::from_json(json, "config.json").unwrap();
        (a.head_dim, a.kv_heads, a.tied)
    };
    assert_eq!(read("qwen3"), (128, 32, false));
    assert_eq!(read("qwen2"), (8, 32, false));
    assert_eq!(read("llama"), (8, 32, false));
}

#[test]
fn a_directory_around_a_model_and_a_file_are_told() {
    let dir = tempfile::tempdir().unwrap();
    copied("llama_tied", dir.path());
    let error = |path: &Path| Architecture::read(path).unwrap_err().to_string();
    assert!(error(dir.path()).contains("one level down") && error(dir.path()).contains("llama_tied"));
    let file = dir.path().join("model.gguf");
    fs::write(&file, "GGUF").unwrap();
    assert!(error(&file).contains("a GGUF file"));
    assert!(error(&dir.path().join("nowhere")).contains("check the path"));
}

mod fuzz {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_set_of_names_makes_it_panic(
            t5 in any::<bool>(),
            edits in prop::collection::vec((any::<usize>(), "(model\\.|transformer\\.|lm_head|shared|encoder\\.|score)?[a-z.]{0,12}(weight|absmax)?"), 0..4),
            dropped in prop::collection::vec(any::<usize>(), 0..4),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let model = copied(if t5 { "t5_v11" } else { "qwen3_qknorm" }, dir.path());
            change_weights(&model, |w| {
                for (at, name) in edits {
                    let old = w.keys().nth(at % w.len()).unwrap().clone();
                    let value = w.remove(&old).unwrap();
                    w.insert(name, value);
                }
                for at in dropped {
                    let old = w.keys().nth(at % w.len()).unwrap().clone();
                    w.remove(&old);
                }
            });
            if let Ok(checked) = Checked::open(&model) {
                checked.read_all().unwrap();
            }
        }

        #[test]
        fn no_index_makes_it_panic(text in "\\PC{0,60}", file in "[a-z./\\\\-]{0,24}(safetensors)?") {
            let dir = tempfile::tempdir().unwrap();
            for contents in [text.clone(), json!({"weight_map": {"a": file}}).to_string(), json!({"weight_map": {"a": [text]}}).to_string()] {
                fs::write(dir.path().join("model.safetensors.index.json"), contents).unwrap();
                prop_assert!(Weights::open(dir.path()).is_err());
            }
        }
    }
}
