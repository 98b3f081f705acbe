//! Shapes of well-known models, for benchmarks on random weights: nothing has to be downloaded.
//!
//! Each is what the model's own `config.json` says (without what the engine does not read).

use super::Architecture;
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// Names that [`architecture`] knows.
pub const NAMES: [&str; 5] = ["t5-base", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "llama-3.1-8b"];

fn qwen2(sizes: [usize; 6], tied: bool) -> Value {
    let [hidden, intermediate, layers, heads, kv_heads, vocabulary] = sizes;
    json!({
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary, "tie_word_embeddings": tied, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "max_position_embeddings": 32768, "initializer_range": 0.02,
    })
}

/// The `config.json` of a known model.
pub fn config(name: &str) -> Option<Value> {
    Some(match name {
        "t5-base" => json!({
            "model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
            "vocab_size": 32128, "feed_forward_proj": "relu", "relative_attention_num_buckets": 32,
            "layer_norm_epsilon": 1e-6, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        }),
        "qwen2.5-0.5b" => qwen2([896, 4864, 24, 14, 2, 151_936], true),
        "qwen2.5-1.5b" => qwen2([1536, 8960, 28, 12, 2, 151_936], true),
        "qwen2.5-7b" => qwen2([3584, 18944, 28, 28, 4, 152_064], false),
        "llama-3.1-8b" => json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
            "tie_word_embeddings": false, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0, "max_position_embeddings": 131_072,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        }),
        _ => return None,
    })
}

/// The architecture of a known model.
///
/// # Errors
/// An unknown name.
pub fn architecture(name: &str) -> Result<Architecture> {
    let config = config(name).ok_or_else(|| {
        Error::usage(format!("no shape is called {name:?}")).remedy(format!("one of {}", NAMES.join(", ")))
    })?;
    Architecture::from_json(config, name)
}
