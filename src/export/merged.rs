//! A tuned model as a Hugging Face directory of its own.

use crate::error::{Error, Result};
use crate::files::{write_atomically, write_directory};
use crate::model::{Family, Inference, LoadOptions, Model, StoredType, write_safetensors};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Largest shard of a checkpoint, in bytes.
const SHARD: usize = 5_000_000_000;

/// Writes `model` into `dir` (config.json of `base` with what changed, weights folded in f32 and rounded
/// once, and what `beside` writes), reads it back, and returns the largest difference of the logits for `probe`.
/// The directory appears only when all of that has worked.
///
/// # Errors
/// A directory that is there already; the file system; a written model that cannot be read back.
pub fn write_merged(
    model: &Model,
    base: &Path,
    dir: &Path,
    stored: StoredType,
    beside: &dyn Fn(&Path) -> Result<()>,
    probe: &Inference,
) -> Result<f32> {
    write_directory(dir, |path| {
        write_config(model, base, path, stored)?;
        beside(path)?;
        write_safetensors(path, &model.tensors(), stored, SHARD, &|name| model.tensor(name))?;
        let again = Model::load(path, Arc::clone(&model.backend), &LoadOptions::default())?;
        logit_difference(model, &again, probe)
    })
}

/// config.json of `base` with this model's vocabulary, type and head.
fn write_config(model: &Model, base: &Path, path: &Path, stored: StoredType) -> Result<()> {
    let config = base.join("config.json");
    let text = fs::read_to_string(&config).map_err(|e| Error::io("read", &config, e))?;
    let mut config: Value =
        serde_json::from_str(&text).map_err(|e| Error::model(e.to_string()).at(config.display()))?;
    let a = &model.architecture;
    // What was in codes is written whole.
    for key in ["quantization_config", "quantization", "compression_config"] {
        config.as_object_mut().and_then(|fields| fields.remove(key));
    }
    config["vocab_size"] = json!(a.vocabulary);
    let name = if stored == StoredType::F32 { "float32" } else { "bfloat16" };
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(name);
        }
    }
    // What is left out means what the family's class has.
    let usual = matches!(a.family, Family::T5 | Family::Umt5 | Family::Gemma2 | Family::Gemma3);
    if config["tie_word_embeddings"].as_bool().unwrap_or(usual) != a.tied {
        config["tie_word_embeddings"] = json!(a.tied);
    }
    // A base that was saved as an encoder of texts is a language model now.
    if config.get("architectures").is_some() {
        config["architectures"] = json!([a.family.class()]);
    }
    let pretty = serde_json::to_vec_pretty(&config).map_err(|e| Error::model(e.to_string()))?;
    write_atomically(&path.join("config.json"), &pretty)
}

/// The largest difference between two models' logits.
pub fn logit_difference(a: &Model, b: &Model, probe: &Inference) -> Result<f32> {
    let values = |m: &Model| m.backend.download(m.logits(&m.hidden(probe)?)?.mat());
    let (x, y) = (values(a)?, values(b)?);
    if x.len() != y.len() {
        return Err(Error::model("the exported model has another vocabulary"));
    }
    Ok(x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max))
}
