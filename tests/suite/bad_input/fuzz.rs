//! Damaged files at random: an error, never a panic.

use super::{change_json, copied};
use crate::cli::golden_model;
use gems_engine::data::{Catalogue, DataSettings, PromptSide, Vocabulary};
use gems_engine::model::{Architecture, Weights};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;

/// Places in a JSON value, as paths of its nodes.
fn nodes(value: &Value, path: &str, all: &mut Vec<String>) {
    all.push(path.to_string());
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            let key = k.replace('~', "~0").replace('/', "~1");
            nodes(v, &format!("{path}/{key}"), all);
        }),
        Value::Array(list) => {
            list.iter().enumerate().take(4).for_each(|(i, v)| nodes(v, &format!("{path}/{i}"), all));
        }
        _ => {}
    }
}

fn strange() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..70_000).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, "x", null])),
    ]
}

fn golden_json(model: &str, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(golden_model(model).join(file)).unwrap()).unwrap()
}

/// The value with one node replaced.
fn mutated(mut json: Value, at: usize, new: Value) -> Value {
    let mut all = Vec::new();
    nodes(&json, "", &mut all);
    if let Some(node) = json.pointer_mut(&all[at % all.len()]) {
        *node = new;
    }
    json
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_configuration_makes_it_panic(at in any::<usize>(), new in strange(), which in 0usize..3) {
        let model = ["llama_untied_rope3", "qwen3_qknorm", "t5_v11"][which];
        let _ = Architecture::from_json(mutated(golden_json(model, "config.json"), at, new), "fuzz");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_header_makes_it_panic(
        edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        keep in 0.0f64..1.2,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(golden_model("t5_v10").join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
        for (at, value) in edits {
            bytes[at % header] = value;
        }
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        if let Ok(weights) = Weights::open(dir.path()) {
            for name in weights.names().map(String::from).collect::<Vec<_>>() {
                let _ = weights.read(&name);
            }
        }
    }

    #[test]
    fn no_tokenizer_makes_it_panic(at in any::<usize>(), new in strange(), t5 in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let model = copied(if t5 { "t5_v10" } else { "llama_tied" }, dir.path());
        let path = model.join("tokenizer.json");
        change_json(&path, |json| *json = mutated(json.clone(), at, new));
        let reads = PromptSide::Decoder;
        let items = Catalogue::default();
        if let Ok(words) = Vocabulary::new(&model, &items, &DataSettings::default(), reads, None) {
            let _ = words.encode("a green desk, quite\u{e9}");
        }
    }
}
