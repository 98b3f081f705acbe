//! The families: what each `config.json` says in the words of [`Architecture`].
//!
//! Fields that are left out have the defaults of the family's configuration class in transformers.

use super::architecture::{Architecture, Family, Narrow, Norms, QueryKeyNorms, Relative, Sliding};
use super::diagnosis;
use super::fields::Fields;
use super::nearest;
use super::quantised::Quantisation;
use super::rotary::{Rotary, Setting, rotary};
use crate::backend::Activation;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

impl Architecture {
    /// Reads `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    /// No such file; a model that is not supported, by the field that says so.
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
        let place = path.display().to_string();
        let beside = Quantisation::of(&Value::Null, &place, Some(dir));
        let mut architecture = Self::from_json(raw, &place)?;
        if architecture.quantised.is_none() {
            architecture.quantised = beside?;
        }
        Ok(architecture)
    }

    /// Interprets a configuration, in the spelling of transformers 4.x or 5.x; `place` names it in errors.
    ///
    /// # Errors
    /// A model that is not supported, by the field that says so.
    pub fn from_json(raw: Value, place: &str) -> Result<Self> {
        let f = Fields { json: &raw, place: place.to_string() };
        let named = raw["model_type"].as_str();
        let Some(family) = named.and_then(Family::parse) else {
            return Err(f.bad("model_type", &nearest::supported_instead(&raw)));
        };
        nearest::language_model(&raw, place)?;
        let architecture = if family.is_t5() { t5(&f, family)? } else { decoder(&f, family)? };
        check(&architecture, &f)?;
        Ok(Self { quantised: Quantisation::of(&raw, place, None)?, ..architecture })
    }
}

/// What the families of decoders have where nothing is said.
struct Usual {
    /// `head_dim`; none: `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// `num_key_value_heads`; none: as many as heads.
    kv_heads: Option<usize>,
    positions: usize,
    eps: f64,
    theta: f64,
    tied: bool,
    activation: (&'static str, &'static str),
}

impl Usual {
    fn of(family: Family) -> Self {
        let llama = Self {
            head_dim: None,
            kv_heads: None,
            positions: 2048,
            eps: 1e-6,
            theta: 10_000.0,
            tied: false,
            activation: ("hidden_act", "silu"),
        };
        let gemma = Self {
            head_dim: Some(256),
            kv_heads: Some(4),
            tied: true,
            activation: ("hidden_activation", "gelu_pytorch_tanh"),
            ..llama
        };
        match family {
            Family::Qwen2 => Self { kv_heads: Some(32), positions: 32_768, ..llama },
            Family::Qwen3 => Self { head_dim: Some(128), kv_heads: Some(32), positions: 32_768, ..llama },
            Family::Mistral => Self { kv_heads: Some(8), positions: 131_072, ..llama },
            Family::Phi3 => Self { positions: 4096, eps: 1e-5, ..llama },
            Family::Olmo2 | Family::Olmo3 => Self { eps: 1e-5, ..llama },
            Family::Gemma2 => Self { positions: 8192, ..gemma },
            Family::Gemma3 => Self { positions: 131_072, theta: 1e6, ..gemma },
            Family::Llama | Family::Granite | Family::T5 | Family::Mt5 | Family::Umt5 => llama,
        }
    }
}

/// A decoder: what all of them have, then what its family has besides.
fn decoder(f: &Fields, family: Family) -> Result<Architecture> {
    let mut a = plain_decoder(f, family)?;
    let attention_bias = f.flag_or("attention_bias", false)?;
    let biased = !matches!(family, Family::Qwen2 | Family::Mistral | Family::Phi3) && attention_bias;
    (a.qkv_bias, a.o_bias) = (biased || family == Family::Qwen2, biased);
    let layers = a.layers;
    match family {
        Family::Llama => a.mlp_bias = f.flag_or("mlp_bias", false)?,
        Family::Granite => {
            a.mlp_bias = f.flag_or("mlp_bias", false)?;
            a.embedding_scale = f.number_or("embedding_multiplier", 1.0)? as f32;
            a.attention_scale = f.number_or("attention_multiplier", 1.0)? as f32;
            a.residual_scale = f.number_or("residual_multiplier", 1.0)? as f32;
            a.logit_scale = f.number_or("logits_scaling", 1.0)?.recip() as f32;
        }
        Family::Qwen2 | Family::Qwen3 => {
            if family == Family::Qwen3 {
                a.qk_norm = QueryKeyNorms::PerHead;
            }
            let on = f.flag_or("use_sliding_window", false)?;
            let first = if on { f.number_or("max_window_layers", 28.0)? as usize } else { usize::MAX };
            a.sliding = sliding(f, on, (0..layers).map(|layer| layer >= first), None)?;
        }
        Family::Mistral | Family::Phi3 => {
            a.fused = family == Family::Phi3;
            // One window for all layers, or for none; null is none.
            let window = f.optional("sliding_window", (!a.fused).then_some(4096.0))?;
            let on = window.is_some();
            a.sliding = sliding(f, on, std::iter::repeat_n(on, layers), None)?;
            if a.sliding.as_ref().map_or(on, |s| s.layers.contains(&false)) {
                return Err(f.bad("layer_types", "the same in every layer, as transformers takes it to be"));
            }
        }
        Family::Olmo2 => (a.norms, a.qk_norm) = (Norms::After, QueryKeyNorms::Whole),
        Family::Olmo3 => {
            (a.norms, a.qk_norm) = (Norms::After, QueryKeyNorms::Whole);
            let own = section_of(f, "sliding_attention", "rope_theta", None)?;
            let own = rotation(f, family, a.head_dim, &own)?;
            a.sliding = sliding(f, true, (0..layers).map(|layer| (layer + 1) % 4 != 0), Some(own))?;
        }
        Family::Gemma2 | Family::Gemma3 => gemma(f, &mut a)?,
        Family::T5 | Family::Mt5 | Family::Umt5 => unreachable!("no decoder alone"),
    }
    Ok(a)
}

/// What Gemma 2 and 3 have beside a plain decoder.
fn gemma(f: &Fields, a: &mut Architecture) -> Result<()> {
    let second = a.family == Family::Gemma2;
    (a.norms, a.norm_offset) = (Norms::Both, 1.0);
    a.embedding_scale = (a.hidden as f32).sqrt();
    a.attention_scale = f.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5) as f32;
    let cap = |name: &str, usual: f64| f.optional(name, second.then_some(usual)).map(|c| c.map(|c| c as f32));
    (a.softcap, a.logit_softcap) =
        (cap("attn_logit_softcapping", 50.0)?, cap("final_logit_softcapping", 30.0)?);
    let layers = a.layers;
    if second {
        a.sliding = sliding(f, true, (0..layers).map(|layer| layer % 2 == 0), None)?;
        return Ok(());
    }
    if f.flag_or("use_bidirectional_attention", false)? {
        return Err(f.bad("use_bidirectional_attention", "false"));
    }
    a.qk_norm = QueryKeyNorms::PerHead;
    let own = section_of(f, "sliding_attention", "rope_local_base_freq", Some(10_000.0))?;
    let own = rotation(f, a.family, a.head_dim, &own)?;
    let every = f.size_or("sliding_window_pattern", 6)?;
    a.sliding = sliding(f, true, (0..layers).map(|layer| (layer + 1) % every != 0), Some(own))?;
    Ok(())
}

/// What all decoders have.
fn plain_decoder(f: &Fields, family: Family) -> Result<Architecture> {
    let usual = Usual::of(family);
    let hidden = f.size("hidden_size")?;
    let heads = f.size("num_attention_heads")?;
    let head_dim = match (f.size_or("head_dim", 0)?, usual.head_dim) {
        (0, Some(usual)) => usual,
        (0, None) if hidden % heads == 0 => hidden / heads,
        (0, None) => return Err(f.bad("num_attention_heads", "a divisor of hidden_size, or head_dim given")),
        (given, _) => given,
    };
    let kv_heads = match (f.json.get("num_key_value_heads"), usual.kv_heads) {
        (None, Some(usual)) => usual,
        _ => f.size_or("num_key_value_heads", heads)?,
    };
    let (name, nonlinearity) = usual.activation;
    let activation = match f.text_or(name, nonlinearity)? {
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        _ => return Err(f.bad(name, "silu, relu, gelu_pytorch_tanh")),
    };
    let section = section_of(f, "full_attention", "rope_theta", None)?;
    Ok(Architecture {
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
        eps: f.number_or("rms_norm_eps", usual.eps)? as f32,
        softcap: None,
        rotary: Some(rotation(f, family, head_dim, &section)?),
        sliding: None,
        relative: None,
        activation,
        gated: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        fused: false,
        qk_norm: QueryKeyNorms::Absent,
        norms: Norms::Before,
        norm_offset: 0.0,
        embedding_scale: 1.0,
        tied: f.flag_or("tie_word_embeddings", usual.tied)?,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        max_positions: f.size_or("max_position_embeddings", usual.positions)?,
        eos: f.tokens("eos_token_id"),
        pad: f.token("pad_token_id"),
        decoder_start: None,
        initializer_range: f.number_or("initializer_range", 0.02)? as f32,
        quantised: None,
        narrow: Narrow::default(),
        raw: f.json.clone(),
    })
}

/// Which layers see a window: what `layer_types` says, or the family's `rule`. Without a window (`on` is false) no layer
/// may have one.
fn sliding(
    f: &Fields,
    on: bool,
    rule: impl Iterator<Item = bool>,
    rotary: Option<Rotary>,
) -> Result<Option<Sliding>> {
    let rule: Vec<bool> = rule.collect();
    let layers = match f.json["layer_types"].as_array() {
        None => rule,
        Some(list) => {
            let kinds = list.iter().map(|kind| match kind.as_str() {
                Some("full_attention") => Some(false),
                Some("sliding_attention") => Some(true),
                _ => None,
            });
            let found: Option<Vec<bool>> = kinds.collect();
            let right = found.filter(|l| l.len() == rule.len());
            right.ok_or_else(|| f.bad("layer_types", "full_attention or sliding_attention of every layer"))?
        }
    };
    if !layers.contains(&true) {
        return Ok(None);
    }
    if !on {
        let name =
            if f.json.get("use_sliding_window").is_some() { "use_sliding_window" } else { "sliding_window" };
        return Err(f.bad(name, "a window where layer_types names sliding_attention"));
    }
    Ok(Some(Sliding { window: f.size_or("sliding_window", 4096)?, layers, rotary }))
}

/// The section on the rotation of one kind of layer, and its base where the section does not say it.
struct Section<'a> {
    fields: Fields<'a>,
    theta: Option<f64>,
}

/// `rope_parameters` (5.x: of all layers, or by kind), or `rope_scaling` beside a base (4.x: of layers with full attention;
/// those with a window have the default rotation).
fn section_of<'a>(f: &Fields<'a>, kind: &str, base: &str, usual: Option<f64>) -> Result<Section<'a>> {
    let theta = f.optional(base, usual)?;
    let all = f.object(&["rope_parameters"], "rope");
    let by_kind = all.json.get("full_attention").is_some() || all.json.get("sliding_attention").is_some();
    let fields = match (by_kind, kind) {
        (true, kind) => all.object(&[kind], kind),
        (false, "sliding_attention") => Fields { json: &Value::Null, place: format!("{}: rope", f.place) },
        (false, _) => f.object(&["rope_parameters", "rope_scaling"], "rope"),
    };
    Ok(Section { fields, theta })
}

fn rotation(f: &Fields, family: Family, head_dim: usize, section: &Section) -> Result<Rotary> {
    let usual = Usual::of(family);
    let partial = "partial_rotary_factor";
    let share = section.fields.number_or(partial, f.number_or(partial, 1.0)?)?;
    let turned = (head_dim as f64 * share) as usize;
    if share > 1.0 || !turned.is_multiple_of(2) || turned == 0 || (share != 1.0 && family != Family::Phi3) {
        let alone = if section.fields.has(partial) { &section.fields } else { f };
        return Err(match share == 1.0 {
            true => f.bad("head_dim", "an even number"),
            false => {
                alone.bad(partial, "1 (with phi3 also less, where an even number of a head's values turns)")
            }
        });
    }
    // Transformers 4 and 5 disagree on what OLMo 3 has where nothing is said.
    if family == Family::Olmo3 && section.theta.is_none() && !section.fields.has("rope_theta") {
        return Err(f.bad("rope_theta", "a positive number"));
    }
    let phi = family == Family::Phi3;
    let original = match phi {
        true => Some(f.size_or("original_max_position_embeddings", 4096)?),
        false if f.has("original_max_position_embeddings") => {
            Some(f.size("original_max_position_embeddings")?)
        }
        false => None,
    };
    let setting = Setting {
        turned,
        positions: f.size_or("max_position_embeddings", usual.positions)?,
        original,
        theta: section.theta.unwrap_or(usual.theta),
        longrope: if phi { &["su", "yarn"] } else { &[] },
    };
    rotary(&section.fields, &setting)
}

fn t5(f: &Fields, family: Family) -> Result<Architecture> {
    let hidden = f.size("d_model")?;
    let heads = f.size("num_heads")?;
    let usual = if family == Family::T5 { "relu" } else { "gated-gelu" };
    let (activation, gated) = match f.text_or("feed_forward_proj", usual)? {
        "relu" => (Activation::Relu, false),
        "gated-gelu" => (Activation::GeluTanh, true),
        "gated-silu" => (Activation::Silu, true),
        _ => return Err(f.bad("feed_forward_proj", "relu, gated-gelu, gated-silu")),
    };
    let tied = f.flag_or("tie_word_embeddings", family != Family::Mt5)?;
    let scaled = match family {
        Family::Mt5 => false,
        _ => f.flag_or("scale_decoder_outputs", tied)?,
    };
    // Transformers 5 writes true for every mT5 and never scales; 4 scales where it reads true.
    let writer = f.text_or("transformers_version", "4")?;
    if family == Family::Mt5 && tied && !writer.starts_with('5') {
        return Err(f.bad("tie_word_embeddings", "false: transformers 4 and 5 read a tied mt5 differently"));
    }
    let layers = f.layers("num_layers", None)?;
    let start = f.token("decoder_start_token_id").or(f.token("pad_token_id")).unwrap_or(0);
    Ok(Architecture {
        family,
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
        rotary: None,
        sliding: None,
        relative: Some(Relative {
            buckets: f.size_or("relative_attention_num_buckets", 32)?,
            max_distance: f.size_or("relative_attention_max_distance", 128)?,
            every_layer: family == Family::Umt5,
        }),
        activation,
        gated,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        fused: false,
        qk_norm: QueryKeyNorms::Absent,
        norms: Norms::Before,
        norm_offset: 0.0,
        embedding_scale: 1.0,
        tied,
        residual_scale: 1.0,
        logit_scale: if scaled { (hidden as f32).powf(-0.5) } else { 1.0 },
        logit_softcap: None,
        max_positions: usize::MAX,
        eos: f.tokens("eos_token_id"),
        pad: f.token("pad_token_id"),
        decoder_start: Some(start),
        initializer_range: 0.02,
        quantised: None,
        narrow: Narrow::default(),
        raw: f.json.clone(),
    })
}

fn check(a: &Architecture, f: &Fields) -> Result<()> {
    if !a.heads.is_multiple_of(a.kv_heads) {
        return Err(f.bad("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    if a.head_dim > 256 {
        return Err(f.bad(if a.family.is_t5() { "d_kv" } else { "head_dim" }, "at most 256"));
    }
    if let Some(r) = a.relative
        && (r.buckets < 4 || r.buckets % 2 != 0 || r.max_distance <= r.buckets / 2)
    {
        return Err(
            f.bad("relative_attention_num_buckets", "an even number from 4 on, below twice the distance")
        );
    }
    let [hidden, width] = [a.hidden as u128, a.heads as u128 * a.head_dim as u128];
    let layer = hidden * (a.intermediate as u128 + width);
    let weights = a.vocabulary as u128 * hidden + (a.layers + a.encoder_layers) as u128 * layer;
    if weights > 1 << 42 {
        return Err(Error::model("the sizes multiply to more than 4 trillion weights")
            .at(&f.place)
            .remedy("check the configuration: it does not describe a model that can exist here"));
    }
    Ok(())
}
