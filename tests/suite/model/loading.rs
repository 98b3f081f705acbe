//! What is loaded, and what is refused.

use super::tiny;
use crate::support::{Golden, backend};
use gems_engine::model::*;
use std::path::Path;

#[test]
fn unsupported_configurations_name_field_value_and_remedy() {
    let broken = |key: &str, value: serde_json::Value, base: &str| {
        let mut json = tiny(base);
        json[key] = value;
        Architecture::from_json(json, "config.json").err().map(|e| e.to_string()).unwrap_or_default()
    };
    for (key, value, base, expect) in [
        ("model_type", "gpt2".into(), "llama", "the nearest is llama"),
        ("hidden_act", "gelu".into(), "llama", "silu"),
        ("hidden_size", (-3).into(), "llama", "hidden_size"),
        ("num_hidden_layers", 1e12.into(), "llama", "num_hidden_layers"),
        ("num_key_value_heads", 3.into(), "llama", "divisor"),
        ("rope_scaling", serde_json::json!({"rope_type": "yarn"}), "llama", "factor"),
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
    let options = LoadOptions { random: None, vocabulary: old + 3, ..LoadOptions::default() };
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
