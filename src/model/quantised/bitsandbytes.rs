//! bitsandbytes: blocks of 4-bit codes with a book and a largest value each, and rows of 8-bit integers.
//!
//! As `Linear4bit` and `Linear8bitLt` save themselves (bitsandbytes `QuantState.as_dict(packed=True)`; blocks are counted
//! through all rows of a weight, the first of two codes in a byte is its high half).

use super::{DAMAGED, Packed, Part, Run, Tensors};
use crate::backend::{Levels, Rounded};
use crate::error::Result;
use safetensors::Dtype;
use serde_json::Value;

const STATES: [&str; 2] = ["weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"];

/// `1 / 127` as bitsandbytes writes it.
const PER_LEVEL: f32 = 0.007_874_016;

pub fn parts(four: bool, (m, n): (usize, usize)) -> Vec<Part> {
    let part = |name, shape, types, optional| Part { name, shape, types, optional };
    if !four {
        return vec![
            part("weight", Some(vec![m, n]), &[Dtype::I8], false),
            part("SCB", Some(vec![m]), &[Dtype::F32], false),
            part("weight_format", None, &[Dtype::U8], true),
        ];
    }
    // The type in which bytes of codes are stored is a setting (`bnb_4bit_quant_storage`); they are the same bytes.
    let mut parts = vec![
        part("weight", None, &[], false),
        part("weight.absmax", None, &[Dtype::F32, Dtype::U8], false),
        part("weight.quant_map", Some(vec![16]), &[Dtype::F32], false),
        part("weight.nested_absmax", None, &[Dtype::F32], true),
        part("weight.nested_quant_map", Some(vec![256]), &[Dtype::F32], true),
    ];
    parts.extend(STATES.map(|name| part(name, None, &[Dtype::U8], true)));
    parts
}

pub fn four_bit(t: &Tensors) -> Result<Packed> {
    let Some(state) = STATES.into_iter().find(|state| t.has(state)) else {
        return Err(t.bad(STATES[0], "is missing", DAMAGED));
    };
    let said: Value = serde_json::from_slice(t.bytes(state)?).unwrap_or_default();
    let bad = |field: &str, wanted: &str| {
        let value = said.get(field).map_or("missing".to_string(), Value::to_string);
        t.bad(state, &format!("says `{field}` {value}"), &format!("supported: {wanted}"))
    };
    let (m, n) = t.shape;
    if said["shape"].as_array().is_none_or(|s| *s != [Value::from(m), Value::from(n)]) {
        return Err(bad("shape", &format!("[{m}, {n}], as config.json says")));
    }
    if !said["quant_type"].as_str().is_some_and(|kind| state.ends_with(kind)) {
        return Err(bad("quant_type", "that of the tensor's name"));
    }
    let rounded = match said["dtype"].as_str() {
        Some("float32") => Rounded::F32,
        Some("float16") => Rounded::F16,
        Some("bfloat16") => Rounded::Bf16,
        _ => return Err(bad("dtype", "float32, float16, bfloat16")),
    };
    let sizes = 32..=4096;
    let block = said["blocksize"].as_u64().filter(|b| b.is_power_of_two() && sizes.contains(b));
    let block = block.ok_or_else(|| bad("blocksize", "a power of two from 32 to 4096"))? as usize;
    let (codes, wanted) = (t.bytes("weight")?, (m * n).div_ceil(2));
    if codes.len() != wanted {
        return Err(t.bad("weight", &format!("has {} bytes instead of {wanted}", codes.len()), DAMAGED));
    }
    let mut book = [0.0; 16];
    book.copy_from_slice(&t.floats("weight.quant_map", 16)?);
    let blocks = (m * n).div_ceil(block);
    let scales = match t.has("weight.nested_absmax") {
        false => t.floats("weight.absmax", blocks)?,
        true => {
            let every = said["nested_blocksize"].as_u64().filter(|b| (1..=1 << 16).contains(b));
            let every = every.ok_or_else(|| bad("nested_blocksize", "1 to 65536"))? as usize;
            let offset = said["nested_offset"].as_f64().filter(|o| o.is_finite());
            nested(t, blocks, every, offset.ok_or_else(|| bad("nested_offset", "a number"))? as f32)?
        }
    };
    let (codes, groups) = (codes.to_vec(), Run::Elements(block));
    Ok(Packed { shape: t.shape, levels: Levels::Book(book), codes, scales, zeros: None, groups, rounded })
}

/// The blocks' largest values where they are in codes themselves.
fn nested(t: &Tensors, blocks: usize, every: usize, offset: f32) -> Result<Vec<f32>> {
    let codes = t.bytes("weight.absmax")?;
    if codes.len() != blocks {
        return Err(t.bad(
            "weight.absmax",
            &format!("has {} bytes instead of {blocks}", codes.len()),
            DAMAGED,
        ));
    }
    let book = t.floats("weight.nested_quant_map", 256)?;
    let largest = t.floats("weight.nested_absmax", blocks.div_ceil(every))?;
    let of = |(i, code): (usize, &u8)| book[usize::from(*code)] * largest[i / every] + offset;
    Ok(codes.iter().enumerate().map(of).collect())
}

pub fn int8(t: &Tensors) -> Result<Packed> {
    let (m, n) = t.shape;
    if t.has("weight_format") && t.bytes("weight_format")? != [0] {
        let what = format!("is {:?}, not 0 (rows)", t.bytes("weight_format")?);
        return Err(t.bad("weight_format", &what, "save the model again with a version that stores rows"));
    }
    // Integers from -128 as bytes from 0.
    let codes: Vec<u8> = t.bytes("weight")?.iter().map(|code| code ^ 0x80).collect();
    let scales: Vec<f32> = t.floats("SCB", m)?.into_iter().map(|most| most * PER_LEVEL).collect();
    let (levels, groups) = (Levels::Byte(128.0), Run::Elements(n));
    Ok(Packed { shape: t.shape, levels, codes, scales, zeros: None, groups, rounded: Rounded::F32 })
}
