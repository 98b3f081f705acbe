//! Models that are not supported: what each is, and the nearest family that would do.

use super::architecture::Family;
use crate::error::{Error, Result};
use serde_json::Value;

/// `model_type`, what keeps it from being used, and the nearest family that can be.
const KIN: &[(&str, &str, &str)] = &[
    ("qwen", "the first Qwen has one matrix for q, k and v with a bias, and files of its own", "qwen2"),
    ("qwen2_moe", MIXTURE, "qwen2"),
    ("qwen3_moe", MIXTURE, "qwen3"),
    ("qwen3_next", HYBRID, "qwen3"),
    ("qwen3_5", HYBRID, "qwen3"),
    ("qwen3_5_text", HYBRID, "qwen3"),
    ("qwen3_5_moe", HYBRID, "qwen3"),
    ("qwen2_vl", PICTURES, "qwen2"),
    ("qwen2_5_vl", PICTURES, "qwen2"),
    ("qwen2_5_omni", PICTURES, "qwen2"),
    ("qwen3_vl", PICTURES, "qwen3"),
    ("qwen3_vl_moe", MIXTURE, "qwen3"),
    ("mixtral", MIXTURE, "mistral"),
    ("ministral", "its windows are not in every layer", "mistral"),
    ("ministral3", "its queries are scaled by their position", "mistral"),
    ("mistral3", PICTURES, "mistral"),
    ("mistral4", MIXTURE, "mistral"),
    ("llama4", MIXTURE, "llama"),
    ("llama4_text", MIXTURE, "llama"),
    ("mllama", PICTURES, "llama"),
    ("llava", PICTURES, "llama"),
    ("gemma", "the first Gemma has no norms behind its blocks", "gemma2"),
    ("gemma3", PICTURES, "gemma3_text"),
    ("gemma3n", "its layers have inputs of their own and share keys and values", "gemma3_text"),
    ("gemma3n_text", "its layers have inputs of their own and share keys and values", "gemma3_text"),
    ("gemma4", "its layers share keys and values and differ in head size", "gemma3_text"),
    ("gemma4_text", "its layers share keys and values and differ in head size", "gemma3_text"),
    ("phi", "its blocks run attention and feed-forward part side by side, with layer norms", "phi3"),
    ("phimoe", MIXTURE, "phi3"),
    ("phi4_multimodal", PICTURES, "phi3"),
    ("phi4mm", PICTURES, "phi3"),
    ("olmo", "its norms have no weights", "olmo2"),
    ("olmoe", MIXTURE, "olmo2"),
    ("granitemoe", MIXTURE, "granite"),
    ("granitemoeshared", MIXTURE, "granite"),
    ("granitemoehybrid", HYBRID, "granite"),
    ("gpt_oss", "it is a mixture of experts with sinks in its attention", "llama"),
    ("deepseek_v2", LATENT, "llama"),
    ("deepseek_v3", LATENT, "llama"),
    ("deepseek_v32", LATENT, "llama"),
    ("kimi_k2", LATENT, "llama"),
    ("hunyuan", "its query-key norms come after the rotation", "qwen3"),
    ("hunyuan_v1_dense", "its query-key norms come after the rotation", "qwen3"),
    ("hunyuan_v1_moe", MIXTURE, "qwen3"),
    ("smollm3", "some of its layers have no rotation", "llama"),
    ("cohere", LAYER_NORMS, "llama"),
    ("cohere2", LAYER_NORMS, "llama"),
    ("stablelm", LAYER_NORMS, "llama"),
    ("gpt2", LAYER_NORMS, "llama"),
    ("gpt_neox", LAYER_NORMS, "llama"),
    ("gptj", LAYER_NORMS, "llama"),
    ("opt", LAYER_NORMS, "llama"),
    ("bloom", LAYER_NORMS, "llama"),
    ("falcon", LAYER_NORMS, "llama"),
    ("starcoder2", LAYER_NORMS, "llama"),
    ("glm", "it turns neighbouring values of a head", "phi3"),
    ("glm4", "it turns neighbouring values of a head", "phi3"),
    ("chatglm", "it is not of transformers' own classes", "phi3"),
    ("internlm2", "it is not of transformers' own classes", "llama"),
    ("baichuan", "it is not of transformers' own classes", "llama"),
    ("minicpm", "it is not of transformers' own classes", "granite"),
    ("mamba", "it has no attention", "llama"),
    ("switch_transformers", MIXTURE, "t5"),
    ("longt5", "its encoder sees blocks", "t5"),
    ("bart", LAYER_NORMS, "t5"),
    ("mbart", LAYER_NORMS, "mt5"),
    ("m2m_100", LAYER_NORMS, "mt5"),
    ("bert", ENCODER, "t5"),
    ("roberta", ENCODER, "t5"),
    ("xlm-roberta", ENCODER, "mt5"),
    ("modernbert", ENCODER, "t5"),
];

const MIXTURE: &str = "it is a mixture of experts";
const HYBRID: &str = "some of its layers have no attention but a recurrence";
const PICTURES: &str = "it reads pictures or sound too";
const LATENT: &str = "its keys and values are compressed, and it is a mixture of experts";
const LAYER_NORMS: &str = "it has layer norms";
const ENCODER: &str = "it is an encoder, which writes no text";

/// What is supported instead of a configuration's `model_type`.
pub(super) fn supported_instead(raw: &Value) -> String {
    let all = Family::names();
    let Some(named) = raw["model_type"].as_str() else { return all };
    let inside = raw["text_config"]["model_type"].as_str().and_then(Family::parse);
    let known = KIN.iter().find(|(model_type, ..)| *model_type == named);
    match (inside, known) {
        (Some(family), _) => format!(
            "{all}; its language model is one of these ({}): save that alone, with its part of the configuration",
            raw["text_config"]["model_type"].as_str().unwrap_or(family.class())
        ),
        (None, Some((_, why, near))) => format!("{all}; {named} is none: {why}; the nearest is {near}"),
        (None, None) => all,
    }
}

/// Refuses what says by a field that it is not the plain language model of its `model_type`.
///
/// # Errors
/// The field and its value.
pub(super) fn language_model(raw: &Value, place: &str) -> Result<()> {
    let bad = |name: &str, remedy: &str| {
        Err(Error::model(format!("`{name}` is {}", raw[name])).at(place).remedy(remedy))
    };
    for name in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if raw[name].as_u64().is_some_and(|n| n > 1) {
            return bad(name, "mixtures of experts are not supported: use a dense model of the same family");
        }
    }
    for name in ["vision_config", "audio_config"] {
        if raw[name].is_object() {
            return Err(Error::model(format!("there is a `{name}`: the model reads pictures or sound too"))
                .at(place)
                .remedy("use the language model alone"));
        }
    }
    Ok(())
}
