//! What a `config.json` says: one description for decoder-only and encoder-decoder transformers.

use super::diagnosis;
use crate::backend::Activation;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The supported values of `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama.
    Llama,
    /// Qwen2: q, k and v have biases.
    Qwen2,
    /// Qwen3: q and k are normalised per head.
    Qwen3,
    /// T5 v1.0, v1.1, Flan-T5: encoder-decoder.
    T5,
}

/// T5's relative position bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    /// Rows of the bias table.
    pub buckets: usize,
    /// Distance from which on everything is in the last bucket.
    pub max_distance: usize,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// In front: `x + f(norm(x))`.
    Before,
    /// Behind: `x + norm(f(x))` (OLMo 2).
    After,
    /// On both sides: `x + norm(f(norm(x)))` (Gemma 2 and 3).
    Both,
}

/// Decoder layers whose attention sees a window only.
#[derive(Debug, Clone, PartialEq)]
pub struct Sliding {
    /// Row i sees the rows i - window + 1 ..= i.
    pub window: usize,
    /// Which decoder layers.
    pub layers: Vec<bool>,
    /// Rotary frequencies of their own (`head_dim / 2`), or those of all layers.
    pub inv_freq: Option<Vec<f32>>,
}

/// A model's shape and constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The family.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Width of the residual stream, D.
    pub hidden: usize,
    /// Width of the feed-forward blocks.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Encoder layers (0 for decoder-only models).
    pub encoder_layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Added to the mean square in every norm.
    pub eps: f32,
    /// Scaled scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// Rotary frequencies (`head_dim / 2`), or none.
    pub inv_freq: Option<Vec<f32>>,
    /// Layers that see a window, or none.
    pub sliding: Option<Sliding>,
    /// Relative position bias, or none.
    pub relative: Option<Relative>,
    /// The feed-forward nonlinearity.
    pub activation: Activation,
    /// Whether the feed-forward block has a gate.
    pub gated: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// A bias on o.
    pub o_bias: bool,
    /// Biases in the feed-forward blocks.
    pub mlp_bias: bool,
    /// Norms on q and k, per head.
    pub qk_norm: bool,
    /// Where the blocks' norms stand.
    pub norms: Norms,
    /// A norm multiplies by its stored weight plus this (Gemma: 1). In memory it is part of the weight.
    pub norm_offset: f32,
    /// Factor on embedded tokens.
    pub embedding_scale: f32,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Factor on the logits (T5 with a tied head: `d_model^-0.5`).
    pub logit_scale: f32,
    /// Longest sequence the positions were made for (`usize::MAX`: any).
    pub max_positions: usize,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// The padding token, if any.
    pub pad: Option<u32>,
    /// The decoder's first token (encoder-decoder models).
    pub decoder_start: Option<u32>,
    /// Standard deviation of random initial weights.
    pub initializer_range: f32,
    /// The file as it was, for writing it back with few changes.
    pub raw: Value,
}

const SUPPORTED: &str = "llama, qwen2, qwen3, t5";

/// Reads fields of a JSON object with named errors and bounds.
struct Fields<'a> {
    json: &'a Value,
    place: String,
}

impl Fields<'_> {
    fn bad(&self, name: &str, supported: &str) -> Error {
        let value = self.json.get(name).map_or("missing".to_string(), Value::to_string);
        Error::model(format!("`{name}` is {value}")).at(&self.place).remedy(format!("supported: {supported}"))
    }
    fn size(&self, name: &str) -> Result<usize> {
        self.json[name]
            .as_u64()
            .filter(|n| (1..=1 << 24).contains(n))
            .map(|n| n as usize)
            .ok_or_else(|| self.bad(name, "a whole number from 1 to 16777216"))
    }
    /// A number of layers: each costs memory before any weight is looked at.
    fn layers(&self, name: &str, default: Option<usize>) -> Result<usize> {
        let given = default.map_or_else(|| self.size(name), |n| self.size_or(name, n)).ok();
        given.filter(|n| *n <= 1024).ok_or_else(|| self.bad(name, "a whole number from 1 to 1024"))
    }
    fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.json.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.size(name) }
    }
    fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|n| n.is_finite() && *n > 0.0)
                .ok_or_else(|| self.bad(name, "a positive number")),
        }
    }
    fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(name, "true or false")),
        }
    }
    fn text_or<'b>(&'b self, name: &str, default: &'b str) -> Result<&'b str> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.bad(name, "a text")),
        }
    }
    fn token(&self, name: &str) -> Option<u32> {
        match &self.json[name] {
            Value::Array(list) => list.first().and_then(Value::as_u64),
            value => value.as_u64(),
        }
        .and_then(|t| u32::try_from(t).ok())
    }
    fn tokens(&self, name: &str) -> Vec<u32> {
        match &self.json[name] {
            Value::Array(list) => list.iter().filter_map(|v| v.as_u64().map(|t| t as u32)).collect(),
            value => value.as_u64().map(|t| t as u32).into_iter().collect(),
        }
    }
}

impl Architecture {
    /// Reads `config.json` of a Hugging Face directory.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| {
            let missing =
                matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory);
            let known = if missing { diagnosis::no_configuration(dir) } else { None };
            known.unwrap_or_else(|| Error::io("read the model's configuration", &path, e))
        })?;
        diagnosis::no_pointer(&path)?;
        let raw: Value = serde_json::from_str(&text)
            .map_err(|e| Error::model(format!("not valid JSON: {e}")).at(path.display()))?;
        Self::from_json(raw, &path.display().to_string())
    }

    /// Interprets a configuration, in the spelling of transformers 4.x or 5.x; `place` names it in errors.
    pub fn from_json(raw: Value, place: &str) -> Result<Self> {
        let fields = Fields { json: &raw, place: place.to_string() };
        let family = match raw["model_type"].as_str() {
            Some("llama") => Family::Llama,
            Some("qwen2") => Family::Qwen2,
            Some("qwen3") => Family::Qwen3,
            Some("t5") => Family::T5,
            other => {
                let near = other.and_then(diagnosis::near_family);
                return Err(fields.bad("model_type", near.unwrap_or(SUPPORTED)));
            }
        };
        let architecture =
            if family == Family::T5 { Self::t5(&fields)? } else { Self::decoder(&fields, family)? };
        architecture.check(&fields)?;
        Ok(architecture)
    }

    fn decoder(f: &Fields, family: Family) -> Result<Self> {
        let hidden = f.size("hidden_size")?;
        let heads = f.size("num_attention_heads")?;
        // Fields that are left out have the family's defaults in transformers.
        let head_dim = match (f.size_or("head_dim", 0)?, family) {
            (0, Family::Qwen3) => 128,
            (0, _) if hidden % heads == 0 => hidden / heads,
            (0, _) => return Err(f.bad("num_attention_heads", "a divisor of hidden_size, or head_dim given")),
            (given, _) => given,
        };
        let kv_heads = match f.json.get("num_key_value_heads") {
            None if family != Family::Llama => 32,
            _ => f.size_or("num_key_value_heads", heads)?,
        };
        if f.text_or("hidden_act", "silu")? != "silu" {
            return Err(f.bad("hidden_act", "silu"));
        }
        let max_positions = f.size_or("max_position_embeddings", 2048)?;
        let windowed = f.flag_or("use_sliding_window", false)?
            || f.json["layer_types"].as_array().is_some_and(|l| l.iter().any(|t| t != "full_attention"));
        if windowed {
            return Err(f.bad("use_sliding_window", "false, with full_attention in every layer"));
        }
        let attention_bias = f.flag_or("attention_bias", false)?;
        Ok(Self {
            family,
            vocabulary: f.size("vocab_size")?,
            hidden,
            intermediate: f.size("intermediate_size")?,
            layers: f.layers("num_hidden_layers", None)?,
            encoder_layers: 0,
            heads,
            kv_heads,
            head_dim,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            eps: f.number_or("rms_norm_eps", 1e-6)? as f32,
            softcap: None,
            inv_freq: Some(rope(f, head_dim)?),
            sliding: None,
            relative: None,
            activation: Activation::Silu,
            gated: true,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && f.flag_or("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            norms: Norms::Before,
            norm_offset: 0.0,
            embedding_scale: 1.0,
            tied: f.flag_or("tie_word_embeddings", false)?,
            logit_scale: 1.0,
            max_positions,
            eos: f.tokens("eos_token_id"),
            pad: f.token("pad_token_id"),
            decoder_start: None,
            initializer_range: f.number_or("initializer_range", 0.02)? as f32,
            raw: f.json.clone(),
        })
    }

    fn t5(f: &Fields) -> Result<Self> {
        let hidden = f.size("d_model")?;
        let heads = f.size("num_heads")?;
        let (activation, gated) = match f.text_or("feed_forward_proj", "relu")? {
            "relu" => (Activation::Relu, false),
            "gated-gelu" => (Activation::GeluTanh, true),
            "gated-silu" => (Activation::Silu, true),
            _ => return Err(f.bad("feed_forward_proj", "relu, gated-gelu, gated-silu")),
        };
        let tied = f.flag_or("tie_word_embeddings", true)?;
        let scaled = f.flag_or("scale_decoder_outputs", tied)?;
        let layers = f.layers("num_layers", None)?;
        let start = f.token("decoder_start_token_id").or(f.token("pad_token_id")).unwrap_or(0);
        Ok(Self {
            family: Family::T5,
            vocabulary: f.size("vocab_size")?,
            hidden,
            intermediate: f.size("d_ff")?,
            layers: f.layers("num_decoder_layers", Some(layers))?,
            encoder_layers: layers,
            heads,
            kv_heads: heads,
            head_dim: f.size("d_kv")?,
            attention_scale: 1.0,
            eps: f.number_or("layer_norm_epsilon", 1e-6)? as f32,
            softcap: None,
            inv_freq: None,
            sliding: None,
            relative: Some(Relative {
                buckets: f.size_or("relative_attention_num_buckets", 32)?,
                max_distance: f.size_or("relative_attention_max_distance", 128)?,
            }),
            activation,
            gated,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            norms: Norms::Before,
            norm_offset: 0.0,
            embedding_scale: 1.0,
            tied,
            logit_scale: if scaled { (hidden as f32).powf(-0.5) } else { 1.0 },
            max_positions: usize::MAX,
            eos: f.tokens("eos_token_id"),
            pad: f.token("pad_token_id"),
            decoder_start: Some(start),
            initializer_range: 0.02,
            raw: f.json.clone(),
        })
    }

    fn check(&self, f: &Fields) -> Result<()> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(f.bad("num_key_value_heads", "a divisor of num_attention_heads"));
        }
        if self.inv_freq.is_some() && !self.head_dim.is_multiple_of(2) {
            return Err(f.bad("head_dim", "an even number"));
        }
        if let Some(r) = self.relative
            && (r.buckets < 4 || r.buckets % 2 != 0 || r.max_distance <= r.buckets / 2)
        {
            return Err(f.bad(
                "relative_attention_num_buckets",
                "an even number from 4 on, below twice the distance",
            ));
        }
        let [hidden, width] = [self.hidden as u128, self.heads as u128 * self.head_dim as u128];
        let layer = hidden * (self.intermediate as u128 + width);
        let weights = self.vocabulary as u128 * hidden + (self.layers + self.encoder_layers) as u128 * layer;
        if weights > 1 << 42 {
            return Err(Error::model("the sizes multiply to more than 4 trillion weights")
                .at(&f.place)
                .remedy("check the configuration: it does not describe a model that can exist here"));
        }
        Ok(())
    }

    /// Whether there is an encoder.
    pub fn is_encoder_decoder(&self) -> bool {
        self.encoder_layers > 0
    }
}

/// Rotary frequencies: `rope_parameters` (5.x) or `rope_theta` and `rope_scaling` (4.x).
fn rope(f: &Fields, head_dim: usize) -> Result<Vec<f32>> {
    let nested =
        ["rope_parameters", "rope_scaling"].iter().find_map(|k| f.json.get(*k).filter(|v| v.is_object()));
    let scaling = Fields { json: nested.unwrap_or(&Value::Null), place: format!("{}: rope", f.place) };
    let theta = scaling.number_or("rope_theta", f.number_or("rope_theta", 10_000.0)?)?;
    if scaling.number_or("partial_rotary_factor", f.number_or("partial_rotary_factor", 1.0)?)? != 1.0 {
        return Err(f.bad("partial_rotary_factor", "1"));
    }
    let half = head_dim / 2;
    let base: Vec<f64> = (0..half).map(|j| theta.powf(-((2 * j) as f64) / head_dim as f64)).collect();
    let kind = match scaling.json.get("rope_type").or(scaling.json.get("type")) {
        None | Some(Value::Null) => "default",
        Some(value) => value.as_str().unwrap_or("?"),
    };
    match kind {
        "default" => Ok(base.iter().map(|v| *v as f32).collect()),
        "llama3" => {
            let factor = scaling.number_or("factor", 8.0)?;
            let low = scaling.number_or("low_freq_factor", 1.0)?;
            let high = scaling.number_or("high_freq_factor", 4.0)?;
            let old = scaling.size_or("original_max_position_embeddings", 8192)? as f64;
            let stretched = |v: f64| {
                let wavelength = 2.0 * std::f64::consts::PI / v;
                if wavelength < old / high {
                    v
                } else if wavelength > old / low {
                    v / factor
                } else {
                    let smooth = (old / wavelength - low) / (high - low);
                    (1.0 - smooth) * v / factor + smooth * v
                }
            };
            Ok(base.iter().map(|v| stretched(*v) as f32).collect())
        }
        _ => {
            Err(Error::model(format!("rope type `{kind}`")).at(&f.place).remedy("supported: default, llama3"))
        }
    }
}
