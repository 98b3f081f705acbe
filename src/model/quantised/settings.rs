//! `quantization_config`: what of it is served, and what is refused by field and value.

use super::super::fields::Fields;
use super::{Quantisation, Scheme};
use crate::error::{Error, Result};
use crate::model::diagnosis::DEQUANTISE;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

impl Quantisation {
    /// What a configuration, or the older files beside it, say of the weights; `None`: that they are stored whole.
    ///
    /// # Errors
    /// A scheme, or a setting of one, that is not served.
    pub fn of(raw: &Value, place: &str, dir: Option<&Path>) -> Result<Option<Self>> {
        let inside = ["quantization_config", "quantization", "compression_config"];
        let inside =
            inside.iter().filter_map(|key| Some((*key, raw.get(*key).filter(|v| v.is_object())?.clone())));
        let beside = [("quantize_config.json", "gptq"), ("quant_config.json", "awq")];
        let beside = beside.iter().filter_map(|(file, method)| {
            let mut value: Value = serde_json::from_slice(&std::fs::read(dir?.join(file)).ok()?).ok()?;
            let object = value.as_object_mut()?;
            object.entry("quant_method").or_insert_with(|| (*method).into());
            Some((*file, value))
        });
        let Some((key, settings)) = inside.chain(beside).next() else { return Ok(None) };
        let f = Fields { json: &settings, place: format!("{place}: {key}") };
        let flag = |name: &str| settings[name].as_bool() == Some(true);
        let method = match settings["quant_method"].as_str() {
            Some(method) => method,
            None if flag("load_in_4bit") || flag("load_in_8bit") => "bitsandbytes",
            None if key == "quantization" => "mlx",
            None => "an unnamed method",
        };
        let scheme = match method.to_lowercase().as_str() {
            "bitsandbytes" | "bitsandbytes_4bit" | "bitsandbytes_8bit" => {
                bitsandbytes(&f, flag("load_in_4bit"))?
            }
            "gptq" => gptq(&f)?,
            "awq" => awq(&f)?,
            _ => return Err(refused(method, &settings, &f.place)),
        };
        Ok(Some(Self { scheme, whole: BTreeSet::new() }))
    }
}

fn refused(method: &str, settings: &Value, place: &str) -> Error {
    let bits = ["bits", "w_bit"].iter().find_map(|k| settings[*k].as_u64());
    let bits = bits.map_or(String::new(), |n| format!(", {n} bits"));
    let served = "bitsandbytes (4 and 8 bits), GPTQ (4 and 8 bits) and AWQ (4 bits) can be trained on";
    Error::model(format!("the weights are quantised ({method}{bits}), in a way that is not read here"))
        .at(place)
        .remedy(format!("{served}; or {DEQUANTISE}"))
}

fn bitsandbytes(f: &Fields, four: bool) -> Result<Scheme> {
    if four {
        let kind = f.text_or("bnb_4bit_quant_type", "fp4")?;
        if !["nf4", "fp4"].contains(&kind) {
            return Err(f.bad("bnb_4bit_quant_type", "nf4, fp4"));
        }
        return Ok(Scheme::FourBit);
    }
    match f.flag_or("load_in_8bit", false)? {
        true => Ok(Scheme::Int8),
        false => Err(f.bad("load_in_4bit", "true, or load_in_8bit true")),
    }
}

/// A number of inputs, -1 for all; `default` where it is left out.
fn group(f: &Fields, name: &str, default: usize) -> Result<Option<usize>> {
    if f.json[name].as_i64() == Some(-1) { Ok(None) } else { f.size_or(name, default).map(Some) }
}

fn gptq(f: &Fields) -> Result<Scheme> {
    let bits = f.size("bits")?;
    if ![4, 8].contains(&bits) {
        return Err(f.bad("bits", "4, 8"));
    }
    let format = f.text_or("checkpoint_format", "gptq")?;
    if !["gptq", "gptq_v2"].contains(&format) || f.flag_or("is_marlin_format", false)? {
        let name =
            if f.flag_or("is_marlin_format", false)? { "is_marlin_format" } else { "checkpoint_format" };
        return Err(f.bad(name, "checkpoint_format gptq or gptq_v2, as the libraries save it"));
    }
    if f.text_or("pack_dtype", "int32")? != "int32" {
        return Err(f.bad("pack_dtype", "int32"));
    }
    if f.json["dynamic"].as_object().is_some_and(|rules| !rules.is_empty()) {
        return Err(f.bad("dynamic", "none: one number of bits for all layers"));
    }
    Ok(Scheme::Gptq { bits, group: group(f, "group_size", 128)?, less_one: format == "gptq" })
}

fn awq(f: &Fields) -> Result<Scheme> {
    let bits = if f.has("bits") { "bits" } else { "w_bit" };
    if f.size(bits)? != 4 {
        return Err(f.bad(bits, "4"));
    }
    if !f.text_or("version", "gemm")?.eq_ignore_ascii_case("gemm") {
        return Err(f.bad("version", "gemm"));
    }
    if !f.flag_or("zero_point", true)? {
        return Err(f.bad("zero_point", "true"));
    }
    let name = if f.has("q_group_size") { "q_group_size" } else { "group_size" };
    Ok(Scheme::Awq { group: group(f, name, 128)? })
}
