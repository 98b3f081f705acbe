//! What a model is: one description for decoder-only and encoder-decoder transformers.

use super::quantised::Quantisation;
use super::rotary::Rotary;
use crate::backend::Activation;
use serde_json::Value;
use std::ops::Range;

/// The supported values of `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama, and whatever else was saved as one.
    Llama,
    /// Qwen2 and 2.5: q, k and v have biases.
    Qwen2,
    /// Qwen3: q and k are normalised per head.
    Qwen3,
    /// Mistral: every layer sees a window.
    Mistral,
    /// Phi-3, 3.5 and 4: q, k and v are one matrix, gate and up another.
    Phi3,
    /// OLMo 2: norms behind, q and k normalised as a whole.
    Olmo2,
    /// OLMo 3: OLMo 2 with windows in three of four layers.
    Olmo3,
    /// Gemma 2: norms on both sides, capped scores and logits, windows in every other layer.
    Gemma2,
    /// Gemma 3, text only: query-key norms instead of caps, windows with a rotation of their own.
    Gemma3,
    /// Granite 3: Llama with factors on embeddings, attention, blocks and logits.
    Granite,
    /// T5 v1.0, v1.1, Flan-T5: encoder-decoder.
    T5,
    /// mT5: T5 v1.1 of many languages.
    Mt5,
    /// umT5: mT5 with a relative bias in every layer.
    Umt5,
}

impl Family {
    /// All of them, with `model_type` and the class that has a head for text.
    const ALL: [(Self, &'static str, &'static str); 13] = [
        (Self::Llama, "llama", "LlamaForCausalLM"),
        (Self::Qwen2, "qwen2", "Qwen2ForCausalLM"),
        (Self::Qwen3, "qwen3", "Qwen3ForCausalLM"),
        (Self::Mistral, "mistral", "MistralForCausalLM"),
        (Self::Phi3, "phi3", "Phi3ForCausalLM"),
        (Self::Olmo2, "olmo2", "Olmo2ForCausalLM"),
        (Self::Olmo3, "olmo3", "Olmo3ForCausalLM"),
        (Self::Gemma2, "gemma2", "Gemma2ForCausalLM"),
        (Self::Gemma3, "gemma3_text", "Gemma3ForCausalLM"),
        (Self::Granite, "granite", "GraniteForCausalLM"),
        (Self::T5, "t5", "T5ForConditionalGeneration"),
        (Self::Mt5, "mt5", "MT5ForConditionalGeneration"),
        (Self::Umt5, "umt5", "UMT5ForConditionalGeneration"),
    ];

    /// The family of a `model_type`.
    pub fn parse(model_type: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name, _)| *name == model_type).map(|(family, ..)| *family)
    }
    /// Every `model_type`, in a row.
    pub fn names() -> String {
        Self::ALL.map(|(_, name, _)| name).join(", ")
    }
    /// The class of transformers that has a head for text.
    pub fn class(self) -> &'static str {
        Self::ALL.iter().find(|(family, ..)| *family == self).map_or("", |(.., class)| class)
    }
    /// Whether it is built as T5 is.
    pub fn is_t5(self) -> bool {
        matches!(self, Self::T5 | Self::Mt5 | Self::Umt5)
    }
}

/// T5's relative position bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    /// Rows of the bias table.
    pub buckets: usize,
    /// Distance from which on everything is in the last bucket.
    pub max_distance: usize,
    /// Whether every layer has a table of its own (umT5), or the first one's.
    pub every_layer: bool,
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

/// Norms on queries and keys, before they rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorms {
    /// None.
    Absent,
    /// Of every head, with one weight for all heads (Qwen3, Gemma 3).
    PerHead,
    /// Of all heads together (OLMo 2 and 3).
    Whole,
}

/// Decoder layers whose attention sees a window only.
#[derive(Debug, Clone, PartialEq)]
pub struct Sliding {
    /// Row i sees the rows i - window + 1 ..= i.
    pub window: usize,
    /// Which decoder layers.
    pub layers: Vec<bool>,
    /// A rotation of their own, or that of all layers.
    pub rotary: Option<Rotary>,
}

/// Weights that are bf16 in memory where layers compute in f32. Norms and biases never are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Narrow {
    /// Those of linear layers, unless they are in codes.
    pub layers: bool,
    /// Those of the embedding table and the head.
    pub tables: bool,
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
    /// How queries and keys rotate, if they do.
    pub rotary: Option<Rotary>,
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
    /// Whether q, k and v are one matrix, and gate and up another.
    pub fused: bool,
    /// Norms on q and k.
    pub qk_norm: QueryKeyNorms,
    /// Where the blocks' norms stand.
    pub norms: Norms,
    /// A norm multiplies by its stored weight plus this (Gemma: 1). In memory it is part of the weight.
    pub norm_offset: f32,
    /// Factor on embedded tokens.
    pub embedding_scale: f32,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Factor on what a block adds to the stream.
    pub residual_scale: f32,
    /// Factor on the logits (T5 with a tied head: `d_model^-0.5`).
    pub logit_scale: f32,
    /// Scaled logits become `softcap * tanh(logit / softcap)`.
    pub logit_softcap: Option<f32>,
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
    /// In which codes linear layers are stored, if they are.
    pub quantised: Option<Quantisation>,
    /// Which weights are bf16 in memory where layers compute in f32.
    pub narrow: Narrow,
    /// The file as it was, for writing it back with few changes.
    pub raw: Value,
}

impl Architecture {
    /// Columns of queries, keys and values where one matrix makes all three.
    pub fn qkv_columns(&self) -> [Range<usize>; 3] {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [0..queries, queries..queries + keys, queries + keys..queries + 2 * keys]
    }
    /// In which codes a layer is stored, if it is.
    pub fn codes_of(&self, module: &str) -> Option<&Quantisation> {
        self.quantised.as_ref().filter(|q| q.holds(module))
    }
    /// Whether there is an encoder.
    pub fn is_encoder_decoder(&self) -> bool {
        self.encoder_layers > 0
    }
}
