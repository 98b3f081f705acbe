//! GPTQ and AWQ: codes in words of 32 bits, of a weight that is stored transposed, `[N x M]`.
//!
//! GPTQ (AutoGPTQ, GPTQModel) packs codes along the inputs, from the low bits up, and zeros along the outputs; AWQ
//! (AutoAWQ's `gemm`) both along the outputs, in an order of its own. Both have a scale and a zero for a group of inputs
//! and an output.

use super::{DAMAGED, Packed, Part, Run, Tensors};
use crate::backend::{Levels, Rounded};
use crate::error::Result;
use safetensors::Dtype;

/// Of the eight codes of an AWQ word, from the low bits up: which output is it?
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

const SCALES: &[Dtype] = &[Dtype::F16, Dtype::BF16, Dtype::F32];

fn part(name: &'static str, rows: usize, cols: usize, types: &'static [Dtype]) -> Part {
    Part { name, shape: Some(vec![rows, cols]), types, optional: false }
}

fn groups_of(group: Option<usize>, n: usize) -> usize {
    n.div_ceil(group.unwrap_or(n).max(1))
}

pub fn gptq_parts(bits: usize, group: Option<usize>, (m, n): (usize, usize)) -> Vec<Part> {
    let (groups, each) = (groups_of(group, n), 32 / bits);
    vec![
        part("qweight", n / each, m, &[Dtype::I32]),
        part("qzeros", groups, m / each, &[Dtype::I32]),
        part("scales", groups, m, SCALES),
        Part { name: "g_idx", shape: Some(vec![n]), types: &[Dtype::I32], optional: true },
    ]
}

pub fn awq_parts(group: Option<usize>, (m, n): (usize, usize)) -> Vec<Part> {
    let groups = groups_of(group, n);
    vec![
        part("qweight", n, m / 8, &[Dtype::I32]),
        part("qzeros", groups, m / 8, &[Dtype::I32]),
        part("scales", groups, m, SCALES),
    ]
}

/// Fails where outputs or inputs do not fill words.
fn whole_words(t: &Tensors, what: &str, size: usize, each: usize) -> Result<()> {
    match size.is_multiple_of(each) {
        true => Ok(()),
        false => Err(t.bad(
            "qweight",
            &format!("packs {size} {what}"),
            &format!("supported: a multiple of {each}"),
        )),
    }
}

pub fn gptq(t: &Tensors, bits: usize, group: Option<usize>, less_one: bool) -> Result<Packed> {
    let ((m, n), each) = (t.shape, 32 / bits);
    whole_words(t, "inputs", n, each)?;
    whole_words(t, "outputs", m, each)?;
    let (codes, zeros, mask) = (t.words("qweight")?, t.words("qzeros")?, (1u32 << bits) - 1);
    let code = |i: usize, j: usize| (codes[j / each * m + i] >> (j % each * bits) & mask) as u8;
    // Within its bits, as AutoGPTQ adds it: the largest number stands for zero.
    let one = u32::from(less_one);
    let zero = |g: usize, i: usize| {
        ((zeros[g * (m / each) + i / each] >> (i % each * bits)).wrapping_add(one) & mask) as u8
    };
    packed(t, bits, group, code, zero)
}

pub fn awq(t: &Tensors, group: Option<usize>) -> Result<Packed> {
    let (m, _) = t.shape;
    whole_words(t, "outputs", m, 8)?;
    let (codes, zeros) = (t.words("qweight")?, t.words("qzeros")?);
    let mut shift = [0; 8];
    AWQ_ORDER.iter().enumerate().for_each(|(place, output)| shift[*output] = 4 * place);
    let at = |words: &[u32], row: usize, i: usize| (words[row * (m / 8) + i / 8] >> shift[i % 8] & 15) as u8;
    packed(t, 4, group, |i, j| at(&codes, j, i), |g, i| at(&zeros, g, i))
}

/// Codes and zeros by output and input, or group, in the order of rows.
fn packed(
    t: &Tensors,
    bits: usize,
    group: Option<usize>,
    code: impl Fn(usize, usize) -> u8,
    zero: impl Fn(usize, usize) -> u8,
) -> Result<Packed> {
    let (m, n) = t.shape;
    let count = groups_of(group, n);
    let by_group = t.floats("scales", count * m)?;
    let elements = || (0..m * n).map(|e| code(e / n, e % n));
    let codes = match bits {
        8 => elements().collect(),
        _ => {
            let mut bytes = vec![0u8; (m * n).div_ceil(2)];
            elements().enumerate().for_each(|(e, code)| bytes[e / 2] |= code << (4 - e % 2 * 4));
            bytes
        }
    };
    let levels = if bits == 8 { Levels::Byte(0.0) } else { Levels::Book(std::array::from_fn(|i| i as f32)) };
    Ok(Packed {
        shape: t.shape,
        levels,
        codes,
        scales: (0..m * count).map(|e| by_group[e % count * m + e / count]).collect(),
        zeros: Some((0..m * count).map(|e| zero(e % count, e / count)).collect()),
        groups: groups(t, group.unwrap_or(n).max(1), count)?,
        rounded: match t.weights.dtype(&t.name("scales")) {
            Some(Dtype::F16) => Rounded::F16,
            Some(Dtype::BF16) => Rounded::Bf16,
            _ => Rounded::F32,
        },
    })
}

/// Groups of neighbouring inputs, or as `g_idx` says it of every input (`desc_act`).
fn groups(t: &Tensors, size: usize, count: usize) -> Result<Run> {
    let n = t.shape.1;
    let mut of: Vec<u32> = (0..n).map(|j| (j / size) as u32).collect();
    if t.has("g_idx") {
        let said = t.words("g_idx")?;
        if let Some(j) = said.iter().position(|g| *g as usize >= count) {
            let what = format!("puts input {j} into group {} of {count}", said[j] as i32);
            return Err(t.bad("g_idx", &what, DAMAGED));
        }
        of = said;
    }
    let plain = of.iter().enumerate().all(|(j, g)| j / size == *g as usize) && n.is_multiple_of(size);
    Ok(if plain { Run::Elements(size) } else { Run::Columns { count, of } })
}
