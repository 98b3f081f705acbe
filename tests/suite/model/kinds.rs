//! One configuration of each kind that people have: served, or refused by the field and value that stands in the way, with
//! the nearest family that would do. The shapes are those of models of that name; the files are written here.

use gems_engine::gems::MethodSettings;
use gems_engine::model::*;
use serde_json::{Value, json};

/// A decoder's sizes: hidden, intermediate, layers, heads, key and value heads, vocabulary; and what else is said.
fn decoder(model_type: &str, sizes: [usize; 6], more: Value) -> Value {
    let [hidden, intermediate, layers, heads, kv_heads, vocabulary] = sizes;
    let mut json = json!({"model_type": model_type, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096});
    json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json
}

/// An encoder-decoder's sizes: d_model, d_kv, d_ff, layers, heads, vocabulary.
fn t5(model_type: &str, [d_model, d_kv, d_ff, layers, heads, vocabulary]: [usize; 6], more: Value) -> Value {
    let mut json = json!({"model_type": model_type, "d_model": d_model, "d_kv": d_kv, "d_ff": d_ff, "num_layers": layers,
        "num_heads": heads, "vocab_size": vocabulary, "relative_attention_num_buckets": 32,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "is_encoder_decoder": true});
    json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json
}

fn llama3(factor: f64) -> Value {
    json!({"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3",
        "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})
}

fn served() -> Vec<(&'static str, Value)> {
    let qwen = |theta: f64| {
        json!({"rope_theta": theta, "use_sliding_window": false, "sliding_window": null,
        "max_window_layers": 28, "hidden_act": "silu"})
    };
    let qwen3 = |tied: bool| json!({"head_dim": 128, "rope_theta": 1e6, "tie_word_embeddings": tied, "sliding_window": null});
    let gemma3 = json!({"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512, "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0, "hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 6});
    let gemma2 = json!({"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "hidden_act": "gelu_pytorch_tanh", "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0});
    let granite = json!({"embedding_multiplier": 12.0, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22,
        "logits_scaling": 8.0, "tie_word_embeddings": true});
    let long = json!({"type": "longrope", "short_factor": vec![1.05; 48], "long_factor": vec![2.5; 48]});
    let long = json!({"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": long,
        "sliding_window": 262144});
    let partial = json!({"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![2.5; 48]});
    let partial = json!({"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": partial,
        "partial_rotary_factor": 0.75, "tie_word_embeddings": true, "sliding_window": 262144});
    let yarn = json!({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}});
    let olmo3 = json!({"sliding_window": 4096, "rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 8.0,
        "original_max_position_embeddings": 8192, "attention_factor": 1.2079441541679836}});
    let gated = |tied: bool| json!({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": tied});
    vec![
        ("Llama 2 7B", decoder("llama", [4096, 11008, 32, 32, 32, 32000], json!({}))),
        ("Llama 2 70B", decoder("llama", [8192, 28672, 80, 64, 8, 32000], json!({"pretraining_tp": 1}))),
        ("Llama 3 8B", decoder("llama", [4096, 14336, 32, 32, 8, 128256], json!({"rope_theta": 500000.0}))),
        ("Llama 3.1 8B", decoder("llama", [4096, 14336, 32, 32, 8, 128256], llama3(8.0))),
        ("Llama 3.2 1B", decoder("llama", [2048, 8192, 16, 32, 8, 128256], llama3(32.0))),
        ("TinyLlama", decoder("llama", [2048, 5632, 22, 32, 4, 32000], json!({}))),
        ("SmolLM2", decoder("llama", [576, 1536, 30, 9, 3, 49152], json!({"tie_word_embeddings": true}))),
        (
            "Yi with linear scaling",
            decoder(
                "llama",
                [4096, 11008, 32, 32, 4, 64000],
                json!({"rope_scaling": {"type": "linear", "factor": 4.0}}),
            ),
        ),
        (
            "Llama with dynamic scaling",
            decoder(
                "llama",
                [4096, 11008, 32, 32, 32, 32000],
                json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            ),
        ),
        ("Qwen2 0.5B", decoder("qwen2", [896, 4864, 24, 14, 2, 151936], qwen(1e6))),
        ("Qwen2.5 7B", decoder("qwen2", [3584, 18944, 28, 28, 4, 152064], qwen(1e6))),
        ("Qwen2.5 with YaRN", decoder("qwen2", [3584, 18944, 28, 28, 4, 152064], yarn)),
        (
            "Qwen2 with windows",
            decoder(
                "qwen2",
                [896, 4864, 24, 14, 2, 151936],
                json!({"use_sliding_window": true, "sliding_window": 32768, "max_window_layers": 21}),
            ),
        ),
        ("Qwen3 0.6B", decoder("qwen3", [1024, 3072, 28, 16, 8, 151936], qwen3(true))),
        ("Qwen3 8B", decoder("qwen3", [4096, 12288, 36, 32, 8, 151936], qwen3(false))),
        (
            "Mistral 7B v0.1",
            decoder("mistral", [4096, 14336, 32, 32, 8, 32000], json!({"sliding_window": 4096})),
        ),
        (
            "Mistral 7B v0.3",
            decoder(
                "mistral",
                [4096, 14336, 32, 32, 8, 32768],
                json!({"sliding_window": null, "rope_theta": 1e6}),
            ),
        ),
        (
            "Mistral Nemo",
            decoder(
                "mistral",
                [5120, 14336, 40, 32, 8, 131072],
                json!({"sliding_window": null, "head_dim": 128}),
            ),
        ),
        (
            "Phi-3 mini 4k",
            decoder(
                "phi3",
                [3072, 8192, 32, 32, 32, 32064],
                json!({"sliding_window": 2047, "rope_scaling": null}),
            ),
        ),
        ("Phi-3 mini 128k", decoder("phi3", [3072, 8192, 32, 32, 32, 32064], long)),
        ("Phi-4 mini", decoder("phi3", [3072, 8192, 32, 24, 8, 200064], partial)),
        ("Gemma 2 2B", decoder("gemma2", [2304, 9216, 26, 8, 4, 256000], gemma2)),
        ("Gemma 3 1B", decoder("gemma3_text", [1152, 6912, 26, 4, 1, 262144], gemma3)),
        ("OLMo 2 7B", decoder("olmo2", [4096, 11008, 32, 32, 32, 100352], json!({"rope_theta": 500000}))),
        ("OLMo 3 7B", decoder("olmo3", [4096, 11008, 32, 32, 32, 100278], olmo3)),
        ("Granite 3.1 2B", decoder("granite", [2048, 8192, 40, 32, 8, 49155], granite)),
        ("T5 small", t5("t5", [512, 64, 2048, 6, 8, 32128], json!({"tie_word_embeddings": true}))),
        ("T5 v1.1 base", t5("t5", [768, 64, 2048, 12, 12, 32128], gated(false))),
        ("Flan-T5 small", t5("t5", [512, 64, 1024, 8, 6, 32128], gated(false))),
        // Its tokenizer is one of bytes, which has no tokenizer.json: that is refused.
        (
            "ByT5 small",
            t5(
                "t5",
                [1472, 64, 3584, 12, 6, 384],
                json!({"feed_forward_proj": "gated-gelu", "num_decoder_layers": 4, "tie_word_embeddings": false}),
            ),
        ),
        ("mT5 small", t5("mt5", [512, 64, 1024, 8, 6, 250112], gated(false))),
        ("umT5 small", t5("umt5", [512, 64, 1024, 8, 6, 256384], gated(false))),
    ]
}

/// With the field, and the family that would do.
fn refused() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let small = [1024, 3072, 28, 16, 8, 151936];
    let named = |model_type: &str| decoder(model_type, small, json!({}));
    let of_type = |name, model_type: &str, near| (name, named(model_type), "model_type", near);
    let inside = |name, model_type: &str, text: &str, near| {
        let json = json!({"model_type": model_type, "text_config": named(text), "vision_config": {"hidden_size": 8}});
        (name, json, "model_type", near)
    };
    let with = |name, model_type: &str, more: Value, field, near| {
        (name, decoder(model_type, small, more), field, near)
    };
    vec![
        of_type("Qwen 1", "qwen", "qwen2"),
        of_type("Qwen1.5 MoE", "qwen2_moe", "qwen2"),
        of_type("Qwen3 MoE", "qwen3_moe", "qwen3"),
        of_type("Qwen3 Next", "qwen3_next", "qwen3"),
        of_type("Qwen3.5 text", "qwen3_5_text", "qwen3"),
        inside("Qwen3.5", "qwen3_5", "qwen3_5_text", "qwen3"),
        of_type("Qwen2 VL", "qwen2_vl", "qwen2"),
        inside("Qwen2.5 VL", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2"),
        inside("Qwen3 VL", "qwen3_vl", "qwen3_vl_text", "qwen3"),
        inside("Qwen3 VL MoE", "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3"),
        of_type("Mixtral", "mixtral", "mistral"),
        of_type("Ministral", "ministral", "mistral"),
        inside("Mistral Small 3", "mistral3", "mistral", "mistral"),
        inside("LLaVA", "llava", "llama", "llama"),
        inside("Llama 4", "llama4", "llama4_text", "llama"),
        of_type("Llama 4 text", "llama4_text", "llama"),
        inside("Llama 3.2 vision", "mllama", "mllama_text_model", "llama"),
        of_type("Gemma 1", "gemma", "gemma2"),
        inside("Gemma 3 4B", "gemma3", "gemma3_text", "gemma3_text"),
        inside("Gemma 3n", "gemma3n", "gemma3n_text", "gemma3_text"),
        inside("Gemma 4", "gemma4", "gemma4_text", "gemma3_text"),
        of_type("Gemma 4 text", "gemma4_text", "gemma3_text"),
        of_type("Phi-2", "phi", "phi3"),
        of_type("Phi-3.5 MoE", "phimoe", "phi3"),
        of_type("Phi-4 multimodal", "phi4mm", "phi3"),
        of_type("OLMo 1", "olmo", "olmo2"),
        of_type("OLMoE", "olmoe", "olmo2"),
        of_type("gpt-oss", "gpt_oss", "llama"),
        of_type("DeepSeek V3", "deepseek_v3", "llama"),
        of_type("Granite MoE", "granitemoe", "granite"),
        of_type("Granite 4 hybrid", "granitemoehybrid", "granite"),
        of_type("Hunyuan dense", "hunyuan_v1_dense", "qwen3"),
        of_type("Hunyuan MoE", "hunyuan_v1_moe", "qwen3"),
        of_type("SmolLM3", "smollm3", "llama"),
        of_type("StableCode", "stablelm", "llama"),
        of_type("Pythia", "gpt_neox", "llama"),
        of_type("GPT-2", "gpt2", "llama"),
        of_type("Command R", "cohere", "llama"),
        of_type("Mamba", "mamba", "llama"),
        of_type("BERT", "bert", "t5"),
        of_type("mBART", "mbart", "mt5"),
        of_type("nobody's", "new_kind", "qwen3"),
        with(
            "experts in a llama",
            "llama",
            json!({"num_local_experts": 8}),
            "num_local_experts",
            "dense model",
        ),
        with(
            "pictures in a qwen3",
            "qwen3",
            json!({"vision_config": {}}),
            "vision_config",
            "language model alone",
        ),
        with(
            "Gemma that looks ahead",
            "gemma3_text",
            json!({"use_bidirectional_attention": true}),
            "use_bidirectional_attention",
            "false",
        ),
        with("multimodal rope", "qwen2", json!({"rope_scaling": {"type": "mrope"}}), "mrope", "yarn"),
        with("partly rotated", "llama", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor", "1"),
        with("exact GELU", "llama", json!({"hidden_act": "gelu"}), "hidden_act", "gelu_pytorch_tanh"),
        with(
            "mixed windows",
            "mistral",
            json!({"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
            "layer_types",
            "the same in every layer",
        ),
        with(
            "denied windows",
            "mistral",
            json!({"num_hidden_layers": 1, "sliding_window": 8, "layer_types": ["full_attention"]}),
            "layer_types",
            "the same in every layer",
        ),
        with(
            "chunks",
            "qwen3",
            json!({"layer_types": ["chunked_attention"]}),
            "layer_types",
            "sliding_attention",
        ),
        with(
            "windows without width",
            "qwen2",
            json!({"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "use_sliding_window": false}),
            "use_sliding_window",
            "a window",
        ),
        with(
            "longrope of two minds",
            "phi3",
            json!({"rope_scaling": {"type": "longrope", "factor": 3.0, "short_factor": vec![1.0; 32], "long_factor": vec![1.0; 32]}}),
            "factor",
            "original_max_position_embeddings",
        ),
        with(
            "longrope of other heads",
            "phi3",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
            "factor",
            "32 positive numbers",
        ),
        with(
            "OLMo 3 without a base",
            "olmo3",
            json!({"rope_theta": null}),
            "rope_theta",
            "a positive number",
        ),
        (
            "tied mT5",
            t5("mt5", [512, 64, 1024, 8, 6, 250112], json!({"tie_word_embeddings": true})),
            "tie_word_embeddings",
            "false",
        ),
    ]
}

#[test]
fn every_kind_of_configuration_is_served_or_named() {
    for (name, json) in served() {
        let found = Architecture::from_json(json, "config.json");
        assert!(found.is_ok(), "{name}: {}", found.unwrap_err());
    }
    for (name, json, field, near) in refused() {
        let Err(error) = Architecture::from_json(json, "config.json") else { panic!("{name} is served") };
        let text = error.to_string();
        assert!(
            text.contains(field) && text.contains(near) && text.contains("config.json"),
            "{name}: {text}"
        );
    }
}

/// Defaults of the configuration classes in transformers 4.57 and 5.24.
#[test]
fn fields_that_are_left_out_have_the_defaults_of_every_family() {
    let read = |family: &str| {
        let json = json!({"model_type": family, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 64,
            "num_attention_heads": 32, "num_hidden_layers": 6, "rope_theta": if family == "olmo3" { json!(5e5) } else { Value::Null }});
        let a = Architecture::from_json(json, "config.json").unwrap();
        let windows = a.sliding.map_or((0, 0), |s| (s.window, s.layers.iter().filter(|l| **l).count()));
        (a.head_dim, a.kv_heads, a.tied, windows, a.max_positions)
    };
    assert_eq!(read("mistral"), (8, 8, false, (4096, 6), 131_072));
    assert_eq!(read("phi3"), (8, 32, false, (0, 0), 4096));
    assert_eq!(read("olmo2"), (8, 32, false, (0, 0), 2048));
    assert_eq!(read("olmo3"), (8, 32, false, (4096, 5), 2048));
    assert_eq!(read("gemma2"), (256, 4, true, (4096, 3), 8192));
    assert_eq!(read("gemma3_text"), (256, 4, true, (4096, 5), 131_072));
    assert_eq!(read("granite"), (8, 32, false, (0, 0), 2048));
    assert_eq!(read("qwen2"), (8, 32, false, (0, 0), 32_768));
}

/// A text's rotation is that of its own length.
#[test]
fn rotations_beyond_the_length_a_model_was_made_for() {
    let long = json!({"original_max_position_embeddings": 16, "max_position_embeddings": 64, "rope_scaling": {
        "type": "longrope", "short_factor": vec![1.0; 32], "long_factor": vec![4.0; 32]}});
    let a =
        Architecture::from_json(decoder("phi3", [1024, 3072, 2, 16, 8, 64], long), "config.json").unwrap();
    let rotary = a.rotary.unwrap();
    let (short, beyond) = (rotary.at(16).into_owned(), rotary.at(17).into_owned());
    assert!(short.iter().zip(&beyond).all(|(s, l)| (s / l - 4.0).abs() < 1e-5));
    // sqrt(1 + ln 4 / ln 16)
    assert!((f64::from(rotary.factor) - 1.5f64.sqrt()).abs() < 1e-6);
    let dynamic =
        json!({"max_position_embeddings": 32, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}});
    let a = Architecture::from_json(decoder("llama", [32, 64, 2, 4, 4, 64], dynamic), "config.json").unwrap();
    let rotary = a.rotary.unwrap();
    assert_eq!(rotary.at(32), rotary.at(1));
    // 10000 (2 * 64 / 32 - 1)^(8 / 6), to the power of -2 / 8
    let want = (10_000.0 * 3f64.powf(8.0 / 6.0)).powf(-0.25);
    assert!((f64::from(rotary.at(64)[1]) - want).abs() < 1e-6 * want);
}

/// One LoRA on a matrix that is several projections in one, as PEFT would; not on a part of it.
#[test]
fn fused_matrices_are_adapted_whole() {
    let a =
        Architecture::from_json(decoder("phi3", [64, 96, 2, 4, 4, 64], json!({})), "config.json").unwrap();
    let sites = Layout::new(&a).sites;
    let adapted = |targets: &[&str]| {
        let mut settings = MethodSettings::default();
        settings.gems.targets = targets.iter().map(ToString::to_string).collect();
        settings.adapted(&sites).map(|all| all.iter().filter(|a| **a).count()).map_err(|e| e.to_string())
    };
    assert_eq!(MethodSettings::default().adapted(&sites).unwrap(), [true; 8]);
    assert_eq!(adapted(&["qkv"]), Ok(2));
    assert_eq!(adapted(&["q", "k", "v", "down"]), Ok(4));
    assert_eq!(adapted(&["qkv_proj"]), Ok(2));
    let error = adapted(&["q", "v"]).unwrap_err();
    assert!(error.contains("one matrix for all of qkv") && error.contains("qkv_proj"), "{error}");
    assert!(adapted(&["gate"]).unwrap_err().contains("gate_up"));
}
