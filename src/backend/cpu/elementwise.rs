//! Copies, fills, scales and sums, element by element.

use super::narrow::widened;
use super::rows::{each_row, each_row_bf16, row};
use super::{host, host_bf16};
use crate::backend::{Axpy, Copy, DType, Fill, Scale, Softcap};
use half::bf16;

pub fn copy(op: Copy) {
    let Copy { from, mut to } = op;
    match (from.dtype, to.dtype) {
        (DType::F32, DType::F32) => {
            let data = host(from);
            each_row!(&mut to, |i, out| out.copy_from_slice(row(data, &from, i)));
        }
        (DType::BF16, DType::F32) => {
            let data = host_bf16(from);
            each_row!(&mut to, |i, out| widened(row(data, &from, i), out));
        }
        (DType::F32, DType::BF16) => {
            let data = host(from);
            each_row_bf16!(&mut to, |i, out| {
                out.iter_mut().zip(row(data, &from, i)).for_each(|(to, from)| *to = bf16::from_f32(*from));
            });
        }
        (DType::BF16, DType::BF16) => {
            let data = host_bf16(from);
            each_row_bf16!(&mut to, |i, out| out.copy_from_slice(row(data, &from, i)));
        }
    }
}

pub fn fill(mut op: Fill) {
    match op.x.dtype {
        DType::F32 => each_row!(&mut op.x, |_, row| row.fill(op.value)),
        DType::BF16 => each_row_bf16!(&mut op.x, |_, row| row.fill(bf16::from_f32(op.value))),
    }
}

pub fn scale(mut op: Scale) {
    each_row!(&mut op.x, |_, row| row.iter_mut().for_each(|v| *v *= op.alpha));
}

pub fn softcap(mut op: Softcap) {
    let cap = op.cap;
    each_row!(&mut op.x, |_, row| row.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh()));
}

pub fn axpy(op: Axpy) {
    let Axpy { alpha, x, mut y } = op;
    match x.dtype {
        DType::F32 => {
            let data = host(x);
            each_row!(&mut y, |i, out| super::simd::axpy(alpha, row(data, &x, i), out));
        }
        DType::BF16 => {
            let data = host_bf16(x);
            each_row!(&mut y, |i, out| {
                out.iter_mut().zip(row(data, &x, i)).for_each(|(y, x)| *y += alpha * x.to_f32());
            });
        }
    }
}
