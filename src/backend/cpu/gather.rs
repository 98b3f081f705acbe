//! [`crate::backend::ops::Gather`] and its way back.

use super::narrow::widened;
use super::rows::{each_row, each_row_bf16, row};
use super::simd::axpy;
use super::{host, host_bf16, host_mut};
use crate::backend::{DType, Gather, ScatterAdd};
use half::bf16;

pub fn gather(op: Gather) {
    let Gather { from, rows, scale, mut to } = op;
    let at = |i: usize| rows.host[i] as usize;
    match (from.dtype, to.dtype) {
        (DType::F32, _) => {
            let data = host(from);
            each_row!(&mut to, |i, out| {
                out.iter_mut().zip(row(data, &from, at(i))).for_each(|(y, x)| *y = scale * x);
            });
        }
        (DType::BF16, DType::F32) => {
            let data = host_bf16(from);
            each_row!(&mut to, |i, out| {
                widened(row(data, &from, at(i)), out);
                out.iter_mut().for_each(|y| *y *= scale);
            });
        }
        (DType::BF16, DType::BF16) => {
            let data = host_bf16(from);
            each_row_bf16!(&mut to, |i, out| {
                let values = row(data, &from, at(i)).iter().map(|x| bf16::from_f32(scale * x.to_f32()));
                out.iter_mut().zip(values).for_each(|(y, x)| *y = x);
            });
        }
    }
}

pub fn scatter_add(op: ScatterAdd) {
    let ScatterAdd { from, groups, scale, first_row, mut to } = op;
    let data = host(from);
    let (ld, cols) = (to.ld, to.cols);
    let out = host_mut(&mut to);
    for (g, &target) in groups.rows.host.iter().enumerate() {
        let Some(target) = (target as usize).checked_sub(first_row) else { continue };
        let sources = groups.offsets.host[g] as usize..groups.offsets.host[g + 1] as usize;
        for &source in &groups.sources.host[sources] {
            axpy(scale, row(data, &from, source as usize), &mut out[target * ld..target * ld + cols]);
        }
    }
}
