//! `cuTensorMapEncodeTiled`: refuses what the rules beside its declaration in cuda.h (CUDA 13.0) forbid, and what the
//! machine does not execute.

use super::arguments::{In, Out};
use super::bound;
use super::status::*;
use crate::machine::{MAP_MAGIC, Map};
use std::ffi::c_uint;

/// Bytes of an element of each data type; the packed ones of 4 and 6 bits are not known here.
const ELEMENT_BYTES: [u64; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4];
const BFLOAT16: usize = 9;
const FLOATS: [usize; 7] = [6, 7, 8, 9, 10, 11, 12];
const MOST_ELEMENTS: u64 = 1 << 32;
const MOST_STRIDE: u64 = 1 << 40;

/// A tensor as a caller describes it.
struct Tensor {
    map: usize,
    kind: usize,
    base: u64,
    size: Vec<u64>,
    strides: Vec<u64>,
    tile: Vec<u32>,
    steps: Vec<u32>,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
}

impl Tensor {
    /// The first rule that it breaks.
    fn broken_rule(&self) -> Option<String> {
        self.rules().into_iter().find(|(broken, _)| *broken).map(|(_, rule)| rule)
    }

    /// Whether each rule is broken, and what to say then.
    fn rules(&self) -> Vec<(bool, String)> {
        let element = ELEMENT_BYTES.get(self.kind).copied().unwrap_or(0);
        let aligned = if self.interleave == 2 { 32 } else { 16 };
        let (rank, plain) = (self.size.len(), self.interleave == 0);
        let inner = u64::from(*self.tile.first().unwrap_or(&0)) * element;
        let span = [0, 32, 64].get(self.swizzle as usize).copied().unwrap_or(128);
        // Whether a value is out of its limits, and the first one that is.
        let first = |values: &[u64], bad: &dyn Fn(u64) -> bool| {
            let found = values.iter().copied().find(|v| bad(*v));
            (found.is_some(), found.unwrap_or_default())
        };
        let wide = |values: &[u32]| values.iter().map(|v| u64::from(*v)).collect::<Vec<u64>>();
        let size = first(&self.size, &|n| !(1..=MOST_ELEMENTS).contains(&n));
        let stride = first(&self.strides, &|s| !s.is_multiple_of(aligned) || s >= MOST_STRIDE);
        let tile = first(&wide(&self.tile), &|n| !(1..=256).contains(&n));
        let step = first(&wide(&self.steps), &|n| !(1..=8).contains(&n));
        let float = FLOATS.contains(&self.kind);
        vec![
            (!self.map.is_multiple_of(64), format!("the map at {:#x} is not aligned to 64 bytes", self.map)),
            (element == 0, format!("data type {}", self.kind)),
            (!(1..=5).contains(&rank), format!("{rank} dimensions; 1 to 5")),
            (!plain && rank < 3, format!("{rank} dimensions with interleave; 3 to 5")),
            (!self.base.is_multiple_of(aligned), format!("the address is not aligned to {aligned} bytes")),
            (size.0, format!("a dimension of {}; 1 to 2^32", size.1)),
            (stride.0, format!("a stride of {} bytes; a multiple of {aligned} below 2^40", stride.1)),
            (tile.0, format!("a box of {} elements; 1 to 256", tile.1)),
            (step.0, format!("an element stride of {}; 1 to 8", step.1)),
            (self.interleave > 2, format!("interleave {}", self.interleave)),
            (self.swizzle > 6, format!("swizzle {}", self.swizzle)),
            (plain && !inner.is_multiple_of(16), format!("a box of {inner} bytes inside; a multiple of 16")),
            (
                plain && self.swizzle > 0 && inner > span,
                format!("a box of {inner} bytes inside with a swizzle of {span}"),
            ),
            (
                self.interleave == 2 && self.swizzle != 1,
                "interleave of 32 bytes without the swizzle of 32".into(),
            ),
            (self.promotion > 3, format!("L2 promotion {}", self.promotion)),
            (
                self.fill > 1 || self.fill == 1 && !float,
                format!("fill {}, data type {}", self.fill, self.kind),
            ),
        ]
    }

    /// What is right and not executed here.
    fn is_known(&self) -> bool {
        let plain = self.interleave == 0 && self.fill == 0 && self.steps.iter().all(|s| *s == 1);
        plain && self.kind == BFLOAT16 && self.size.len() == 2 && self.swizzle == 3
    }
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // as cuda.h has it
extern "C" fn cuTensorMapEncodeTiled(
    map: Out<[u64; 16]>,
    kind: c_uint,
    rank: c_uint,
    base: u64,
    size: In<u64>,
    strides: In<u64>,
    tile: In<u32>,
    steps: In<u32>,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
) -> Status {
    bound("cuTensorMapEncodeTiled", |driver, _| {
        let own = driver.settings.capability;
        if own < 90 {
            return refuse(NOT_SUPPORTED, format!("tensor maps need compute capability 9.0, this is {own}"));
        }
        let dimensions = rank.min(6) as usize;
        let tensor = Tensor {
            map: map.address(),
            kind: kind as usize,
            base,
            size: size.list(dimensions),
            strides: strides.list(dimensions.saturating_sub(1)),
            tile: tile.list(dimensions),
            steps: steps.list(dimensions),
            interleave,
            swizzle,
            promotion,
            fill,
        };
        if let Some(rule) = tensor.broken_rule() {
            let Tensor { size, strides, tile, .. } = &tensor;
            return refuse(
                INVALID_VALUE,
                format!("{rule} (sizes {size:?}, strides {strides:?}, box {tile:?}, address {base:#x})"),
            );
        }
        if !tensor.is_known() {
            return refuse(
                NOT_SUPPORTED,
                "the witness executes bf16 in two dimensions with a swizzle of 128 bytes only",
            );
        }
        let made = Map {
            magic: MAP_MAGIC,
            base,
            size: [tensor.size[0], tensor.size[1]],
            row_bytes: tensor.strides[0],
            tile: [tensor.tile[0], tensor.tile[1]],
            swizzle,
            element_bytes: ELEMENT_BYTES[BFLOAT16] as u32,
        };
        let mut bytes = [0u64; 16];
        // SAFETY: plain numbers, of which the structure has fewer bytes than the 128 of a map.
        unsafe { bytes.as_mut_ptr().cast::<Map>().write(made) };
        map.put(bytes)
    })
}
