//! Directories and tensors that are not a checkpoint as it is read here, named for what they are, with the way out.

use super::hub;
use crate::error::{Error, Result};
use safetensors::Dtype;
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// First line of a Git LFS pointer file.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Turns weights of any other format into safetensors, in Python.
const CONVERT: &str = "open it in transformers and save it again: \
    `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)` (AutoModelForSeq2SeqLM for T5)";
const MERGE: &str = "merge it into its base model first: \
    `AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW)`, and the tokenizer's files beside it";
pub(crate) const DEQUANTISE: &str = "use the checkpoint it was made from (bf16, f16 or f32), or load it in transformers, \
    `model.dequantize()` and `save_pretrained`";

/// A file of weights in another format than safetensors: its name's beginning and end, and what it is.
const OTHER_WEIGHTS: &[(&str, &str, &str)] = &[
    ("pytorch_model", ".bin", "PyTorch pickles (.bin)"),
    ("consolidated", ".pth", "the original weights of Meta or Mistral (consolidated.pth)"),
    ("consolidated", ".safetensors", "the original weights of Mistral (consolidated.safetensors)"),
    ("tf_model", ".h5", "TensorFlow weights (.h5)"),
    ("flax_model", ".msgpack", "Flax weights (.msgpack)"),
    ("", ".gguf", "GGUF, the format of llama.cpp"),
    ("", ".ggml", "GGML, the old format of llama.cpp"),
    ("", ".onnx", "an ONNX graph"),
    ("", ".npz", "numpy arrays (.npz)"),
    ("", ".pt", "PyTorch pickles (.pt)"),
    ("", ".pth", "PyTorch pickles (.pth)"),
    ("", ".ckpt", "PyTorch pickles (.ckpt)"),
    ("", ".bin", "PyTorch pickles (.bin)"),
];

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Whether a file is what Git LFS leaves where a large file was not fetched.
fn is_pointer(path: &Path) -> bool {
    let mut head = [0u8; POINTER.len()];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut head)).is_ok() && head == *POINTER
}

/// Fails on a Git LFS pointer file.
///
/// # Errors
/// The file is one.
pub(crate) fn no_pointer(path: &Path) -> Result<()> {
    match is_pointer(path) {
        false => Ok(()),
        true => Err(Error::model("a Git LFS pointer: the file itself was not downloaded")
            .at(path.display())
            .remedy("`git lfs pull` in the clone, or `hf download NAME --local-dir DIR`")),
    }
}

/// Why a place has no `config.json`, if that can be told.
pub fn no_configuration(dir: &Path) -> Option<Error> {
    let at = |what: &str, remedy: &str| Some(Error::model(what).at(dir.display()).remedy(remedy));
    if dir.is_file() {
        return match dir.extension().and_then(|e| e.to_str()) {
            Some("gguf") => at(
                "a GGUF file, made for llama.cpp",
                "give the Hugging Face directory that it was converted from",
            ),
            _ => at("a file, not a directory", "give the directory that holds config.json"),
        };
    }
    if !dir.exists() {
        return hub::Cache::of_environment().missing(dir);
    }
    let names = names_in(dir);
    if names.iter().any(|n| n == "adapter_config.json") {
        return at(&adapter(dir), MERGE);
    }
    let other = names.iter().find_map(|n| other_weights(n));
    if let Some(kind) = other.filter(|_| !names.iter().any(|n| n.ends_with(".safetensors"))) {
        return at(
            &format!("not a Hugging Face checkpoint: no config.json, and the weights are {kind}"),
            "give the Hugging Face directory of the model; original weights of other formats have converters in transformers",
        );
    }
    let inside: Vec<&String> = names.iter().filter(|n| dir.join(n).join("config.json").is_file()).collect();
    match inside.as_slice() {
        [] => None,
        [one] => at("no config.json here", &format!("it is one level down: {}", dir.join(one).display())),
        [one, ..] => at(
            "no config.json here",
            &format!("models are one level down, the first is {}", dir.join(one).display()),
        ),
    }
}

/// What an adapter's directory is, with the base it names.
fn adapter(dir: &Path) -> String {
    let config = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    let kind = config["peft_type"].as_str().unwrap_or("PEFT");
    match config["base_model_name_or_path"].as_str() {
        Some(base) => format!("a {kind} adapter for {base}, not a model of its own"),
        None => format!("a {kind} adapter, not a model of its own"),
    }
}

fn other_weights(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    // What a trainer leaves beside the weights.
    let aside = ["optimizer", "scheduler", "rng_state", "training_args", "scaler"];
    if aside.iter().any(|a| lower.starts_with(a)) {
        return None;
    }
    let found = OTHER_WEIGHTS.iter().find(|(head, tail, _)| lower.starts_with(head) && lower.ends_with(tail));
    found.map(|(_, _, what)| *what)
}

/// The error of a directory that has neither `model.safetensors` nor its index.
pub(crate) fn no_weights(dir: &Path) -> Error {
    let at = |what: String, remedy: &str| Error::model(what).at(dir.display()).remedy(remedy);
    let names = names_in(dir);
    let other = names.iter().find_map(|n| other_weights(n));
    let stray: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
    if stray.iter().any(|n| n.starts_with("adapter_model"))
        || names.iter().any(|n| n == "adapter_config.json")
    {
        return at(format!("no weights of a whole model: {}", adapter(dir)), MERGE);
    }
    if stray.iter().any(|n| n.starts_with("model-") && n.contains("-of-")) {
        return at(
            format!("{} shards of weights, and no model.safetensors.index.json that lists them", stray.len()),
            "download the index too: it is a small file beside the shards",
        );
    }
    match (other, stray.first()) {
        (Some(kind), _) => at(format!("no safetensors: the weights are {kind}"), CONVERT),
        (None, Some(name)) => at(
            format!("no weights: neither model.safetensors nor its index, only {name}"),
            "if that is the whole model, name it model.safetensors",
        ),
        (None, None) => at(
            "no weights: neither model.safetensors nor model.safetensors.index.json".into(),
            "give a Hugging Face directory with safetensors weights",
        ),
    }
}

/// Ends of the names of what quantised layers store beside or instead of their weight.
const QUANTISED: &[(&str, &str)] = &[
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".SCB", "bitsandbytes, 8 bits"),
    (".weight_format", "bitsandbytes, 8 bits"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".bitsandbytes__nf4", "bitsandbytes, 4 bits"),
    (".bitsandbytes__fp4", "bitsandbytes, 4 bits"),
    (".weight_scale_inv", "FP8"),
    (".weight_scale", "FP8 or compressed-tensors"),
    (".input_scale", "FP8"),
    (".weight_packed", "compressed-tensors"),
    (".weight_shape", "compressed-tensors"),
    (".weight_global_scale", "NVFP4"),
    (".codebooks", "AQLM"),
    (".W_q", "HQQ"),
    ("._data", "quanto"),
    ("_blocks", "MXFP4"),
    (".scales", "GPTQ, AWQ or MLX"),
];

/// What kind of checkpoint the surplus or unreadable tensors come from, if that can be told, and the way out.
pub(crate) fn of_tensors(unknown: &[&str], odd: Option<Dtype>) -> Option<(String, String)> {
    let has = |part: &str| unknown.iter().any(|n| n.contains(part));
    let ends = |tail: &str| unknown.iter().any(|n| n.ends_with(tail));
    if let Some((_, kind)) = QUANTISED.iter().find(|(tail, _)| ends(tail)) {
        return Some((format!("the weights are quantised ({kind})"), DEQUANTISE.into()));
    }
    if let Some(dtype) = odd {
        return Some((format!("the weights are quantised (stored as {dtype:?})"), DEQUANTISE.into()));
    }
    if has(".lora_") || has("base_model.model.") || has(".base_layer.") {
        return Some(("these are an adapter's tensors".into(), MERGE.into()));
    }
    for (prefix, what) in [
        ("_orig_mod.", "saved from a compiled model (torch.compile)"),
        ("module.", "saved from a wrapped model (DistributedDataParallel, DeepSpeed)"),
        ("_fsdp_wrapped_module.", "saved from a wrapped model (FSDP)"),
        ("_forward_module.", "saved from a wrapped model (Lightning)"),
    ] {
        if unknown.iter().any(|n| n.starts_with(prefix)) {
            let remedy = format!("strip `{prefix}` from the tensors' names and save them again");
            return Some((format!("the tensors' names begin with `{prefix}`: {what}"), remedy));
        }
    }
    let heads = ["score.", "classifier.", "classification_head.", "qa_outputs.", "v_head.", "reward_head."];
    if let Some(head) = heads.iter().find(|h| unknown.iter().any(|n| n.starts_with(**h))) {
        let what = format!("the model has a head for classes, spans or values (`{head}*`), not for text");
        return Some((what, "use the language model that it was trained from".into()));
    }
    let parts = ["vision_tower.", "visual.", "vision_model.", "multi_modal_projector.", "audio_tower."];
    if parts.iter().any(|p| has(p)) {
        let what = "the model reads pictures or sound too: only language models are supported";
        return Some((what.into(), "use the language model alone".into()));
    }
    if has(".experts.") || has("block_sparse_moe") {
        let what = "the model is a mixture of experts, which is not supported".to_string();
        return Some((what, "use a dense model of the same family".into()));
    }
    None
}
