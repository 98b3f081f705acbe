//! [`crate::backend::Dequantize`]: the values of a weight that is kept in codes.

use super::rows::each_row;
use super::{host, host_bytes};
use crate::backend::{Dequantize, Groups, Levels, Quantised, Rounded};
use half::{bf16, f16};
use std::ops::Range;

pub fn dequantize(op: Dequantize) {
    let Dequantize { from, first_row, mut to } = op;
    each_row!(&mut to, |i, out| dequantized(from, first_row + i, 0..from.shape.1, out));
}

/// Some columns of a row.
#[inline(always)]
pub fn dequantized(from: &Quantised, row: usize, columns: Range<usize>, out: &mut [f32]) {
    let (codes, scales) = (host_bytes(&from.codes), host(from.scales.mat()));
    let zeros = from.zeros.as_ref().map(host_bytes);
    let cols = from.shape.1;
    let level = |element: usize| match &from.levels {
        Levels::Book(book) => book[usize::from(codes[element / 2] >> (4 - element % 2 * 4) & 15)],
        Levels::Byte(middle) => f32::from(codes[element]) - middle,
    };
    let (first, mut j) = (columns.start, columns.start);
    while j < columns.end {
        let element = row * cols + j;
        // The next elements of one group.
        let (group, end) = match &from.groups {
            Groups::Runs(run) => (element / run, (j + run - element % run).min(columns.end)),
            Groups::Columns { count, of } => (row * count + of.host[j] as usize, j + 1),
        };
        let (scale, zero) = (scales[group], zeros.map_or(0.0, |zeros| f32::from(zeros[group])));
        for (k, y) in out[j - first..end - first].iter_mut().enumerate() {
            *y = rounded(from.rounded, scale * (level(element + k) - zero));
        }
        j = end;
    }
}

#[inline(always)]
fn rounded(to: Rounded, value: f32) -> f32 {
    match to {
        Rounded::F32 => value,
        Rounded::F16 => f16::from_f32(value).to_f32(),
        Rounded::Bf16 => bf16::from_f32(value).to_f32(),
    }
}
